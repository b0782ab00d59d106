"""What is read of a client's first message, whatever portions and records it comes in, and whatever it is."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.worker.client_hello import MAX_HELLO, ClientHello


def hello(
    protocols: list[str], name: str = "localhost", version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> bytes:
    """Return the first flight of a client of the standard library."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = version
    if protocols:
        context.set_alpn_protocols(protocols)
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


HELLO = hello(["h2", "http/1.1"])
BODY = HELLO[5:]


def read(*portions: bytes) -> ClientHello:
    found = ClientHello()
    for portion in portions:
        found.feed(portion)
    return found


def records(message: bytes, sizes: list[int]) -> bytes:
    """Return a handshake message in records of these sizes; what is left over is in a last one."""
    out = b""
    for size in [*sizes, len(message)]:
        piece, message = message[:size], message[size:]
        out += b"\x16\x03\x01" + len(piece).to_bytes(2) + piece if piece else b""
    return out


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_protocols_that_a_client_offers(version):
    for protocols in ([], ["http/1.1"], ["h2", "http/1.1"], ["acme-tls/1"], ["x" * 255, "y"]):
        found = read(hello(protocols, version=version))
        assert found.is_complete
        assert found.protocols == [protocol.encode() for protocol in protocols]


@given(st.lists(st.integers(1, 200), max_size=20), st.lists(st.integers(1, 100), max_size=20))
def test_records_and_portions_do_not_matter(sizes, portions):
    data = records(BODY, sizes)
    found = ClientHello()
    for size in [*portions, len(data)]:
        assert found.is_complete is (not data)
        found.feed(data[:size])
        data = data[size:]
    assert found.protocols == [b"h2", b"http/1.1"]


@given(st.binary(max_size=300))
def test_anything_else_is_left_to_openssl(data):
    assert read(data).protocols == []
    assert read(records(b"\x01" + len(data).to_bytes(3) + data, [])).is_complete


@given(st.integers(0, len(HELLO) - 1), st.integers(0, 255))
def test_a_changed_byte_raises_nothing(at, byte):
    read(HELLO[:at] + bytes([byte]) + HELLO[at + 1 :], b"")


@given(st.integers(0, len(BODY) - 5))
def test_a_truncated_message_that_says_so_raises_nothing(size):
    body = BODY[4 : 4 + size]
    found = read(records(b"\x01" + len(body).to_bytes(3) + body, []))
    assert (found.is_complete, found.protocols) == (True, [])


def test_a_message_that_is_too_long_is_not_gathered():
    found = read(records(b"\x01" + (MAX_HELLO + 1).to_bytes(3), []))
    assert (found.is_complete, found.protocols) == (True, [])


def test_tiny_records_are_read_once_each():
    data = records(b"\x01" + MAX_HELLO.to_bytes(3) + bytes(MAX_HELLO - 1), [1] * MAX_HELLO)
    found = ClientHello()
    for at in range(0, len(data), 3):
        found.feed(data[at : at + 3])
    assert not found.is_complete
    assert len(found._data) < 6
