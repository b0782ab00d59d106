"""Which server a TARGET means, with records and control sockets in folders of the test's own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import msgspec
import pytest

from prefork.cli import ctl
from prefork.cli.target import connect, find
from prefork.config.load import load
from prefork.control import registry
from prefork.control.messages import Identity, Request
from prefork.control.registry import Registration
from prefork.control.server import Reply
from prefork.errors import CommandError, PreforkError, UsageError
from tests.unit.room import Room

POOL = '[pool.web]\nlisten = ["127.0.0.1:0"]\nwsgi = "app:app"\n'


@pytest.fixture(autouse=True)
def shared(folder: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(registry, "RUN", f"{folder}/none")
    monkeypatch.setattr(registry, "SHARED", folder)
    monkeypatch.setenv("PWD", "/nowhere")
    return folder


class Town:
    """Servers that only say who they are."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.rooms: list[Room] = []

    def file(self, path: str, text: str = POOL) -> str:
        path = f"{self.folder}/{path}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
        return path

    def serve(self, name: str, file: str, control: str = "", runs: str = "") -> Room:
        """Run a server of a file; if its socket was taken over meanwhile, the one there ``runs`` another file."""
        control = control or f"{self.folder}/{name}-{len(self.rooms)}.sock"
        record = Registration(name, file, control, control).record
        room = Room(control)
        there = runs or record.file
        identity = Identity(name, record.pid, "1", there, os.path.realpath(there), "running", 1, 2.5)

        def answer(_request: Request, reply: Reply) -> None:
            reply.result(msgspec.to_builtins(identity))

        room.answer = answer
        room.start()
        self.rooms.append(room)
        return room


@pytest.fixture
def town(folder: str) -> Iterator[Town]:
    town = Town(folder)
    yield town
    for room in town.rooms:
        room.close()


def refusal(target: str, kind: type[PreforkError] = CommandError) -> str:
    with pytest.raises(kind) as caught, connect(target, ()):
        pass
    assert type(caught.value).exit_code == kind.exit_code
    return caught.value.message


def test_a_server_is_found_by_its_file_and_not_by_another_of_the_same_name(town: Town) -> None:
    one, two = town.file("one/server.toml"), town.file("two/server.toml")
    room = town.serve("server", one)
    assert find(one, ()).path == room.path
    assert refusal(two) == f"no server runs {two}"


