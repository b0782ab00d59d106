"""What an application does about signals keeps its worker neither from draining nor from ending in order."""

from __future__ import annotations

import os
import signal

import pytest

from tests.harness import Server, body_of, read_to_end, wait_until

WEB = '[pool.web]\nlisten = ["127.0.0.1:0"]\nwsgi = "signalled:app"\n'


def own(handler: str) -> str:
    return f'[pool.web]\nlisten = ["127.0.0.1:0"]\nhandler = "signalled:{handler}"\n'


def say(server: Server, line: str) -> bytes:
    with server.connect() as client:
        client.sendall(line.encode() + b"\n")
        return read_to_end(client)


@pytest.mark.parametrize("way", ["asyncio", "asyncio-usr1"])
def test_term_is_a_drain_after_asyncio_had_a_handler(start, way):
    server = start(WEB).wait_serving()
    worker = int(body_of(server.get(f"/{way}")))
    with server.connect() as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        assert server.process.stdout is not None
        assert server.process.stdout.readline() == b"begun\n"
        os.kill(worker, signal.SIGTERM)
        assert body_of(read_to_end(client)) == str(worker).encode()
    server.wait_for(f"pid={worker} ended: it left by itself, exit code 0|pid={worker} ended: clean")
    assert server.stop() == 0


def test_a_socket_handlers_worker_drains_as_well_after_asyncio_had_a_handler(start):
    server = start(own("handle")).wait_serving()
    worker = int(say(server, "asyncio"))
    say(server, "")  # TERM is prefork's again before the worker waits for another client
    os.kill(worker, signal.SIGTERM)
    server.wait_for(f"pid={worker} ended: it left by itself, exit code 0|pid={worker} ended: clean")
    assert server.stop() == 0


HOOKS = "import signal, signalled\ndef ready(worker): signal.signal(signal.SIGALRM, signalled.late)\n"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("pool", [WEB, own("handle")], ids=["wsgi", "handler"])
def test_a_handler_that_raises_between_two_requests_ends_its_worker_in_order(start, tmp_path, pool, threads):
    (tmp_path / "raising.py").write_text(HOOKS)
    server = start(f'[hooks]\nmodule = "raising"\n{pool}threads = {threads}\n').wait_serving()
    (worker,) = server.pids()
    tasks = 2 if threads == 1 else 2 + threads  # with the one that hears the master
    wait_until(lambda: len(os.listdir(f"/proc/{worker}/task")) == tasks, "all threads are there")
    for _ in range(2 * threads):
        server.get()
    os.kill(worker, signal.SIGALRM)
    server.wait_for(f"pid={worker} a signal handler of the application failed; the worker is replaced")
    server.wait_for("signalled.OutOfTimeError")
    server.wait_for(f"pid={worker} ended: it left by itself, exit code 0|pid={worker} ended: clean")
    server.wait_for(" ready in ", 2)
    assert server.stop() == 0


def test_a_handler_that_raises_in_an_asynchronous_worker_is_logged(start, tmp_path):
    (tmp_path / "raising.py").write_text(HOOKS)
    server = start(f'[hooks]\nmodule = "raising"\n{own("handle_async")}').wait_serving()
    (worker,) = server.pids()
    os.kill(worker, signal.SIGALRM)
    server.wait_for("signalled.OutOfTimeError")
    assert say(server, "pid") == str(worker).encode()
    assert server.stop() == 0


@pytest.mark.parametrize("stall_timeout", [0, 10])
@pytest.mark.parametrize("way", ["add", "remove"])
def test_term_is_a_drain_whatever_a_coroutine_does_about_it_in_the_workers_loop(start, way, stall_timeout):
    server = start(f"{own('handle_async')}stall_timeout = {stall_timeout}\n").wait_serving()
    worker = int(say(server, way))
    with server.connect() as client:
        wait_until(lambda: server.workers()[0]["connections"], "the worker has accepted")
        os.kill(worker, signal.SIGTERM)
        server.wait_for(rf"web/0 gen=1 pid=(?!{worker} ).* ready in ")
        client.sendall(b"pid\n")
        assert read_to_end(client) == str(worker).encode()
    server.wait_for(f"pid={worker} ended: it left by itself, exit code 0|pid={worker} ended: clean")
    if way == "add":
        server.wait_for("^heard$")
    assert server.stop() == 0
