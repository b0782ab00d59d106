"""Stops: an answer or a refusal, never a reset or a hang (promise 5; fault 2)."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

import pytest

from tests.clients import Load, read_answer
from tests.harness import RUN, Server, read_to_end, wait_until

WEB = """
[pool.web]
listen = ["{listen}"]
wsgi = "web:routes"
workers = {workers}
"""


# A server without any rights, as in a container or under systemd, whoever runs the tests.
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []


def config(workers: int = 1, listen: str = "127.0.0.1:0", more: str = "") -> str:
    return WEB.format(workers=workers, listen=listen) + more


def ask(server: Server, path: str) -> socket.socket:
    """Send a request and return the connection, with its answer still to come."""
    client = server.connect()
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    return client


def finish(client: socket.socket) -> tuple[int, bool]:
    """Return the answer's status and whether the connection was to stay open; close it, as a client does."""
    with client:
        status, _, reusable = read_answer(client)
    return status, reusable


def assert_answered_until_told_to_close(client: socket.socket) -> None:
    """See that the request under way, and further ones, are answered until an answer ends the connection."""
    with client:
        status, _, reusable = read_answer(client)
        while reusable:
            assert status == 200
            client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            status, _, reusable = read_answer(client)
        assert status == 200
        assert client.recv(1) == b""


def wait_busy(server: Server, requests: int = 1) -> None:
    wait_until(
        lambda: sum(len(worker["current"]) for worker in server.workers()) >= requests,
        "requests are under way",
    )


def assert_ends_well(server: Server) -> None:
    assert server.wait_exit() == 0, server.log
    server.wait_all_gone()
    assert "Traceback" not in "\n".join(server.everything())


@pytest.mark.parametrize("where", ["127.0.0.1:0", "[::1]:0", "unix:web.sock"])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_stop_under_load_answers_or_refuses_every_request(start, workers, where):
    server = start(config(workers, where)).wait_serving()
    address = str(server.folder / "web.sock") if where.startswith("unix") else server.address()
    with Load(address, pause=0.005) as load:
        load.wait_answered(100)
        server.signal(signal.SIGTERM)
        assert_ends_well(server)
    assert set(load.lost) <= {"refused"}, (load.lost, load.examples)


@pytest.mark.parametrize("prefix", [[], WITHOUT_RIGHTS], ids=["as we are", "without rights"])
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_socket_handlers_answer_or_refuse_everybody_during_a_stop(start, prefix, host):
    server = start(
        f'[pool.own]\nlisten = ["{host}:0"]\nhandler = "sockets:pid"\nworkers = 2\n',
        command=[*prefix, *RUN],
    ).wait_serving()
    address, outcomes, over = server.address(), [], threading.Event()

    def client() -> None:
        while not over.is_set():
            try:
                with socket.create_connection(address, 20) as connection:
                    outcomes.append("answered" if read_to_end(connection) else "empty")
            except ConnectionRefusedError:
                outcomes.append("refused")
                return
            except OSError as error:
                outcomes.append(repr(error))

    threads = [threading.Thread(target=client) for _ in range(6)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(outcomes) > 100, "clients are answered")
    server.signal(signal.SIGTERM)
    for thread in threads:
        thread.join(20)
    over.set()
    assert_ends_well(server)
    assert set(outcomes) == {"answered", "refused"}


def test_slow_requests_across_a_stop_are_answered_and_later_ones_refused(start):
    server = start(config(2, more="threads = 4\n")).wait_serving()
    address = server.address()
    clients = [ask(server, f"/sleep/{0.2 + number / 5}") for number in range(6)]
    wait_busy(server, 6)
    server.signal(signal.SIGTERM)
    answers = [finish(client) for client in clients]
    assert [status for status, _ in answers] == [200] * 6
    assert not answers[-1][1], "the last one knows of the stop"
    assert_ends_well(server)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 5)


def test_clients_who_queue_behind_busy_workers_are_answered(start):
    server = start(config(1)).wait_serving()
    busy = ask(server, "/sleep/0.5")
    wait_busy(server)
    queued = [ask(server, "/sleep/0.01") for _ in range(30)]
    server.signal(signal.SIGTERM)
    for client in [busy, *queued]:
        assert finish(client)[0] == 200
    assert_ends_well(server)


@pytest.mark.parametrize("prefix", [[], WITHOUT_RIGHTS], ids=["as we are", "without rights"])
def test_who_has_connected_and_said_nothing_yet_is_answered_too(start, prefix):
    server = start(config(2), command=[*prefix, *RUN]).wait_serving()
    slow, *others = [server.connect() for _ in range(5)]
    server.signal(signal.SIGTERM)
    wait_until(
        lambda: {worker["state"] for worker in server.workers()} == {"draining"}, "all workers are leaving"
    )
    for client in others:
        client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    for client in others:
        assert_answered_until_told_to_close(client)  # a worker may answer before it has heard the master
    with slow:
        assert read_to_end(slow) == b""
    assert_ends_well(server)


