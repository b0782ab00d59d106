"""PROXY headers: what is one, what it says, and what is none."""

from __future__ import annotations

import socket
import struct

import pytest

from prefork.protocols.proxy import SIGNATURE, End, Header, ProxyError, read_header

LOCAL, PROXY = 0x20, 0x21
TCP4, TCP6, UNIX = 0x11, 0x21, 0x31


def v2(command: int, family: int, payload: bytes, size: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(payload) if size is None else size) + payload


def ends(family: int, source: str, destination: str) -> bytes:
    hosts = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
    return hosts + struct.pack("!HH", 56324, 443)


INET = ends(socket.AF_INET, "192.0.2.1", "192.0.2.2")
INET6 = ends(socket.AF_INET6, "2001:db8::1", "2001:db8::2")
MIXED = ends(socket.AF_INET6, "::ffff:192.0.2.1", "2001:db8::2")
GOOD = [
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", "192.0.2.1", "192.0.2.2"),
    (b"PROXY TCP6 2001:db8::1 2001:0db8:0::2 56324 443\r\n", "2001:db8::1", "2001:db8::2"),
    (v2(PROXY, TCP4, INET), "192.0.2.1", "192.0.2.2"),
    (v2(PROXY, TCP6, INET6), "2001:db8::1", "2001:db8::2"),
    (b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 56324 443\r\n", "192.0.2.1", "2001:db8::2"),
    (v2(PROXY, TCP6, MIXED), "192.0.2.1", "2001:db8::2"),
    (v2(PROXY, TCP4, INET + b"\x04\0\x03abc" + b"\x20" + bytes(300)), "192.0.2.1", "192.0.2.2"),
]
OWN = [
    b"PROXY UNKNOWN\r\n",
    b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n",
    v2(LOCAL, 0, b""),
    v2(LOCAL, TCP4, INET),
    v2(LOCAL, 0xFF, b"whatever"),
    v2(PROXY, 0, b""),
    v2(PROXY, 0, b"\x04\0\x01x"),
]


@pytest.mark.parametrize(("data", "source", "destination"), GOOD)
def test_addresses_and_ports_of_both_ends_are_read(data: bytes, source: str, destination: str) -> None:
    expected = Header(len(data), End(source, 56324), End(destination, 443))
    assert read_header(data) == read_header(data + b"GET / HTTP/1.1\r\n") == expected


@pytest.mark.parametrize("data", OWN)
def test_a_balancers_own_connection_keeps_its_addresses(data: bytes) -> None:
    assert read_header(data + b"GET /") == Header(len(data))


def test_a_unix_socket_has_no_host() -> None:
    assert read_header(v2(PROXY, UNIX, bytes(216))) == Header(232, End("", 0), End("", 0))


@pytest.mark.parametrize("data", [*[good for good, _, _ in GOOD], *OWN])
def test_what_has_not_come_is_waited_for(data: bytes) -> None:
    assert [read_header(data[:size]) for size in range(1, len(data))] == [None] * (len(data) - 1)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\r\nG",
        b"\x16\x03\x01",
        b"PROXX",
        b"proxy TCP4",
        b"PROXY\r\n",
        b"PROXY \r\n",
        b"PROXY TCP4\r\n",
        b"PROXY TCP5 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\nGET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n",
        b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 ::1 ::2 1 2\r\n",
        b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::2 1 2\r\n",
        b"PROXY TCP6 :::1 ::2 1 2\r\n",
        b"PROXY UNKNOWN" + b" " * 100 + b"\r\n",
        b"PROXY " + b"x" * 101,
        v2(0x11, TCP4, INET),
        v2(0x22, TCP4, INET),
        v2(PROXY, 0x12, INET),
        v2(PROXY, 0x10, INET),
        v2(PROXY, 0x41, INET),
        v2(PROXY, TCP4, INET[:11]),
        v2(PROXY, TCP6, INET),
        v2(PROXY, UNIX, bytes(215)),
    ],
)
def test_what_is_no_header_is_refused(data: bytes) -> None:
    with pytest.raises(ProxyError):
        read_header(data)


def test_what_cannot_become_a_header_is_refused_before_its_end() -> None:
    for data in (b"G", b"\r\nG", SIGNATURE + b"\x31", v2(PROXY, TCP6, b"", 12), v2(PROXY, 0x55, b"", 999)):
        with pytest.raises(ProxyError):
            read_header(data)
