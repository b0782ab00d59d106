"""Faulty handlers with the real program: only the worker that has the fault is lost, and it is replaced (fault 6)."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from tests.faulty import ask, begin, pool, say, wait_replaced
from tests.harness import is_alive, read_to_end, wait_until

FAILS_AT_IMPORT = """
import pathlib
tries = pathlib.Path(__file__).with_name("tries")
tries.open("a").write("x")
if len(tries.read_text()) <= {times}:
    raise SystemExit("not yet")
from faults import act
"""
SLEEPS_AT_IMPORT = "import time\ndef wait():\n    time.sleep(1000)\nwait()\n"


def test_an_application_that_exits_at_import_ends_a_first_start(start, tmp_path):
    (tmp_path / "own.py").write_text("import sys\nsys.exit('no settings')\n")
    server = start(pool("own:act", workers=3) + pool(name="sound"))
    assert server.wait_exit() == 4
    server.wait_all_gone()
    assert len([line for line in server.lines if line.startswith("error: ")]) == 1
    server.wait_for(r"^error: \[pool.work\] SystemExit: no settings")
    assert server.log.count('own.py", line 2') == 1


def test_an_import_that_fails_a_few_times_is_tried_again_after_it_has_served(start, tmp_path):
    (tmp_path / "own.py").write_text(FAILS_AT_IMPORT.format(times=0))
    server = start(pool("own:act")).wait_serving()
    (tmp_path / "tries").write_text("")
    (tmp_path / "own.py").write_text(FAILS_AT_IMPORT.format(times=2))
    os.kill(next(iter(server.pids())), signal.SIGKILL)
    server.wait_for("did not boot: SystemExit: not yet", 2)
    wait_until(lambda: server.pool()["degraded"] is None, "the third try succeeds")
    assert (tmp_path / "tries").read_text() == "xxx"
    assert int(ask(server, "pid")) in server.pids()


def test_an_import_that_never_ends_stops_a_first_start_at_the_boot_clock(start, tmp_path):
    (tmp_path / "own.py").write_text(SLEEPS_AT_IMPORT)
    server = start(pool("own:act", boot_timeout=0.5))
    assert server.wait_exit() == 4
    server.wait_all_gone()
    server.wait_for(r"starting ran .*, limit 500 ms \(boot_timeout\); replacing the worker; it was at:")
    server.wait_for('own.py", line 3 in wait')
    server.wait_for(r"^error: \[pool.work\] not ready after 0.5 s")


@pytest.mark.parametrize("threads", [1, 2])
def test_a_handler_that_closes_all_descriptors_costs_its_worker_only(start, threads):
    server = start(pool(threads=threads)).wait_serving()
    before = server.pids()
    with say(server, "close_all"):
        wait_replaced(server, before)
    assert int(ask(server, "pid")) in server.pids()


def test_a_handler_that_closes_the_channel_and_is_stuck_does_not_close_the_door_for_others(start):
    server = start(pool(workers=2)).wait_serving()
    with begin(server, "close_channel 1.2") as client:
        server.ask("reload")
        assert read_to_end(client) == b"slept"
    assert int(ask(server, "pid")) in server.pids()


def test_a_handler_that_writes_rubbish_to_the_channel_costs_its_worker_only(start):
    server = start(pool(workers=2)).wait_serving()
    before = server.pids()
    assert ask(server, "rubbish") == "written"
    server.wait_for("it sent an invalid message: expected a message, found b'rubbish'")
    wait_until(lambda: server.pool()["ready"] == 2 and len(server.pids() & before) == 1, "it is replaced")


def test_a_worker_that_blocks_term_drains_all_the_same(start):
    server = start(pool(workers=2)).wait_serving()
    pid = int(ask(server, "mask"))
    os.kill(pid, signal.SIGTERM)
    server.wait_for(rf"pid={pid} ended: clean|pid={pid} ended: it left by itself")
    wait_until(lambda: server.pool()["ready"] == 2, "it is replaced")
    ask(server, "mask")
    assert server.stop() == 0


@pytest.mark.parametrize("verb", ["fork", "program"])
def test_a_grandchild_keeps_neither_the_server_nor_the_port(start, verb):
    server = start(pool()).wait_serving()
    with say(server, verb) as client:
        grandchild = int(client.recv(100))
        address = server.address()
        server.ask("reload")
        assert int(ask(server, "pid")) in server.pids()
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
        assert is_alive(grandchild)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address).close()
        os.kill(grandchild, signal.SIGKILL)
    server.wait_all_gone()


def test_a_crash_is_named_and_shows_the_python_line(start):
    server = start(pool()).wait_serving()
    assert ask(server, "crash") == ""
    server.wait_for(
        r"ended: crashed: SIGSEGV; lived .*, served 0 requests, in flight: 127.0.0.1:\d+ \(.*; it was at:"
    )
    server.wait_for("Fatal Python error: Segmentation fault")
    server.wait_for('faults.py", line .* in crash')
    assert int(ask(server, "pid")) in server.pids()


def test_a_handler_that_may_have_no_more_memory_lives_on(start):
    server = start(pool()).wait_serving()
    before = server.pids()
    assert ask(server, "allocate") == "tried"
    server.wait_for("^ *MemoryError")
    assert int(ask(server, "pid")) in before


def test_a_handler_that_holds_the_interpreter_in_c_is_replaced_at_its_clock(start):
    server = start(pool(request_timeout=0.5)).wait_serving()
    before = server.pids()
    with begin(server, "regex"):
        server.wait_for('faults.py", line .* in regex')
        server.wait_for("ended: killed by prefork: request_timeout of 0.5 s")
    assert int(ask(server, "pid")) not in before


def test_an_application_that_holds_the_interpreter_in_c_is_replaced_at_its_clock(start):
    limits = {"threads": 2, "request_timeout": 0.5, "graceful_timeout": 0.5}
    server = start(pool("web:routes", kind="wsgi", **limits)).wait_serving()
    before = server.pids()
    with server.connect() as client:
        client.sendall(b"GET /regex HTTP/1.1\r\nHost: test\r\n\r\n")
        server.wait_for(r"GET /regex ran .*, limit 500 ms \(request_timeout\)")
        server.wait_for('web.py", line .* in hold_the_interpreter')
        server.wait_for("ended: killed by prefork: graceful_timeout of 0.5 s; .* in flight: GET /regex")
    wait_replaced(server, before)