def test_requests_on_a_kept_alive_connection_during_a_drain_are_answered_until_told_to_close(start):
    server = start(config(1)).wait_serving()
    kept = ask(server, "/")
    assert read_answer(kept)[2]
    server.signal(signal.SIGTERM)
    server.wait_for("stopping: ")
    kept.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    assert_answered_until_told_to_close(kept)
    assert_ends_well(server)


@pytest.fixture
def silent():
    """Connections that send half a request, or nothing at all."""
    clients: list[socket.socket] = []

    def open_many(server: Server, number: int) -> list[socket.socket]:
        address = server.address()
        for index in range(number):
            clients.append(socket.create_connection(address, 10))
            if index % 2:
                clients[-1].sendall(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nhalf")
        wait_until(
            lambda: sum(worker["connections"] for worker in server.workers()) == number, "all are accepted"
        )
        return clients

    yield open_many
    for client in clients:
        client.close()


def test_half_open_connections_do_not_delay_a_quick_stop(start, silent):
    server = start(config(2)).wait_serving()
    silent(server, 500)
    began = time.monotonic()
    server.signal(signal.SIGINT)
    assert_ends_well(server)
    assert time.monotonic() - began < 5


def test_half_open_connections_delay_a_graceful_stop_no_longer_than_its_deadline(start, silent):
    server = start(config(2, more="graceful_timeout = 1\nread_timeout = 60\n")).wait_serving()
    silent(server, 500)
    began = time.monotonic()
    server.signal(signal.SIGTERM)
    assert_ends_well(server)
    assert time.monotonic() - began < 6


@pytest.mark.parametrize(
    "second", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT], ids=lambda number: number.name
)
def test_the_second_signal_makes_a_graceful_stop_a_quick_one(start, second):
    server = start(config(1)).wait_serving()
    client = ask(server, "/sleep/60")
    wait_busy(server)
    server.signal(signal.SIGTERM)
    server.wait_for("stopping: requests in flight are finished")
    server.signal(second)
    assert_ends_well(server)
    client.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=lambda number: number.name)
def test_a_quick_stop_waits_for_no_request(start, number):
    server = start(config(2)).wait_serving()
    client = ask(server, "/sleep/60")
    wait_busy(server)
    server.signal(number)
    assert_ends_well(server)
    client.close()


def test_a_stop_before_the_first_worker_is_ready_ends_well(start):
    server = start(config(1).replace("web:routes", "boots:routes"), env={"BOOT": "hang"})
    server.wait_for("rolling out generation 1")
    server.signal(signal.SIGTERM)
    assert_ends_well(server)


def test_drain_delay_keeps_accepting_while_the_status_says_stopping(start):
    server = start(config(1, more="drain_delay = 0.7\n")).wait_serving()
    with Load(server.address()) as load:
        load.wait_answered(20)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        server.wait_for("stopping: ")
        assert server.status()["state"] == "stopping"
        assert server.get().startswith(b"HTTP/1.1 200")
        load.wait_answered(20)
        assert_ends_well(server)
        assert time.monotonic() - began > 0.7
    assert set(load.lost) <= {"refused"}, load.examples


def test_a_request_beyond_graceful_timeout_is_cut_off_with_its_stack_in_the_log(start):
    server = start(config(1, more="graceful_timeout = 0.5\n")).wait_serving()
    client = ask(server, "/sleep/60")
    wait_busy(server)
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert any("draining ran" in line and "(graceful_timeout)" in line for line in server.everything())
    assert "web.py" in server.log
    client.close()


def test_the_command_waits_for_the_end_and_says_so(start):
    server = start(config(1)).wait_serving()
    client = ask(server, "/sleep/1")
    wait_busy(server)
    answers: list[tuple[int, bool]] = []
    reader = threading.Thread(target=lambda: answers.append(finish(client)))
    reader.start()
    stopped = server.run("stop")
    reader.join()
    assert (stopped.returncode, stopped.stdout) == (0, "")
    assert stopped.stderr.splitlines()[-1] == "stopped"
    assert server.wait_exit(0) == 0
    assert answers[0][0] == 200


def test_the_command_with_now_does_not_wait_for_requests(start):
    server = start(config(1)).wait_serving()
    client = ask(server, "/sleep/60")
    wait_busy(server)
    assert server.run("stop", "--now").returncode == 0
    assert_ends_well(server)
    client.close()


def test_a_stop_sent_to_the_whole_group_ends_as_well_as_one_to_the_master(start):
    """As systemd, docker and timeout(1) do; a terminal does so with INT."""
    server = start(config(2)).wait_serving()
    client = ask(server, "/sleep/0.3")
    wait_busy(server)
    os.killpg(server.process.pid, signal.SIGTERM)
    assert finish(client)[0] == 200
    assert_ends_well(server)
    assert not [line for line in server.lines if " error web/" in line]
