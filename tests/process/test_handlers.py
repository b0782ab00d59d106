"""Socket handlers with the real program: whatever a handler does, its connection ends and its worker lives on."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from tests.faulty import ask, begin, pool, say
from tests.harness import body_of, children_of, read_to_end, wait_until


@pytest.fixture
def server(start):
    return start(pool()).wait_serving()


def test_a_function_is_given_the_connection_and_its_worker(start):
    server = start(pool(name="first") + pool(name="second")).wait_serving()
    pid = next(iter(server.pids("second")))
    assert ask(server, "who", "second") == f"second 0 1 {pid}"
    server.ask("reload")
    assert ask(server, "who", "second").split()[:3] == ["second", "0", "2"]


def test_a_class_of_the_socketserver_module_is_a_handler(start):
    server = start(pool("sockets:Shout")).wait_serving()
    assert ask(server, "hello") == "HELLO\n"


def test_a_handler_that_raises_is_logged_and_its_worker_lives_on(server):
    before = ask(server, "pid")
    assert ask(server, "raise") == "half"
    server.wait_for("handler failed, connection from 127.0.0.1:")
    server.wait_for("RuntimeError: the handler's own mistake")
    server.wait_for('faults.py", line .*, in raise_late')
    assert ask(server, "pid") == before


def test_a_connection_that_the_handler_leaves_open_is_closed(server):
    before = ask(server, "pid")
    assert ask(server, "keep") == "kept"
    assert ask(server, "pid") == before


@pytest.mark.parametrize(("verb", "answer"), [("close", "closed by the handler"), ("detach", "detached")])
def test_a_handler_may_close_or_detach_its_connection_itself(start, verb, answer):
    server = start(pool("sockets:command")).wait_serving()
    before = ask(server, "who")
    assert ask(server, verb) == answer
    assert ask(server, "who") == before
    assert "handler failed" not in server.log


def test_unread_data_at_the_close_does_not_destroy_the_answer(server):
    with server.connect() as client:
        client.sendall(b"unread 300000\n" + bytes(100_000))
        assert len(read_to_end(client)) == 300_000


@pytest.mark.parametrize("threads", [1, 3])
def test_a_handler_that_calls_sys_exit_ends_its_worker_and_hurts_nobody(start, threads):
    server = start(pool(workers=2, threads=threads)).wait_serving()
    before = server.pids()
    waiting = [begin(server, "sleep 0.5") for _ in range(threads)]
    assert ask(server, "exit 7") == "leaving"
    assert [read_to_end(client) for client in waiting] == [b"slept"] * threads
    server.wait_for("ended: exit code 7; ")
    wait_until(lambda: server.pool()["ready"] == 2, "the worker is replaced")
    assert len(server.pids() & before) == 1


def test_a_handler_that_calls_exit_leaves_its_worker_with_that_code(server):
    before = server.pids()
    assert ask(server, "leave 9") == ""
    server.wait_for("ended: exit code 9; .* in flight: 127.0.0.1:")
    assert int(ask(server, "pid")) not in before


def test_threads_handle_as_many_connections_at_once(start):
    server = start(pool(threads=3)).wait_serving()
    clients = [say(server, "meet 3") for _ in range(3)]
    assert [read_to_end(client) for client in clients] == [b"met"] * 3


def test_a_running_handler_notices_that_its_worker_drains(server):
    client = begin(server, "stop")
    server.signal(signal.SIGTERM)
    assert read_to_end(client) == b"stopping"
    assert server.wait_exit() == 0
    server.wait_all_gone()


def test_a_running_handler_notices_a_reload(start):
    server = start(pool(threads=2)).wait_serving()
    client = begin(server, "stop")
    server.ask("reload")
    assert read_to_end(client) == b"stopping"


def test_a_request_may_extend_its_time_and_no_more(start):
    server = start(pool(request_timeout=0.5)).wait_serving()
    before = server.pids()
    assert ask(server, "extend 10 1") == "began done"
    assert server.pids() == before
    assert ask(server, "extend 0.7 20") == "began "
    server.wait_for(r" ran .*, limit 700 ms \(request_timeout\); replacing the worker")
    assert int(ask(server, "pid")) not in before


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        ("faults:one_argument", "expected def handle\\(sock, address\\), found def one_argument\\(sock\\)"),
        ("faults:NUMBER", "expected def handle\\(sock, address\\), found 42"),
        ("faults:nothing", "module 'faults' has no 'nothing'"),
        ("nowhere:act", "No module named 'nowhere'"),
    ],
)
def test_what_is_no_handler_is_refused_at_the_start(start, handler, reason):
    server = start(pool(handler))
    assert server.wait_exit() == 4
    server.wait_all_gone()
    server.wait_for(rf"^error: \[pool.work\] .*{reason}")


def test_handlers_are_served_on_unix_sockets_too(start, tmp_path):
    path = tmp_path / "work.sock"
    server = start(pool(listen=[f"unix:{path}"])).wait_serving()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"pid\n")
        assert read_to_end(client).decode() == str(next(iter(server.pids())))


def test_the_first_signal_of_a_terminal_does_not_reach_the_handlers(server):
    before = ask(server, "pid")
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGWINCH):
        os.kill(int(before), number)
    assert ask(server, "pid") == before


@pytest.mark.parametrize("handler", ["fork", "fork_and_exit"])
def test_a_copy_of_the_worker_that_a_handler_forks_and_lets_return_ends(start, handler):
    server = start(pool(f"sockets:{handler}", workers=1)).wait_serving()
    (worker,) = server.pids()
    for _ in range(3):
        assert ask(server, "") == "forked"
    wait_until(
        lambda: not children_of(worker) or set(children_of(worker).values()) == {"Z"}, "no copy goes on"
    )
    assert server.pids() == {worker}
    assert server.stop() == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_a_copy_that_an_application_forks_and_lets_return_ends(start, threads):
    server = start(pool("web:routes", kind="wsgi", workers=1, threads=threads)).wait_serving()
    (worker,) = server.pids()
    for _ in range(3):
        answer = server.get("/fork")
        assert answer.count(b"HTTP/1.1 200") == 1
        assert body_of(answer).split()[0] == str(worker).encode()
    wait_until(
        lambda: not children_of(worker) or set(children_of(worker).values()) == {"Z"}, "no copy goes on"
    )
    assert server.pids() == {worker}
    assert server.stop() == 0
