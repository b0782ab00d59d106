"""The control server over real Unix sockets, its selector turned by hand."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import selectors
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from prefork.control.messages import MAX_REQUEST
from prefork.control.server import (
    MAX_CLIENTS,
    MAX_IDLE,
    MAX_UNREAD,
    SHORT_IDLE,
    ControlServer,
    Reply,
    _listen,
)
from prefork.errors import BootError, ConfigError, ListenError, Problem
from tests.unit.room import Room


@contextmanager
def connected(room: Room) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(room.path)
        room.settle()
        yield client


def ask(room: Room, client: socket.socket, **request: Any) -> None:
    client.sendall(json.dumps(request).encode() + b"\n")
    room.settle()


def heard(client: socket.socket) -> list[Any]:
    """All lines that were sent so far; the last is "end" if the server closed."""
    client.setblocking(False)
    data, end = b"", []
    try:
        while chunk := client.recv(65536):
            data += chunk
        end = ["end"]
    except BlockingIOError:
        pass
    return [json.loads(line) for line in data.splitlines()] + end


def open_server(path: str) -> ControlServer:
    return ControlServer(path, lambda *_: None, owner_uid=0, later=lambda *_: None)


def refuse(room: Room) -> ListenError:
    with pytest.raises(ListenError) as caught:
        open_server(room.path)
    return caught.value


def test_progress_and_result_are_streamed_under_the_requests_id(room: Room) -> None:
    with connected(room) as client:
        ask(room, client, id=5, command="reload")
        request, reply = room.asked[0]
        assert (request.command, heard(client)) == ("reload", [])
        reply.progress("half")
        assert heard(client) == [{"id": 5, "progress": "half"}]
        reply.result({"generation": 2})
        assert heard(client) == [{"id": 5, "result": {"generation": 2}}]


def test_several_requests_of_one_connection_are_answered_in_any_order(room: Room) -> None:
    with connected(room) as client:
        ask(room, client, id=1, command="reload")
        ask(room, client, id=2, command="status")
        room.asked[1][1].result({"n": 2})
        room.asked[0][1].result({"n": 1})
        assert [line["id"] for line in heard(client)] == [2, 1]


def test_a_request_in_pieces_and_two_in_one_piece_are_understood(room: Room) -> None:
    with connected(room) as client:
        client.sendall(b'{"id": 1, "comm')
        room.settle()
        client.sendall(b'and": "status"}\n\n{"id": 2, "command": "status"}\n')
        room.settle()
    assert [request.id for request, _ in room.asked] == [1, 2]


def test_rubbish_is_answered_and_the_connection_goes_on(room: Room) -> None:
    with connected(room) as client:
        client.sendall(b"rubbish\n")
        ask(room, client, id=3, command="fly")
        first, second = heard(client)
        assert first["id"] is None
        assert second["id"] == 3
        assert "unknown command 'fly'" in second["error"]["message"]
        ask(room, client, id=4, command="status")
        assert room.asked[0][0].id == 4


@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_a_line_beyond_the_limit_is_refused_and_the_connection_closed(room: Room, ending: bytes) -> None:
    with connected(room) as client:
        client.sendall(b"x" * (MAX_REQUEST + 1) + ending)
        room.settle()
        refusal, end = heard(client)
        assert "at most 65536 bytes" in refusal["error"]["message"]
        assert end == "end"
    assert room.watched() == 0


def test_the_id_of_an_unanswered_request_cannot_be_used_again(room: Room) -> None:
    with connected(room) as client:
        ask(room, client, id=1, command="reload")
        ask(room, client, id=1, command="status")
        assert "id 1 is not answered yet" in heard(client)[0]["error"]["message"]
        assert len(room.asked) == 1


def test_an_answer_ends_once(room: Room) -> None:
    with connected(room) as client:
        ask(room, client, id=1, command="stop")
        reply = room.asked[0][1]
        reply.error("no", "perhaps later")
        reply.result({})
        reply.progress("more")
        assert reply.gone
        assert [list(line) for line in heard(client)] == [["id", "error"]]


def test_a_handler_that_raises_costs_its_client_an_error_and_nobody_else_anything(room: Room) -> None:
    def fail(_request: object, _reply: object) -> None:
        raise KeyError("a bug")

    room.answer = fail
    with connected(room) as client:
        ask(room, client, id=1, command="status")
        error = heard(client)[0]["error"]
    assert error["message"] == "the server failed in the command status"
    assert "KeyError: 'a bug'" in error["traceback"]


def test_errors_for_people_arrive_with_hint_and_traceback(room: Room) -> None:
    def fail(_request: object, _reply: object) -> None:
        raise BootError("web: does not load", "repair it", "Traceback …")

    room.answer = fail
    with connected(room) as client:
        ask(room, client, id=1, command="reload")
        assert heard(client)[0]["error"] == {
            "message": "web: does not load",
            "hint": "repair it",
            "traceback": "Traceback …",
            "again": False,
        }


def test_all_problems_of_a_configuration_arrive_in_one_error(room: Room) -> None:
    with connected(room) as client:
        ask(room, client, id=1, command="reload")
        room.asked[0][1].fail(
            ConfigError([Problem("a.toml:1: bad", "write good"), Problem("a.toml:2: worse")])
        )
        assert heard(client)[0]["error"]["message"] == "a.toml:1: bad\nhint: write good\na.toml:2: worse"


def test_a_client_that_shut_its_half_still_gets_its_answer(room: Room) -> None:
    with connected(room) as client:
        client.sendall(b'{"id": 1, "command": "reload"}')  # no newline either: printf … | nc -U
        client.shutdown(socket.SHUT_WR)
        room.settle()
        assert room.watched() == 0, "an end of file that is watched makes the loop spin"
        room.asked[0][1].progress("half")
        room.asked[0][1].result({})
        assert heard(client) == [{"id": 1, "progress": "half"}, {"id": 1, "result": {}}, "end"]


def test_answering_a_client_that_has_left_does_nothing(room: Room) -> None:
    with connected(room) as client:
        ask(room, client, id=1, command="reload")
    room.settle()
    reply = room.asked[0][1]
    reply.progress("half")
    assert reply.gone
    reply.result({})
    room.settle()
    assert room.watched() == 0


def test_a_client_that_does_not_read_is_cut_and_never_blocks(room: Room) -> None:
    with connected(room) as client:
        ask(room, client, id=1, command="reload")
        reply = room.asked[0][1]
        lines = 0
        while not reply.gone:
            reply.progress("x" * 10_000)
            lines += 1
            assert lines * 10_000 < 3 * MAX_UNREAD, "nobody cut it"
        assert lines * 10_000 > MAX_UNREAD
    assert room.watched() == 0


def test_one_answer_larger_than_the_limit_arrives_whole(room: Room) -> None:
    with connected(room) as client:
        ask(room, client, id=1, command="stacks")
        room.asked[0][1].result({"workers": "x" * (2 * MAX_UNREAD)})
        received = b""
        while not received.endswith(b"\n"):
            received += client.recv(1 << 20)
            room.settle()
        assert len(json.loads(received)["result"]["workers"]) == 2 * MAX_UNREAD


def test_more_clients_than_allowed_are_told_so(room: Room) -> None:
    clients = [socket.socket(socket.AF_UNIX) for _ in range(MAX_CLIENTS + 1)]
    try:
        for client in clients:
            client.connect(room.path)
            room.settle()
        assert heard(clients[-1])[0]["error"]["message"] == "64 clients are connected already"
        assert heard(clients[0]) == []
        clients.pop(0).close()
        room.settle()
        with connected(room) as late:
            ask(room, late, id=1, command="status")
        assert len(room.asked) == 1
    finally:
        for client in clients:
            client.close()


@contextmanager
def crowd(room: Room) -> Iterator[list[socket.socket]]:
    """As many clients as one user may have, the second of them in the middle of a request."""
    clients = [socket.socket(socket.AF_UNIX) for _ in range(MAX_CLIENTS)]
    try:
        for client in clients:
            client.connect(room.path)
            room.settle()
            room.wait(0.001)
        clients[1].sendall(b'{"id": 1,')
        room.settle()
        yield clients
    finally:
        for client in clients:
            client.close()


def test_the_client_that_was_silent_the_longest_gives_way(room: Room) -> None:
    with crowd(room) as clients:
        room.wait(SHORT_IDLE)
        with connected(room) as late, connected(room) as later:
            ask(room, late, id=1, command="status")
            ask(room, later, id=1, command="status")
            assert len(room.asked) == 2
        assert [heard(client) for client in clients[:3]] == [["end"], ["end"], []]


def test_a_client_that_waits_for_its_answer_does_not_give_way(room: Room) -> None:
    with crowd(room) as clients:
        ask(room, clients[0], id=5, command="reload")
        room.wait(2 * MAX_IDLE)
        room.asked[0][1].result({})
        assert heard(clients[0]) == [{"id": 5, "result": {}}]


def test_a_client_that_says_nothing_is_told_and_closed(room: Room) -> None:
    with connected(room) as silent, connected(room) as asking:
        room.wait(MAX_IDLE - 1)
        ask(room, asking, id=1, command="status")
        room.asked[0][1].result({})
        room.wait(1)
        assert heard(silent)[0]["error"]["message"] == "no request within 30 s"
        assert heard(asking) == [{"id": 1, "result": {}}]
        room.wait(MAX_IDLE)
        assert heard(asking)[-1] == "end"
    assert room.watched() == 0


def test_a_socket_that_was_deleted_is_brought_back(room: Room) -> None:
    assert not room.server.restore()
    with connected(room) as before:
        os.unlink(room.path)
        assert room.server.restore()
        with connected(room) as client:
            ask(room, client, id=1, command="status")
        ask(room, before, id=2, command="status")
    assert [request.id for request, _ in room.asked] == [1, 2]


def test_a_socket_behind_a_switched_link_is_bound_by_its_path_again(folder: str) -> None:
    for name in ("one", "two"):
        os.mkdir(f"{folder}/{name}")
    os.symlink("one", f"{folder}/current")
    room = Room(f"{folder}/current/control.sock")
    try:
        assert room.server.bound == f"{os.path.realpath(folder)}/one/control.sock"
        os.unlink(f"{folder}/current")
        os.symlink("two", f"{folder}/current")
        assert room.server.restore()
        with connected(room) as client:
            ask(room, client, id=1, command="status")
        assert len(room.asked) == 1
        assert os.listdir(f"{folder}/one") == []
    finally:
        room.close()
    assert os.listdir(f"{folder}/two") == []


def test_a_path_that_another_server_has_taken_is_left_to_it(folder: str) -> None:
    room = Room(f"{folder}/control.sock")
    os.unlink(room.path)
    other = open_server(room.path)
    with pytest.raises(ListenError, match="a running server listens there"):
        room.server.restore()
    room.close()
    assert os.path.exists(room.path)
    other.close()


def test_a_folder_that_somebody_keeps_locked_is_an_error_not_a_hang(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    with pytest.raises(ListenError, match="another process has locked this folder"):
        _listen(f"{folder}/control.sock", patience=0.0)
    os.close(descriptor)


def test_running_out_of_descriptors_closes_the_client_and_does_not_spin(room: Room) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(room.path)
        try:
            lowest = os.dup(0)
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            room.settle()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert heard(client) == ["end"]


def test_another_user_is_refused(room: Room) -> None:
    if os.geteuid() == 0:
        os.chmod(os.path.dirname(room.path), 0o755)
        os.chmod(room.path, 0o666)
        os.seteuid(65534)
        try:
            client = socket.socket(socket.AF_UNIX)
            client.connect(room.path)
        finally:
            os.seteuid(0)
        stranger, expected = 65534, 0
    else:
        room.server._owner_uid = expected = os.geteuid() + 1
        client = socket.socket(socket.AF_UNIX)
        client.connect(room.path)
        stranger = os.geteuid()
    with client:
        room.settle()
        refusal, end = heard(client)
    assert refusal["error"]["message"] == (
        f"user {stranger} may not control this server, expected user {expected} or root"
    )
    assert end == "end"


def test_the_socket_is_private_and_its_missing_folder_too(folder: str) -> None:
    before = os.umask(0)
    try:
        room = Room(f"{folder}/a/b/control.sock")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(room.path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(f"{folder}/a/b").st_mode) == 0o700
    assert stat.S_IMODE(os.stat(f"{folder}/a").st_mode) == 0o700
    room.close()


def test_a_living_servers_path_is_never_taken(room: Room) -> None:
    error = refuse(room)
    assert error.message == f"cannot listen on the control socket {room.path}: a running server listens there"
    assert error.exit_code == 3
    room.settle()
    with connected(room) as client:
        ask(room, client, id=1, command="status")
    assert len(room.asked) == 1


def test_a_server_too_busy_to_accept_counts_as_living(folder: str) -> None:
    path = f"{folder}/busy.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(path)
        listener.listen(0)
        waiting.connect(path)
        with pytest.raises(ListenError, match="a running server listens there"):
            open_server(path)


def test_a_dead_servers_path_is_replaced(folder: str) -> None:
    path = f"{folder}/control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    room = Room(path)
    with connected(room) as client:
        ask(room, client, id=1, command="status")
    assert len(room.asked) == 1
    room.close()


def test_of_many_servers_that_find_a_dead_one_exactly_one_takes_its_path(folder: str) -> None:
    path = f"{folder}/control.sock"
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        together = threading.Barrier(8)
        outcomes: list[ControlServer | ListenError] = []

        def start(together: threading.Barrier = together, outcomes: list[Any] = outcomes) -> None:
            together.wait()
            try:
                outcomes.append(open_server(path))
            except ListenError as error:
                outcomes.append(error)

        threads = [threading.Thread(target=start) for _ in range(8)]
        before = os.umask(0)  # it belongs to the process: threads may leave another one's behind
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.umask(before)
        winners = [outcome for outcome in outcomes if isinstance(outcome, ControlServer)]
        assert (len(winners), len(outcomes)) == (1, 8)
        winners[0].close()


@pytest.mark.parametrize("make", [lambda path: open(path, "w").close(), os.mkdir])
def test_what_is_no_socket_is_left_alone(folder: str, make: Any) -> None:
    path = f"{folder}/notes.txt"
    make(path)
    with pytest.raises(ListenError, match="expected nothing or a socket there"):
        open_server(path)
    assert os.path.exists(path)


def test_a_path_too_long_is_an_error_that_names_it(folder: str) -> None:
    path = f"{folder}/{'x' * 120}"
    with pytest.raises(
        ListenError, match=r"cannot listen on the control socket .*x{120}: AF_UNIX path too long"
    ):
        open_server(path)


def go_on(room: Room, awaiting: list[Reply]) -> list[Reply]:
    """Let another server take over, as that of the next program does, and return the replies it has to end."""
    past = room.server.past(awaiting)
    room.selector.close()
    room.selector = selectors.DefaultSelector()
    room.serve(past)
    return room.server.resume(past)


def test_who_waits_is_answered_by_the_next_program(room: Room) -> None:
    with connected(room) as first, connected(room) as second:
        ask(room, first, id=1, command="reload")
        ask(room, second, id=1, command="reload")
        ask(room, second, id=2, command="upgrade")
        _, other, upgrade = (reply for _, reply in room.asked)
        upgrade.progress("trying")
        replies = go_on(room, [upgrade, other])
        replies[0].result({"generation": 2})
        replies[1].result({"generation": 3})
        assert heard(second) == [
            {"id": 2, "progress": "trying"},
            {"id": 2, "result": {"generation": 2}},
            {"id": 1, "result": {"generation": 3}},
        ]
        (told,) = heard(first)
        assert told["error"]["message"] == "the server was upgraded in the meantime"


def test_half_a_request_is_completed_in_the_next_program(room: Room) -> None:
    with connected(room) as client:
        client.sendall(b'{"id": 7, "comm')
        room.settle()
        go_on(room, [])
        client.sendall(b'and": "status"}\n')
        room.settle()
        assert [request.id for request, _ in room.asked] == [7]


def test_who_has_shut_its_half_and_who_comes_later_are_served_by_the_next_program(room: Room) -> None:
    with connected(room) as client:
        ask(room, client, id=1, command="upgrade")
        client.shutdown(socket.SHUT_WR)
        room.settle()
        (reply,) = go_on(room, [room.asked[0][1]])
        assert room.watched() == 0
        reply.result({})
        room.settle()
        assert heard(client) == [{"id": 1, "result": {}}, "end"]
    with connected(room) as later:
        ask(room, later, id=1, command="status")
        assert len(room.asked) == 2
    room.server.close()
    assert not os.path.exists(room.path)


def test_closing_removes_the_path_and_ends_every_client(folder: str) -> None:
    room = Room(f"{folder}/control.sock")
    with connected(room) as client:
        ask(room, client, id=1, command="stop")
        room.close()
        assert heard(client) == ["end"]
        assert room.asked[0][1].gone
    assert os.listdir(folder) == []


def test_closing_leaves_a_successors_path_alone(folder: str) -> None:
    room = Room(f"{folder}/control.sock")
    os.unlink(room.path)
    successor = Room(room.path)
    room.close()
    with connected(successor) as client:
        ask(successor, client, id=1, command="status")
    assert len(successor.asked) == 1
    successor.close()


def test_nothing_is_left_open(folder: str) -> None:
    def open_descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_descriptors()
    room = Room(f"{folder}/control.sock")
    refuse(room)
    with connected(room) as client:
        ask(room, client, id=1, command="status")
    room.close()
    assert open_descriptors() == before
