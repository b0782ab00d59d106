"""A master that is killed leaves nobody behind, and nothing that hinders a new start (promise 6, fault 5)."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from tests.faulty import ask, begin, pool
from tests.harness import Server, command_of, fetch, is_alive, read_to_end, session_of, wait_until
from tests.programs import wait_gone


def kill_master(server: Server) -> float:
    """Kill the master and return when that was."""
    server.signal(signal.SIGKILL)
    server.process.wait()
    return time.monotonic()


def is_refused(address: tuple[str, int] | str) -> bool:
    """Tell whether nobody listens at an address."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(5)
        try:
            client.connect(address)
        except (ConnectionRefusedError, FileNotFoundError):
            return True
    return False


@pytest.mark.parametrize("kind", ["handler", "wsgi"])
def test_idle_workers_of_a_killed_master_leave_at_once(start, inherited, kind):
    application = {"handler": "faults:act", "wsgi": "web:app"}[kind]
    server = start(pool(application, kind=kind, workers=3, graceful_timeout=30)).wait_serving()
    address = server.address()
    killed = kill_master(server)
    wait_until(lambda: inherited(server), "nobody is left")
    assert time.monotonic() - killed < 2
    assert is_refused(address)
    server.wait_all_gone()


@pytest.mark.parametrize("threads", [1, 3])
def test_two_seconds_after_the_masters_death_nobody_accepts_and_what_was_in_flight_is_finished(
    start, tmp_path, inherited, threads
):
    path = str(tmp_path / "work.sock")
    table = pool(workers=2, threads=threads, listen=["127.0.0.1:0", f"unix:{path}"], graceful_timeout=10)
    server = start(table).wait_serving()
    clients = [begin(server, "sleep 1.8") for _ in range(2 * threads)]
    address = server.address()
    killed = kill_master(server)
    wait_until(lambda: is_refused(address) and is_refused(path), "nobody accepts")
    assert time.monotonic() - killed < 2
    assert [read_to_end(client) for client in clients] == [b"slept"] * (2 * threads)
    wait_until(lambda: inherited(server), "nobody is left")
    server.wait_all_gone()


@pytest.mark.parametrize(("verb", "threads"), [("sleep 60", 1), ("spin 60", 1), ("regex", 1), ("regex", 2)])
def test_stuck_workers_of_a_killed_master_are_gone_after_graceful_timeout(start, inherited, verb, threads):
    server = start(pool(workers=2, threads=threads, graceful_timeout=0.5)).wait_serving()
    address = server.address()
    with begin(server, verb):
        killed = kill_master(server)
        wait_until(lambda: is_refused(address), "nobody accepts")
        assert time.monotonic() - killed < 2
        wait_until(lambda: inherited(server), "nobody is left")
        assert time.monotonic() - killed < 3
    server.wait_all_gone()


def test_a_stuck_application_of_a_killed_master_is_gone_after_graceful_timeout(start, inherited):
    server = start(pool("web:routes", kind="wsgi", workers=2, graceful_timeout=0.5)).wait_serving()
    with server.connect() as client:
        client.sendall(b"GET /regex HTTP/1.1\r\nHost: test\r\n\r\n")
        wait_until(lambda: any(worker["current"] for worker in server.workers()), "it is stuck")
        kill_master(server)
        wait_until(lambda: inherited(server), "nobody is left")
    server.wait_all_gone()


@pytest.mark.parametrize("preload", ["true", "false"])
def test_a_stuck_worker_of_a_killed_master_takes_along_all_that_it_has_started(start, preload):
    server = start(f"""
        [pool.web]
        listen = ["127.0.0.1:0"]
        wsgi = "children:app"
        graceful_timeout = 0.5
        preload = {preload}
        """).wait_serving()
    with server.connect() as client:
        client.sendall(b"GET /get_stuck HTTP/1.1\r\nHost: test\r\n\r\n")
        (line,) = server.wait_for(r"^\d+( \d+){4}$")
        *bound, free = map(int, line.split())
        kill_master(server)
        wait_gone(*bound)
    server.wait_all_gone()
    assert is_alive(free)
    os.kill(free, signal.SIGKILL)


