"""Heads of responses: what an application says about its answer, checked and put into bytes.

Applications repeat their status and most of their fields, so each is checked once and then found in a bounded table.
"""

from __future__ import annotations

import re
import time
from email.utils import formatdate
from enum import Enum
from http import HTTPStatus
from typing import Final, NamedTuple

TABLE_SIZE: Final = 2048
TABLE_VALUE_SIZE: Final = 256
STATUS: Final = re.compile(r"[2-9][0-9]{2}(?: [\t\x20-\x7e\x80-\xff]*)?")
NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
LENGTH: Final = re.compile(r"[0-9]{1,18}")
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
SERVER: Final = b"Server: prefork\r\n"


class Role(Enum):
    """What a field means to the server that sends it."""

    LENGTH = "content-length"
    CONNECTION = "connection"
    KEEP_ALIVE = "keep-alive"
    DATE = "date"
    SERVER = "server"


ROLES: Final = {role.value: role for role in Role}
# PEP 3333 leaves these to the server: they are about the connection, not about the answer (RFC 9110 7.6.1).
HOP_BY_HOP: Final = frozenset(
    {
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
    }
)


class Special(NamedTuple):
    """A field that the server has to act upon; ``length`` is what a Content-Length says."""

    role: Role
    line: bytes
    value: str
    length: int | None


class Fields:
    """An application's fields.

    Attributes:
        lines: the status line and the fields as they are sent, without those that the server decides about.
        length: the Content-Length, if given, and ``length_line`` as it is sent.
        asks_close: whether ``Connection: close`` was given.
        has_date: whether the application dates its answer itself.
        has_server: whether it names the server itself.

    """

    __slots__ = ("asks_close", "has_date", "has_server", "length", "length_line", "lines")

    def __init__(self, first: bytes) -> None:
        self.lines = [first]
        self.length: int | None = None
        self.length_line = b""
        self.asks_close = False
        self.has_date = False
        self.has_server = False

    def act_upon(self, special: Special) -> None:
        """Take a field that means something to the server. Raises ValueError if it contradicts another."""
        role, line, value, length = special
        if length is not None:
            if self.length not in (None, length):
                raise ValueError(f"two Content-Length headers, {self.length} and {length}")
            self.length = length
            self.length_line = line
        elif role is Role.CONNECTION:
            self.asks_close = self.asks_close or "close" in value.lower()
        elif role is not Role.KEEP_ALIVE:
            self.lines.append(line)
            self.has_date = self.has_date or role is Role.DATE
            self.has_server = self.has_server or role is Role.SERVER


_statuses: dict[str, tuple[int, bytes]] = {}
_fields: dict[tuple[str, str], bytes | Special] = {}


def read_status(status: str) -> tuple[int, bytes]:
    """Return the code and the status line of what was given to start_response.

    Raises TypeError and ValueError, which say what is expected.
    """
    known = _statuses.get(status)
    if known is None:
        known = _check_status(status)
        _bound(_statuses)
        _statuses[status] = known
    return known


def read_fields(headers: list[tuple[str, str]], first: bytes) -> Fields:
    """Return the fields of what was given to start_response, behind the status line.

    Raises TypeError and ValueError, which say what is expected.
    """
    if not isinstance(headers, list):
        raise TypeError(f"expected a list of headers, found {type(headers).__name__}")
    fields = Fields(first)
    lines = fields.lines
    for pair in headers:
        field = _fields.get(pair) or _check_field(pair)
        if field.__class__ is bytes:
            lines.append(field)
        else:
            fields.act_upon(field)  # type: ignore[arg-type]
    return fields


def plain(
    status: int, text: str, *, close: bool, body: bool = True, more: bytes = b"", named: bool = True
) -> bytes:
    """Return a small whole answer of the server's own, with or without its body.

    ``more`` are further fields; ``named`` says whether one of them is Server.
    """
    content = text.encode("utf-8", "replace") + b"\n"
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(content)}\r\n"
    ).encode("ascii")
    connection = b"Connection: close\r\n" if close else b""
    lines = (stamp if named else unnamed).lines()
    return b"%b%b%b%b\r\n%b" % (head, lines, more, connection, content if body else b"")


def head_size(answer: bytes) -> int:
    """Return the size in bytes of the head that a whole answer begins with."""
    return answer.index(b"\r\n\r\n") + 4


class Stamp:
    """The fields that every answer gets: Date, made once a second, and Server.

    Args:
        server: the line that names the server, empty if none does.

    """

    def __init__(self, server: bytes) -> None:
        self._server = server
        self._made: tuple[int, bytes, bytes] = (0, b"", b"")

    def lines(self, has_date: bool = False, has_server: bool = False) -> bytes:
        """Return the lines for now, without those that an answer has of its own."""
        second = int(time.time())
        made, dated, whole = self._made  # one object, so that a thread never finds the one without the other
        if made != second:
            dated = f"Date: {formatdate(second, usegmt=True)}\r\n".encode("ascii")
            whole = dated + self._server
            self._made = (second, dated, whole)
        if not (has_date or has_server):
            return whole
        return (b"" if has_date else dated) + (b"" if has_server else self._server)


stamp = Stamp(SERVER)
unnamed = Stamp(b"")


def _check_status(status: str) -> tuple[int, bytes]:
    if not isinstance(status, str):
        raise TypeError(f"expected a status as str, found {type(status).__name__}")
    if not STATUS.fullmatch(status):
        raise ValueError(f"expected a status like '200 OK', found {status!r}")
    return int(status[:3]), f"HTTP/1.1 {status[:3]} {status[4:]}\r\n".encode("latin-1")


def _check_field(pair: tuple[str, str]) -> bytes | Special:
    name, value = pair
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError(f"expected a header of two str, found {pair!r}")
    if not NAME.fullmatch(name):
        raise ValueError(f"expected a header's name to be a token, found {name!r}")
    if not VALUE.fullmatch(value):
        raise ValueError(
            f"expected a header's value without control characters, in latin-1, found {name}: {value!r}"
        )
    role = _find_role(name.lower(), value)
    line = f"{name}: {value}\r\n".encode("latin-1")
    length = int(value) if role is Role.LENGTH else None
    field = line if role is None else Special(role, line, value, length)
    if len(value) <= TABLE_VALUE_SIZE:
        _bound(_fields)
        _fields[(name, value)] = field
    return field


def _find_role(name: str, value: str) -> Role | None:
    if name in HOP_BY_HOP:
        raise ValueError(f"the header {name} belongs to the server, not to the application (PEP 3333)")
    role = ROLES.get(name)
    if role is Role.LENGTH and not LENGTH.fullmatch(value):
        raise ValueError(f"expected Content-Length to be a number of bytes, found {value!r}")
    return role


def _bound(table: dict[str, tuple[int, bytes]] | dict[tuple[str, str], bytes | Special]) -> None:
    # Starting again costs less than keeping count of what was used last.
    if len(table) >= TABLE_SIZE:
        table.clear()
