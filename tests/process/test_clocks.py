"""The four clocks with the real program: who is late is replaced and shown; who could not run is not (promises 7, 8, 9)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faulty import ask, begin, pool, wait_replaced
from tests.harness import Server, body_of, fetch, is_alive, read_to_end, session_of, wait_until

EXTENDING = """
import prefork, web
def app(environ, start_response):
    if environ["PATH_INFO"].startswith("/extended"):
        prefork.current().extend(20)
        environ["PATH_INFO"] = environ["PATH_INFO"].removeprefix("/extended")
    return web.routes(environ, start_response)
"""
STREAMING = """
import itertools, time
def app(environ, start_response):
    start_response("200 OK", [])
    path = environ["PATH_INFO"]
    for _ in itertools.count() if path == "/endless" else range(10):
        yield b"tick"
        time.sleep(60 if path == "/paused" else 0.26)
"""
SPINNING = "import sys\nwhile True:\n    pass\n"


def get(server: Server, path: str) -> socket.socket:
    """Return a connection on which a request was sent."""
    client = server.connect()
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
    return client


def test_a_handler_in_a_busy_loop_is_replaced_while_the_others_serve(start):
    server = start(pool(workers=2, request_timeout=0.5)).wait_serving()
    with begin(server, "spin 60"):
        stuck = next(worker["pid"] for worker in server.workers() if worker["current"])
        while server.pids() >= {stuck}:
            assert int(ask(server, "pid")) != stuck
    server.wait_for(
        r"127.0.0.1:\d+ ran .*, limit 500 ms \(request_timeout\); replacing the worker; it was at:"
    )
    server.wait_for('faults.py", line .* in spin')
    wait_replaced(server, {stuck})


def test_an_application_in_a_busy_loop_is_replaced_while_the_others_serve(start):
    server = start(pool("web:routes", kind="wsgi", workers=2, request_timeout=0.5)).wait_serving()
    with get(server, "/spin"):
        stuck = wait_until(
            lambda: [worker["pid"] for worker in server.workers() if worker["current"]], "it runs"
        )[0]
        while server.pids() >= {stuck}:
            assert int(body_of(server.get()).split()[0]) != stuck
    server.wait_for(r"GET /spin ran .*, limit 500 ms \(request_timeout\); replacing the worker; it was at:")
    server.wait_for('web.py", line .* in spin_for_ever')
    wait_replaced(server, {stuck})


def test_of_several_threads_only_the_overdue_one_is_lost(start):
    server = start(pool(threads=2, request_timeout=0.5)).wait_serving()
    before = server.pids()
    with begin(server, "sleep 60"), begin(server, "extend 20 1.5") as other:
        server.wait_for(r"ran .*, limit 500 ms \(request_timeout\); replacing the worker")
        assert read_to_end(other) == b"done"
    wait_replaced(server, before)


def test_of_several_requests_of_an_application_only_the_overdue_one_is_lost(start, tmp_path):
    (tmp_path / "own.py").write_text(EXTENDING)
    server = start(pool("own:app", kind="wsgi", threads=2, request_timeout=0.5)).wait_serving()
    before = server.pids()
    with get(server, "/sleep/60"), get(server, "/extended/sleep/1.5") as other:
        server.wait_for(r"GET /sleep/60 ran .*, limit 500 ms \(request_timeout\); replacing the worker")
        assert int(body_of(read_to_end(other)).split()[0]) in before
    wait_replaced(server, before)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_stream_is_late_when_its_next_piece_is_however_long_it_lasts(start, tmp_path, threads):
    (tmp_path / "own.py").write_text(STREAMING)
    server = start(pool("own:app", kind="wsgi", threads=threads, request_timeout=2)).wait_serving()
    before = server.pids()
    began = time.monotonic()
    assert body_of(server.get("/healthy")).count(b"tick") == 10
    assert time.monotonic() - began > 2.5
    assert server.pids() == before
    assert "replacing" not in server.log
    with get(server, "/paused"):
        server.wait_for(
            r"GET /paused ran .*, limit 2 s \(request_timeout\); replacing the worker; it was at:"
        )
    wait_replaced(server, before)


@pytest.mark.parametrize("threads", [1, 2])
def test_max_stream_time_ends_a_stream_and_leaves_its_worker(start, tmp_path, threads):
    (tmp_path / "own.py").write_text(STREAMING)
    server = start(pool("own:app", kind="wsgi", threads=threads, max_stream_time=0.5)).wait_serving()
    before = server.pids()
    with get(server, "/endless") as client:
        assert b"tick" in read_to_end(client)
    server.wait_for(r"GET /endless: cutting the response after 0.5 s \(max_stream_time\)")
    assert server.pids() == before


def test_a_request_without_a_limit_takes_its_time(start):
    server = start(pool(request_timeout=0, stall_timeout=0.2)).wait_serving()
    assert ask(server, "spin 1.2") == "began done"
    assert "replacing" not in server.log


def test_a_stopped_worker_is_replaced_by_its_deadline(start):
    server = start(pool(workers=2, stall_timeout=0.6)).wait_serving()
    halted = min(server.pids())
    began = time.monotonic()
    os.kill(halted, signal.SIGSTOP)
    server.wait_for(r"halted by a signal ran .*, limit 600 ms \(stall_timeout\); replacing the worker")
    wait_replaced(server, {halted})
    assert time.monotonic() - began < 5
    assert not is_alive(halted)


def test_a_worker_that_is_stopped_for_a_moment_is_left_alone(start):
    server = start(pool(stall_timeout=1)).wait_serving()
    before = server.pids()
    for _ in range(3):
        freeze_one(min(before))
        os.kill(min(before), signal.SIGCONT)
        assert int(ask(server, "pid")) in before
    assert "replacing" not in server.log


def test_a_drain_beyond_its_limit_is_ended_with_the_stacks(start):
    server = start(pool(graceful_timeout=0.5)).wait_serving()
    with begin(server, "sleep 60"):
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    server.wait_for(r"draining ran .*, limit 500 ms \(graceful_timeout\); replacing the worker; it was at:")
    server.wait_for('faults.py", line .* in sleep')
    server.wait_for(r"ended: killed by prefork: graceful_timeout of 0.5 s; .* in flight: 127.0.0.1:")
    server.wait_all_gone()


@pytest.mark.parametrize("master_first", [True, False])
def test_the_whole_tree_stopped_for_longer_than_every_limit_loses_nobody(start, tmp_path, master_first):
    """One request is in flight, and one worker is booting; both go on where they were."""
    (tmp_path / "own.py").write_text("import time\ntime.sleep(0.4)\nfrom faults import act\n")
    limits = {"boot_timeout": 1, "request_timeout": 1, "stall_timeout": 1}
    server = start(pool("own:act", workers=2, **limits)).wait_serving()
    client = begin(server, "spin 0.6")
    os.kill(next(worker["pid"] for worker in server.workers() if not worker["current"]), signal.SIGKILL)
    wait_until(lambda: any(worker["state"] == "starting" for worker in server.workers()), "one boots")
    kept = server.pids()
    freeze(server, 1.5, master_first)
    assert read_to_end(client) == b"done"
    wait_until(lambda: server.pool()["ready"] == 2, "the worker goes on booting")
    assert server.pids() == kept, server.log
    assert "replacing" not in server.log


def test_the_master_alone_stopped_for_longer_than_every_limit_loses_nobody(start):
    limits = {"boot_timeout": 0.5, "request_timeout": 0.5, "stall_timeout": 0.5}
    server = start(pool("web:routes", kind="wsgi", workers=2, **limits)).wait_serving()
    before, address = server.pids(), server.address()
    freeze_one(server.process.pid)
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        assert int(body_of(fetch(address, "/sleep/0.2")).split()[0]) in before
    server.signal(signal.SIGCONT)
    assert server.pids() == before
    assert "replacing" not in server.log


def test_a_starved_machine_kills_nobody_who_works(start):
    limits = {"boot_timeout": 3, "request_timeout": 1, "stall_timeout": 1}
    server = start(pool(workers=2, **limits) + pool("web:app", name="web", kind="wsgi", workers=2, **limits))
    server.wait_serving()
    before = server.pids("work") | server.pids("web")
    hogs = [subprocess.Popen([sys.executable, "-c", SPINNING]) for _ in range(3 * (os.cpu_count() or 1))]
    try:
        until = time.monotonic() + 3
        while time.monotonic() < until:
            assert int(ask(server, "pid", "work")) in before
            assert int(body_of(server.get(pool="web")).split()[0]) in before
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    assert server.pids("work") | server.pids("web") == before
    assert "replacing" not in server.log


def freeze(server: Server, seconds: float, master_first: bool) -> None:
    """Stop all processes of a server for some time; then let them go on in a given order."""
    pids = sorted(session_of(server.process.pid), key=lambda pid: (pid == server.process.pid) != master_first)
    for pid in pids:
        freeze_one(pid)
    time.sleep(seconds)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def freeze_one(pid: int) -> None:
    """Stop a process and wait until it stands."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(
        lambda: (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "T",
        "it stands",
    )
