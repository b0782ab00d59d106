"""A PROXY header is read off a blocking socket in time, and not one byte of what follows it."""

from __future__ import annotations

import socket
import threading

import pytest

from prefork.handlers.peer import End, ProxyError
from prefork.worker.greeting import address_of, read_blocking

LINE = b"PROXY TCP4 192.0.2.1 192.0.2.2 99 8080\r\n"


def test_what_follows_the_header_stays_in_the_socket() -> None:
    balancer, ours = socket.socketpair()
    with balancer, ours:
        balancer.sendall(LINE + b"hello")
        assert read_blocking(ours, 5).source == End("192.0.2.1", 99)
        assert ours.gettimeout() is None
        assert ours.recv(100) == b"hello"


def test_a_header_may_come_in_pieces() -> None:
    balancer, ours = socket.socketpair()

    def send() -> None:
        for byte in LINE:
            balancer.send(bytes([byte]))

    with balancer, ours:
        sender = threading.Thread(target=send)
        sender.start()
        assert read_blocking(ours, 5).size == len(LINE)
        sender.join()


@pytest.mark.parametrize("sent", [b"", LINE[:10]])
def test_a_header_has_a_deadline(sent: bytes) -> None:
    balancer, ours = socket.socketpair()
    with balancer, ours:
        balancer.sendall(sent)
        with pytest.raises(ProxyError, match=r"within 0\.05 s"):
            read_blocking(ours, 0.05)


def test_a_peer_that_leaves_is_no_protocol_error() -> None:
    balancer, ours = socket.socketpair()
    with ours:
        balancer.sendall(LINE[:10])
        balancer.close()
        with pytest.raises(ConnectionAbortedError):
            read_blocking(ours, 5)


def test_addresses_have_the_form_that_accept_gives() -> None:
    assert address_of(End("192.0.2.1", 99)) == ("192.0.2.1", 99)
    assert address_of(End("::1", 99)) == ("::1", 99, 0, 0)
    assert address_of(End("", 0)) == ""
