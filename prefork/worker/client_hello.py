"""What a TLS client offers in the first message of its handshake (RFC 8446 4.1.2), read beside OpenSSL.

The standard library ends no handshake for the want of a common application protocol, as RFC 7301 3.2 demands it, and
tells nobody what the client has offered.
"""

from __future__ import annotations

from typing import Final

# What the HTTP server speaks, by the names of ALPN.
PROTOCOLS: Final = ("http/1.1",)
# A fatal alert (21), in a record that says TLS 1.2 as all do (RFC 8446 5.1): no_application_protocol.
NO_APPLICATION_PROTOCOL: Final = bytes([21, 3, 3, 0, 2, 2, 120])

HANDSHAKE: Final = 22
CLIENT_HELLO: Final = 1
ALPN: Final = 16
RECORD_HEAD: Final = 5
MESSAGE_HEAD: Final = 4
# As OpenSSL: it refuses a longer ClientHello (SSL3_RT_MAX_PLAIN_LENGTH), and so it is left to it.
MAX_HELLO: Final = 16384


class ClientHello:
    """Gathers the first handshake message from the bytes of a connection, in any portions.

    Attributes:
        is_complete: whether all of it has come; or what came is none, which OpenSSL is going to say.
        protocols: the application protocols that the client offers; none if it says nothing about them.

    """

    __slots__ = ("_data", "_message", "is_complete", "protocols")

    def __init__(self) -> None:
        self.is_complete = False
        self.protocols: list[bytes] = []
        self._data = bytearray()  # of a record that is not whole yet
        self._message = bytearray()

    def feed(self, data: bytes) -> None:
        """Take bytes as they came."""
        self._data += data
        at = 0
        while not self.is_complete and (record := self._record(at)) is not None:
            self._message += record
            at += RECORD_HEAD + len(record)
            self._look()
        del self._data[:at]

    def _record(self, at: int) -> bytearray | None:
        """Return what the record at a place holds, None if it is not there yet."""
        if len(self._data) <= at:
            return None
        if self._data[at] != HANDSHAKE:
            self.is_complete = True
            return None
        if len(self._data) < at + RECORD_HEAD:
            return None
        size = int.from_bytes(self._data[at + 3 : at + RECORD_HEAD])
        record = self._data[at + RECORD_HEAD : at + RECORD_HEAD + size]
        return record if len(record) == size else None

    def _look(self) -> None:
        message = self._message
        if len(message) < MESSAGE_HEAD:
            return
        size = int.from_bytes(message[1:MESSAGE_HEAD])
        if message[0] != CLIENT_HELLO or size > MAX_HELLO:
            self.is_complete = True
        elif len(message) >= MESSAGE_HEAD + size:
            self.is_complete = True
            self.protocols = _read_protocols(bytes(message[MESSAGE_HEAD : MESSAGE_HEAD + size]))


def _read_protocols(body: bytes) -> list[bytes]:
    """Return the protocols that the body of a ClientHello offers; none of one that is malformed."""
    try:
        at = 2 + 32  # version and random
        at += 1 + body[at]  # the session's id
        at += 2 + _number(body, at)  # cipher suites
        at += 1 + body[at]  # compression
        end = at + 2 + _number(body, at)
        at += 2
        while at < end <= len(body):
            size = _number(body, at + 2)
            if _number(body, at) == ALPN:
                return _read_list(body[at + 4 : at + 4 + size])
            at += 4 + size
    except IndexError:
        pass
    return []


def _number(data: bytes, at: int) -> int:
    """Return the number of two bytes at a place. Raises IndexError."""
    return data[at] << 8 | data[at + 1]


def _read_list(content: bytes) -> list[bytes]:
    """Return the names in an ALPN extension (RFC 7301 3.1); none if one of them ends early. Raises IndexError."""
    end = 2 + _number(content, 0)
    at, found = 2, []
    while at < end:
        found.append(content[at + 1 : at + 1 + content[at]])
        at += 1 + content[at]
    return found if at == len(content) else []
