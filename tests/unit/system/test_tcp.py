"""Listening sockets that let clients in when they have said something."""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Iterator

import pytest

from prefork.system.tcp import await_first_bytes, has_handshakes

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="TCP_DEFER_ACCEPT")


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if request.param == "::1" else socket.AF_INET
    with socket.create_server((request.param, 0), family=family) as made:
        await_first_bytes(made, True)
        yield made


def connect(listener: socket.socket) -> socket.socket:
    return socket.create_connection(listener.getsockname()[:2], timeout=10)


def be_patient(listener: socket.socket) -> None:
    """Have the kernel wait for first bytes for longer than any test takes."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 60)


def test_who_speaks_comes_before_who_has_only_connected(listener: socket.socket) -> None:
    be_patient(listener)
    with connect(listener) as silent, connect(listener) as speaking:
        for client in (speaking, silent):
            assert has_handshakes(listener)
            client.sendall(b"GET")
            accepted, address = listener.accept()
            with accepted:
                assert address[:2] == client.getsockname()[:2]
                assert accepted.recv(10) == b"GET"
        assert not has_handshakes(listener)


def test_who_says_nothing_is_let_in_as_well(listener: socket.socket) -> None:
    with connect(listener) as silent:
        assert select.select([listener], [], [], 10)[0]  # the kernel has asked again
        accepted, address = listener.accept()
        accepted.close()
        assert address[:2] == silent.getsockname()[:2]
        assert not has_handshakes(listener)


def test_it_can_be_undone(listener: socket.socket) -> None:
    await_first_bytes(listener, False)
    listener.settimeout(10)
    with connect(listener) as silent, connect(listener) as speaking:
        speaking.sendall(b"GET")
        first, address = listener.accept()
        first.close()
        assert address[:2] == silent.getsockname()[:2]
        assert not has_handshakes(listener)


def test_handshakes_with_others_do_not_count(listener: socket.socket) -> None:
    be_patient(listener)
    with socket.create_server(("127.0.0.1", 0)) as other, connect(listener):
        assert has_handshakes(listener)
        assert not has_handshakes(other)


def test_a_unix_socket_has_no_handshakes() -> None:
    with socket.socket(socket.AF_UNIX) as made:
        assert not has_handshakes(made)