def test_a_worker_that_is_still_booting_does_not_outlive_the_master(start, tmp_path, inherited):
    (tmp_path / "own.py").write_text("import time\nfrom faults import act\n")
    server = start(pool("own:act", workers=2)).wait_serving()
    (tmp_path / "own.py").write_text("import time\ntime.sleep(60)\n")
    server.signal(signal.SIGHUP)
    wait_until(lambda: any(worker["state"] == "starting" for worker in server.workers()), "a worker boots")
    kill_master(server)
    wait_until(lambda: inherited(server), "nobody is left")
    server.wait_all_gone()


def test_a_new_start_takes_over_at_once_what_a_killed_master_left(start, tmp_path):
    path = str(tmp_path / "work.sock")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    listen = [f"127.0.0.1:{port}", f"unix:{path}"]
    head = f'[master]\ncontrol = "{tmp_path}/control.sock"\npid_file = "server.pid"\n'
    config = head + pool("web:app", kind="wsgi", listen=listen, graceful_timeout=3)
    first = start(config).wait_serving()
    for _ in range(2):
        kill_master(first)
        second = start(config).wait_serving()
        pid = str(next(iter(second.pids()))).encode()
        assert pid in fetch(("127.0.0.1", port))
        assert pid in fetch(path)
        assert (tmp_path / "server.pid").read_text() == f"{second.process.pid}\n"
        first.wait_all_gone()
        first = second
    assert first.stop() == 0
    assert not any((tmp_path / name).exists() for name in ("work.sock", "control.sock", "server.pid"))


def test_a_new_start_succeeds_at_once_while_a_worker_of_the_killed_master_is_stuck(start, tmp_path):
    path = str(tmp_path / "work.sock")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = pool("web:routes", kind="wsgi", listen=[f"127.0.0.1:{port}", f"unix:{path}"], graceful_timeout=3)
    first = start(config).wait_serving()
    with first.connect() as client:
        client.sendall(b"GET /spin HTTP/1.1\r\nHost: test\r\n\r\n")
        wait_until(lambda: first.workers()[0]["current"], "the worker is stuck")
        kill_master(first)
        second = start(config).wait_serving()
    assert fetch(("127.0.0.1", port)).startswith(b"HTTP/1.1 200")
    assert fetch(path).startswith(b"HTTP/1.1 200")
    assert second.stop() == 0
    first.wait_all_gone()


def test_a_killed_guard_is_replaced_and_its_successor_does_its_work(start, inherited):
    server = start(pool(workers=2, graceful_timeout=0.5)).wait_serving()
    guard = wait_until(lambda: guard_of(server), "there is a guard")
    os.kill(guard, signal.SIGKILL)
    wait_until(lambda: guard_of(server) not in (None, guard), "there is another guard")
    victim = int(ask(server, "pid"))
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: server.pool()["ready"] == 2 and victim not in server.pids(), "a worker is born since")
    clients = [begin(server, "regex") for _ in range(2)]
    kill_master(server)
    wait_until(lambda: inherited(server), "nobody is left")
    for client in clients:
        client.close()
    server.wait_all_gone()


def test_a_living_masters_guard_does_nothing(start):
    server = start(pool(graceful_timeout=0.2)).wait_serving()
    client = begin(server, "sleep 1.2")
    guard = guard_of(server)
    os.kill(guard, signal.SIGTERM)
    assert read_to_end(client) == b"slept"
    assert guard_of(server) == guard
    assert server.stop() == 0


def guard_of(server: Server) -> int | None:
    """Return the pid of a server's guard, if it has one that is in its place."""
    found = [pid for pid in session_of(server.process.pid) if command_of(pid).startswith("prefork: guard")]
    return found[0] if len(found) == 1 else None
