"""What systemd is told and passes on: socket activation by name, notifications, the watchdog."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefork.errors import CommandError
from tests.harness import PATIENCE, Server, body_of, fetch, wait_until
from tests.process.conftest import Start

HELLO = """
[pool.web]
listen = ["{listen}"]
wsgi = "plain:app"
workers = 2
"""
APP = 'def app(environ, start_response):\n    start_response("200 OK", [])\n    return [b"{}"]\n'


class Manager:
    """A service manager's ear: a datagram socket, and the messages that have come to it."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(PATIENCE)
        self.environment = {"NOTIFY_SOCKET": str(path)}

    def hear(self) -> dict[str, str]:
        """Return the next message."""
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().splitlines())

    def hear_until(self, key: str) -> list[dict[str, str]]:
        """Return all messages up to the first that has a key."""
        heard = [self.hear()]
        while key not in heard[-1]:
            heard.append(self.hear())
        return heard


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.socket.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def write_app(folder: Path, text: str = "hello") -> None:
    (folder / "plain.py").write_text(APP.format(text))


def words(messages: list[dict[str, str]]) -> list[str]:
    """Return what was said about the server's state, in order."""
    return [key for message in messages for key in message if key in ("READY", "RELOADING", "STOPPING")]


# Activation.


def test_an_inherited_socket_is_served_by_its_name(start: Start, tmp_path: Path, listener: socket.socket):
    write_app(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        server = start(
            HELLO.format(listen="fd:web"), inherit=[("admin", other), ("web", listener)]
        ).wait_ready(2)
        assert server.address() == listener.getsockname()
        assert body_of(fetch(listener.getsockname())) == b"hello"
        assert server.stop() == 0


def test_all_sockets_of_one_name_are_served(start: Start, tmp_path: Path, listener: socket.socket):
    write_app(tmp_path)
    with socket.socket(socket.AF_UNIX) as second:
        second.bind(str(tmp_path / "web.sock"))
        second.listen()
        server = start(
            HELLO.format(listen="fd:web"), inherit=[("web", listener), ("web", second)]
        ).wait_ready(2)
        assert body_of(fetch(listener.getsockname())) == b"hello"
        assert body_of(fetch(str(tmp_path / "web.sock"))) == b"hello"
        assert server.stop() == 0
        assert (tmp_path / "web.sock").exists()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_clients_of_an_inherited_socket_wait_for_the_next_start(
    start: Start, tmp_path: Path, listener: socket.socket, how: signal.Signals
):
    write_app(tmp_path)
    first = start(HELLO.format(listen="fd:web"), inherit=[("web", listener)]).wait_ready(2)
    first.signal(how)
    first.wait_all_gone()
    with socket.create_connection(listener.getsockname(), PATIENCE) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        start(HELLO.format(listen="fd:web"), inherit=[("web", listener)]).wait_ready(2)
        assert client.recv(1024).startswith(b"HTTP/1.1 200")


def test_a_reload_can_let_go_of_an_inherited_socket_and_take_it_again(
    start: Start, tmp_path: Path, listener: socket.socket
):
    write_app(tmp_path)
    server = start(HELLO.format(listen="fd:web"), inherit=[("web", listener)]).wait_serving()
    for generation, listen in ((2, "127.0.0.1:0"), (3, "fd:web")):
        server.write(HELLO.format(listen=listen))
        server.signal(signal.SIGHUP)
        server.wait_serving(generation)
    assert body_of(fetch(listener.getsockname())) == b"hello"
    assert server.stop() == 0


def test_a_name_that_was_not_inherited_is_an_error(start: Start, tmp_path: Path, listener: socket.socket):
    write_app(tmp_path)
    server = start(HELLO.format(listen="fd:wbe"), inherit=[("web", listener)])
    assert server.wait_exit() == 3
    assert "cannot listen on fd:wbe: no socket of this name was inherited; there are: web" in "\n".join(
        server.everything()
    )


def test_workers_do_not_see_what_systemd_told_the_master(
    start: Start, tmp_path: Path, listener: socket.socket, manager: Manager
):
    (tmp_path / "plain.py").write_text(
        "import os\n\ndef app(environ, start_response):\n"
        '    start_response("200 OK", [])\n'
        '    return [" ".join(name for name in os.environ if name.startswith(("LISTEN", "NOTIFY"))).encode()]\n'
    )
    server = start(
        HELLO.format(listen="fd:web"), inherit=[("web", listener)], env=manager.environment
    ).wait_ready(2)
    assert body_of(server.get()) == b""
    assert server.stop() == 0


# Notifications.


def start_told(start: Start, folder: Path, manager: Manager, **extra: str) -> Server:
    write_app(folder)
    return start(HELLO.format(listen="127.0.0.1:0"), env=manager.environment | extra)


def test_ready_is_said_once_all_workers_are_and_stopping_at_the_stop(
    start: Start, tmp_path: Path, manager: Manager
):
    server = start_told(start, tmp_path, manager)
    *starting, ready = manager.hear_until("READY")
    assert starting[0]["STATUS"] == "starting, generation 1: 0 of 2 workers ready"
    assert ready["MAINPID"] == str(server.process.pid)
    assert "2 of 2 workers ready" in ready["STATUS"]
    server.signal(signal.SIGTERM)
    stopping = manager.hear_until("STOPPING")
    assert words(stopping) == ["STOPPING"]
    assert int(stopping[-1]["EXTEND_TIMEOUT_USEC"]) > 30e6
    assert server.wait_exit() == 0


def test_a_reload_is_announced_and_its_end_too(start: Start, tmp_path: Path, manager: Manager):
    server = start_told(start, tmp_path, manager)
    manager.hear_until("READY")
    before = time.monotonic() * 1e6
    server.signal(signal.SIGHUP)
    heard = manager.hear_until("READY")
    ready = [message["STATUS"].partition(": ")[2] for message in heard if "STATUS" in message]
    assert set(ready) == {"2 of 2 workers ready"}
    assert words(heard) == ["RELOADING", "READY"]
    assert before <= int(heard[0]["MONOTONIC_USEC"]) <= time.monotonic() * 1e6


@pytest.mark.parametrize("broken", ["the file", "the application"])
def test_a_reload_that_fails_ends_in_ready_as_well(
    start: Start, tmp_path: Path, manager: Manager, broken: str
):
    server = start_told(start, tmp_path, manager)
    manager.hear_until("READY")
    if broken == "the file":
        server.write("wokers = 4\n")
    else:
        (tmp_path / "plain.py").write_text("this is no Python")
    server.signal(signal.SIGHUP)
    assert words(manager.hear_until("READY")) == ["RELOADING", "READY"]
    assert body_of(server.get()) == b"hello"


def test_an_upgrade_keeps_the_inherited_sockets_and_is_announced_as_a_reload(
    start: Start, tmp_path: Path, manager: Manager, listener: socket.socket
):
    write_app(tmp_path)
    inherit = [("other", manager.socket), ("web", listener)]
    server = start(HELLO.format(listen="fd:web"), env=manager.environment, inherit=inherit).wait_serving()
    heard = manager.hear_until("READY")
    for generation in (2, 3):
        write_app(tmp_path, str(generation))
        assert server.ask("upgrade")["generation"] == generation
        assert body_of(fetch(listener.getsockname())) == str(generation).encode()
        heard += manager.hear_until("RELOADING")
        heard += manager.hear_until("READY")
        assert heard[-1]["MAINPID"] == str(server.process.pid)
    server.write(HELLO.format(listen="fd:other"))  # still there to be taken, and found to be no listener
    with pytest.raises(CommandError, match="expected listening stream sockets"):
        server.ask("reload")
    assert server.stop() == 0
    heard += manager.hear_until("STOPPING")
    assert words(heard)[:5] == ["READY", "RELOADING", "READY", "RELOADING", "READY"]


def test_a_failed_first_start_is_never_ready(start: Start, tmp_path: Path, manager: Manager):
    (tmp_path / "plain.py").write_text("this is no Python")
    server = start(HELLO.format(listen="127.0.0.1:0"), env=manager.environment)
    assert server.wait_exit() == 4
    assert words(manager.hear_until("STOPPING")) == ["STOPPING"]


def test_the_watchdog_is_fed_until_the_loop_is_stuck(start: Start, tmp_path: Path, manager: Manager):
    server = start_told(start, tmp_path, manager, WATCHDOG_USEC="200000")
    server.wait_serving()
    for _ in range(3):
        manager.hear_until("WATCHDOG")
    server.signal(signal.SIGSTOP)
    manager.socket.settimeout(0.5)  # the silence that is waited for
    with pytest.raises(TimeoutError):
        manager.hear_until("EVERYTHING")
    server.signal(signal.SIGCONT)
    manager.hear_until("WATCHDOG")


def test_the_watchdog_of_another_process_is_not_fed(start: Start, tmp_path: Path, manager: Manager):
    server = start_told(start, tmp_path, manager, WATCHDOG_USEC="20000", WATCHDOG_PID="1")
    messages = manager.hear_until("READY")
    server.signal(signal.SIGTERM)
    assert not any("WATCHDOG" in message for message in messages + manager.hear_until("STOPPING"))


def test_a_full_queue_delays_a_message_and_loses_none(start: Start, tmp_path: Path, manager: Manager):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as flood:
        flood.setblocking(False)
        count = 0
        try:
            while True:
                flood.sendto(b"X=1", manager.environment["NOTIFY_SOCKET"])
                count += 1
        except BlockingIOError:
            server = start_told(start, tmp_path, manager).wait_serving()
        wait_until(lambda: server.pool()["ready"] == 2, "two workers")
        for _ in range(count):
            manager.hear()
    assert manager.hear_until("READY")


def test_work_that_is_done_once_may_take_longer_than_the_manager_would_wait(
    start: Start, tmp_path: Path, manager: Manager
):
    write_app(tmp_path)
    (tmp_path / "own.py").write_text(
        "import os\ndef run(worker):\n    while not os.path.exists('go') and not worker.stopping.wait(0.01): pass\n"
    )
    clocks = "boot_timeout = 1\ngraceful_timeout = 1\n"
    once = f'[pool.migrate]\ntask = "own:run"\nrestart = "once"\n{clocks}'
    start(HELLO.format(listen="127.0.0.1:0") + clocks + once, env=manager.environment)
    asked = [float(message["EXTEND_TIMEOUT_USEC"]) / 1e6 for message in (manager.hear(), manager.hear())]
    began = time.monotonic()
    again = manager.hear()
    assert "READY" not in again
    assert float(again["EXTEND_TIMEOUT_USEC"]) > 0
    assert time.monotonic() - began < asked[-1] - 1, "the manager has lost its patience"
    (tmp_path / "go").touch()
    assert words(manager.hear_until("READY")) == ["READY"]
