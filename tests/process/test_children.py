"""What an application forks and starts is not the worker: signals, connections and ends of the two are not mixed up."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

import prefork
from tests.harness import Server, body_of, is_alive, read_to_end
from tests.programs import wait_gone

WEB = """
[pool.web]
listen = ["127.0.0.1:0"]
wsgi = "children:app"
graceful_timeout = 20
"""


def told(server: Server, verb: str, pool: str = "web") -> str:
    """Return what the application says of what it has done."""
    answer = server.get(f"/{verb}", pool)
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    size, _, rest = body_of(answer).partition(b"\r\n")
    return rest[: int(size, 16)].decode()


def pids(text: str) -> list[int]:
    return [int(pid) for pid in text.split()]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("threads", [1, 2])
def test_processes_of_a_request_end_by_term_and_the_worker_does_not(start, threads):
    server = start(f"{WEB}threads = {threads}\n").wait_serving()
    worker = told(server, "pid")
    for _ in range(5):
        assert told(server, "pool") == "[1, 2]"
        assert told(server, "terminate") == "-15"
    assert told(server, "pid") == worker
    assert server.stop() == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_a_copy_holds_no_socket_of_its_worker(start, threads):
    server = start(f"{WEB}threads = {threads}\n").wait_serving()
    with server.connect(), server.connect():
        assert told(server, "fork_and_look") == "[]"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_an_http_connection_ends_although_a_copy_lives(start, threads, version):
    server = start(f"{WEB}threads = {threads}\n").wait_serving()
    with server.connect() as client:
        client.sendall(f"GET /leave HTTP/{version}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = read_to_end(client).decode()
    (copy, program) = re.search(r"\b(\d+) (\d+)\b", answer.partition("\r\n\r\n")[2]).groups()
    assert is_alive(int(copy))
    os.kill(int(program), signal.SIGKILL)  # a program that was started is not ended by an orderly end
    assert server.stop() == 0
    wait_gone(int(copy))


@pytest.mark.parametrize("handler", ["handle", "handle_async"])
def test_a_handlers_connection_ends_although_a_copy_holds_it(start, handler):
    server = start(f'[pool.echo]\nlisten = ["127.0.0.1:0"]\nhandler = "children:{handler}"\n').wait_serving()
    with server.connect() as client:
        copy = int(read_to_end(client))
    assert is_alive(copy)
    assert server.stop() == 0
    wait_gone(copy)


def test_what_python_waits_for_at_its_end_is_waited_for(start, tmp_path):
    server = start(WEB).wait_serving()
    file = tmp_path / "ends"
    told(server, f"jobs/{str(file).encode().hex()}")
    assert server.stop() == 0
    *before, last = file.read_text().split()
    assert (sorted(before), last) == (["job", "thread"], "atexit")
    server.wait_for("web/0 .* ended: clean")


def test_a_kept_executor_of_processes_ends_with_its_worker(start):
    server = start(WEB).wait_serving()
    told(server, "keep_executor")
    server.run("reload")
    server.wait_for("web/0 gen=1 .* ended: clean")
    told(server, "keep_executor")
    assert server.stop() == 0
    server.wait_for("web/0 gen=2 .* ended: clean")


@pytest.mark.parametrize("preload", ["true", "false"])
def test_a_killed_worker_leaves_nobody_behind(start, preload):
    web = f"{WEB}preload = {preload}\n"
    server = start(web + web.replace("web", "other")).wait_serving()
    first, second = (pids(told(server, "leave", pool)) for pool in ("web", "other"))
    os.kill(parent_of(first[0]), signal.SIGKILL)
    wait_gone(*first)
    assert all(is_alive(pid) for pid in second)
    server.signal(signal.SIGINT)
    assert server.wait_exit() == 0
    wait_gone(*second)


def test_a_worker_that_prefork_kills_leaves_nobody_behind(start):
    server = start(f"{WEB}request_timeout = 0.5\n").wait_serving()
    with server.connect() as client:
        client.sendall(b"GET /hang HTTP/1.1\r\nHost: x\r\n\r\n")
        (line,) = server.wait_for(r"^\d+ \d+$")
        assert read_to_end(client) == b""
    wait_gone(*pids(line))
    server.wait_for("web/0 .* ended: killed by prefork: request_timeout")


@pytest.mark.parametrize("way", ["killed", "told to exit at once"])
def test_who_was_detached_goes_on(start, way):
    server = start(WEB).wait_serving()
    (worker,) = server.pids()
    bound, free = pids(told(server, "leave_all_but_one"))
    if way == "killed":
        os.kill(worker, signal.SIGKILL)
    else:
        server.signal(signal.SIGINT)
        server.wait_exit()
    wait_gone(bound)
    server.wait_for("web/0 .* ended: ")
    assert is_alive(free)
    os.kill(free, signal.SIGKILL)


def test_nobody_is_detached_outside_of_a_worker():
    with pytest.raises(RuntimeError):
        prefork.detach(os.getpid())