def test_a_server_is_found_from_its_own_folder(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    file = town.file("one/server.toml")
    room = town.serve("server", file)
    monkeypatch.chdir(os.path.dirname(file))
    assert find("server.toml", ()).path == room.path


def test_the_path_as_it_was_given_comes_before_the_real_one(town: Town) -> None:
    blue, green = town.file("blue/shop.toml"), town.file("green/shop.toml")
    current = f"{town.folder}/current"
    os.symlink("blue", current)
    by_link = town.serve("shop", f"{current}/shop.toml")
    os.unlink(current)
    os.symlink("green", current)
    by_path = town.serve("shop", green)
    assert find(f"{current}/shop.toml", ()).path == by_link.path
    assert find(green, ()).path == by_path.path
    assert find(blue, ()).path == by_link.path, "its real path when it was loaded"


def test_two_servers_of_one_file_are_both_named(town: Town) -> None:
    file = town.file("shop.toml")
    town.serve("one", file)
    town.serve("two", file)
    message = refusal(file, UsageError)
    assert message.startswith(f"{file} may mean several servers: one (pid ")
    assert " and two (pid " in message


def test_a_setting_tells_two_servers_of_one_file_apart(town: Town) -> None:
    file = town.file("shop.toml")
    town.serve("one", file)
    two = town.serve("two", file)
    assert find(file, [f"master.control={two.path}"]).path == two.path


def test_a_name_finds_its_server_and_a_name_of_two_servers_both(town: Town) -> None:
    shop = town.serve("shop", town.file("shop.toml"))
    town.serve("mail", town.file("one/mail.toml"))
    town.serve("mail", town.file("two/mail.toml"))
    assert find("shop", ()).path == shop.path
    assert refusal("mail", UsageError).count("/mail.toml, control socket ") == 2
    assert refusal("post") == "no server of the name post runs"


def test_a_file_that_exists_comes_before_a_name(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    file = town.file("program")
    room = town.serve("other", file)
    town.serve("program", town.file("else.toml"))
    monkeypatch.chdir(town.folder)
    assert find("program", ()).path == room.path


@pytest.mark.parametrize("target", ["run/x", "x.sock", "/x"])
def test_what_looks_like_a_path_is_the_control_socket(target: str) -> None:
    assert find(target, ())[:3] == (target, None, ())


def test_a_control_socket_that_another_file_names_too_is_not_asked(town: Town) -> None:
    control = f"{town.folder}/shared.sock"
    blue = town.file("blue/shop.toml")
    green = town.file("green/shop.toml", f'[master]\ncontrol = "{control}"\n{POOL}')
    town.serve("shop", blue, control)
    assert f"runs {blue}, not this file" in refusal(green)


def test_a_server_whose_socket_another_one_has_taken_is_not_mixed_up_with_it(town: Town) -> None:
    blue, green = town.file("blue/shop.toml"), town.file("green/shop.toml")
    town.serve("shop", blue, runs=green)
    assert f"runs {green}, not this file" in refusal(blue)


def test_a_server_whose_socket_is_gone_is_named_with_the_remedy(town: Town) -> None:
    file = town.file("shop.toml")
    Registration("shop", file, f"{town.folder}/gone.sock", f"{town.folder}/gone.sock")
    with pytest.raises(CommandError, match=r"the control socket .* of shop is gone") as caught:
        find(file, ())
    assert caught.value.hint == f"kill -HUP {os.getpid()} reloads that server and brings the socket back"


def test_a_server_that_left_no_record_is_found_by_what_its_file_says(town: Town) -> None:
    control = f"{town.folder}/shop.sock"
    file = town.file("shop.toml", f'[master]\ncontrol = "{control}"\n{POOL}')
    town.serve("shop", file, control)
    for entry in registry.entries():
        registry.forget(entry)
    with connect(file, ()) as client:
        assert client.identify().file == file


def test_the_list_shows_each_server_and_forgets_those_that_are_dead(town: Town) -> None:
    town.serve("shop", town.file("shop.toml"))
    gone = Registration("gone", "/gone.toml", f"{town.folder}/gone.sock", f"{town.folder}/gone.sock")
    dead = Registration("dead", "/dead.toml", f"{town.folder}/dead.sock", f"{town.folder}/dead.sock")
    dead.record = msgspec.structs.replace(dead.record, pid=2**22 + 1)
    dead._write()
    found = {server["name"]: server["state"] for server in ctl.servers()}
    assert found == {"shop": "running", "gone": "no control socket"}
    assert {entry.record.name for entry in registry.entries()} == {"shop", "gone"}
    gone.close()


def test_a_folder_that_belongs_to_another_kind_of_owner_is_not_used(shared: str) -> None:
    folder = registry.home(os.geteuid())
    os.mkdir(folder)
    os.chmod(folder, 0o777)
    with pytest.raises(PreforkError, match=r"others may write to it \(mode 0777\), expected 0700"):
        registry.claim(folder)
    with pytest.raises(CommandError, match="others may write to it"):
        registry.entries()


def test_what_lies_in_the_folder_and_is_no_record_is_left_alone(shared: str) -> None:
    folder = registry.home(os.geteuid())
    registry.claim(folder)
    os.mkfifo(f"{folder}/fifo.json")
    os.mkdir(f"{folder}/folder.json")
    os.symlink("/etc/passwd", f"{folder}/link.json")
    for name, text in (("a", "{}"), ("b", "[" * 5000), ("c", '{"name": 1}'), ("d", "\udcff")):
        with open(f"{folder}/{name}.json", "w", errors="surrogateescape") as file:
            file.write(text)
    assert registry.entries() == []


def test_a_file_name_that_is_no_text_has_a_record_like_any_other(town: Town) -> None:
    file = town.file("caf\udce9.toml")
    Registration("cafe", file, f"{town.folder}/c.sock", f"{town.folder}/c.sock")
    assert [entry.record.file for entry in registry.entries()] == [file]


def test_parent_folders_are_taken_out_of_a_path_unless_they_follow_a_link(shared: str) -> None:
    shared = os.path.realpath(shared)
    os.makedirs(f"{shared}/releases/1/etc")
    os.makedirs(f"{shared}/etc")
    os.symlink("releases/1/etc", f"{shared}/link")
    assert registry.absolute(f"{shared}/etc", "../etc/a.toml") == f"{shared}/etc/a.toml"
    assert registry.absolute(shared, "link/a.toml") == f"{shared}/link/a.toml"
    assert registry.absolute(shared, "link/../etc/a.toml") == f"{shared}/releases/1/etc/a.toml"


def test_the_default_socket_fits_whatever_the_user_and_the_name() -> None:
    config = load(
        POOL.encode(),
        source="x.toml",
        directory="/",
        runtime_directory=f"/tmp/prefork-{2**32 - 2}",
        cpus=1,
        environment={},
        settings=[f"master.name={'n' * 64}"],
    )
    assert len(config.master.control) <= 107


def test_a_process_of_another_user_is_not_obeyed(folder: str) -> None:
    from prefork.control.client import Client

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/x.sock")
        listener.listen()
        with pytest.raises(CommandError, match=f"user {os.geteuid()} listens on .*, expected a server of"):
            Client(f"{folder}/x.sock", owner=os.geteuid() + 1)
