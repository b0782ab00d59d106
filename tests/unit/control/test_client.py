"""The client against a control server in a thread, and against nobody."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest

from prefork.control.client import Client, RefusedError, ServerGoneError
from prefork.control.messages import Request
from prefork.control.server import Reply
from prefork.errors import CommandError
from tests.unit.room import NEVER_THAT_LONG, Room


def test_a_call_returns_the_result_after_all_progress(room: Room) -> None:
    def answer(request: Request, reply: Reply) -> None:
        reply.progress("one")
        reply.progress("two")
        reply.result({"pool": request.arguments["pool"]})

    room.answer = answer
    room.start()
    said: list[str] = []
    with Client(room.path, NEVER_THAT_LONG) as client:
        assert client.call("scale", {"pool": "web", "workers": 2}, said.append) == {"pool": "web"}
        assert client.call("scale", {"pool": "mail", "workers": 2}) == {"pool": "mail"}
    assert said == ["one", "two"]


def test_the_servers_error_is_raised_with_its_hint_and_traceback(room: Room) -> None:
    room.answer = lambda _request, reply: reply.error("the reload failed", "repair it", "Traceback …")
    room.start()
    with Client(room.path, NEVER_THAT_LONG) as client, pytest.raises(RefusedError) as caught:
        client.call("reload", {})
    error = caught.value
    assert (error.message, error.hint, error.traceback) == ("the reload failed", "repair it", "Traceback …")
    assert isinstance(error, CommandError)
    assert error.exit_code == 1


def test_a_server_that_does_not_know_who_it_is_is_called_older_and_named_by_its_pid(room: Room) -> None:
    room.answer = lambda request, reply: reply.error(f"unknown command {request.command!r}", "known: status")
    room.start()
    with Client(room.path, NEVER_THAT_LONG) as client, pytest.raises(CommandError) as caught:
        client.identify()
    assert caught.value.message.startswith(f"the server on {room.path} is of an older prefork")
    assert caught.value.hint == f"kill -TERM {os.getpid()} ends it, prefork run starts the new one"


def test_no_socket_and_a_dead_socket_both_mean_that_no_server_listens(folder: str) -> None:
    dead = f"{folder}/dead.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(dead)
    for path in (dead, f"{folder}/none.sock", f"{folder}/no/folder.sock"):
        with pytest.raises(CommandError) as caught:
            Client(path)
        assert caught.value.message == f"no server listens on {path}"
        assert caught.value.hint == "prefork run CONF starts one"


def test_a_server_that_ends_before_it_answers_is_told_from_an_error(folder: str) -> None:
    room = Room(f"{folder}/control.sock")
    with Client(room.path, NEVER_THAT_LONG) as client:
        room.settle()
        room.close()
        with pytest.raises(ServerGoneError):
            client.call("status", {})


def test_a_stopped_server_is_not_waited_for_longer_than_wanted(room: Room) -> None:
    with Client(room.path, 0.01) as client, pytest.raises(CommandError) as caught:
        client.call("status", {})
    assert caught.value.message == f"the server on {room.path} did not answer within 0.01 s"


def test_a_lasting_command_waits_and_says_when_the_server_is_silent(room: Room) -> None:
    said: list[str] = []

    def hear(text: str) -> None:
        said.append(text)
        room.start()

    room.answer = lambda request, reply: reply.result({"command": request.command})
    with Client(room.path, 0.05) as client:
        assert client.call("reload", {}, hear, lasting=True) == {"command": "reload"}
    (text,) = said
    assert text.startswith(
        f"the server on {room.path} did not answer within 0.05 s: its process may be stopped"
    )


def test_a_server_that_works_for_long_is_not_called_silent(room: Room) -> None:
    said: list[str] = []
    asked: list[Reply] = []

    def answer(request: Request, reply: Reply) -> None:
        if request.command == "identity":
            reply.result({})
            if len(asked) < 3:
                asked.append(reply)
            else:
                asked[0].result({"generation": 2})
        else:
            asked.append(reply)

    room.answer = answer
    room.start()
    with Client(room.path, 0.2) as client:
        assert client.call("reload", {}, said.append, lasting=True) == {"generation": 2}


def test_a_stranger_on_the_path_is_recognised(folder: str) -> None:
    path = f"{folder}/http.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def greet() -> None:
            with listener.accept()[0] as connection:
                connection.sendall(b"220 mail.example ESMTP\r\n")
                connection.recv(1000)

        thread = threading.Thread(target=greet)
        thread.start()
        with Client(path, NEVER_THAT_LONG) as client, pytest.raises(CommandError, match="prefork's language"):
            client.call("status", {})
        thread.join()


SERVER = """
import os, selectors, sys
from prefork.control.server import ControlServer

selector = selectors.DefaultSelector()
stopping = []

def handle(request, reply):
    stopping.append(request)
    reply.progress("going")

server = ControlServer(sys.argv[1], handle, owner_uid=os.geteuid(), later=lambda *_: None)
server.register(selector)
print("up", flush=True)
while not stopping:
    for key, mask in selector.select():
        key.data(mask)
server.close()
sys.stdin.read()
"""


def test_a_stop_returns_once_the_process_has_ended(folder: str) -> None:
    path = f"{folder}/control.sock"
    command = [sys.executable, "-c", SERVER, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        said: list[str] = []
        stopped = threading.Event()

        def stop() -> None:
            with Client(path, NEVER_THAT_LONG) as client:
                client.stop(False, said.append)
            stopped.set()

        thread = threading.Thread(target=stop)
        thread.start()
        assert not stopped.wait(0.2), "its socket is closed, but the process is still there"
        assert not os.path.exists(path)
        process.stdin.close()
        assert stopped.wait(NEVER_THAT_LONG)
        thread.join()
        assert said == ["going"]
