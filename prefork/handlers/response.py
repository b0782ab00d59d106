"""Heads of responses: what an application says about its answer, checked and put into bytes.

Applications repeat their status and most of their fields, often all of them together, so each is checked once and then
found in a bounded table; and so is a whole answer's head.
"""

from __future__ import annotations

import re
import time
from enum import Enum
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from prefork.log import logger

TABLE_SIZE: Final = 2048
TABLE_VALUE_SIZE: Final = 256
# How many whole heads are kept, and the largest: half a MiB at most.
TABLE_HEADS: Final = 512
TABLE_HEAD_SIZE: Final = 1024
STATUS: Final = re.compile(r"[2-9][0-9]{2}(?: [\t\x20-\x7e\x80-\xff]*)?")
NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
LENGTH: Final = re.compile(r"[0-9]{1,18}")
DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
SERVER: Final = b"Server: prefork\r\n"


class Role(Enum):
    """What a field means to the server that sends it."""

    LENGTH = "content-length"
    CONNECTION = "connection"
    DATE = "date"
    SERVER = "server"
    HOP_BY_HOP = ""  # many


ROLES: Final = {role.value: role for role in Role if role.value}
TRANSFER_ENCODING: Final = "transfer-encoding"
# PEP 3333 leaves these to the server: they are about the connection, not about the answer (RFC 9110 7.6.1). Applications
# pass them on from an upstream server.
HOP_BY_HOP: Final = frozenset(
    {
        "keep-alive",
        "te",
        "trailer",
        "trailers",
        TRANSFER_ENCODING,
        "upgrade",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
    }
)
# The transfer codings that whoever has read an upstream's answer has removed.
REMOVED_CODINGS: Final = frozenset({"chunked", "identity"})
HEADER_FORM: Final = 'a header as a tuple of two str, like ("Content-Type", "text/plain")'


class Special(NamedTuple):
    """A field that the server has to act upon; ``length`` is what a Content-Length says."""

    role: Role
    line: bytes
    value: str
    length: int | None


class Fields:
    """An application's fields; shared by all answers that have the same, so not to be changed once they are read.

    Attributes:
        status: the code that stands before them.
        head: the status line and the fields as they are sent, without those that the server decides about.
        length: the Content-Length, if given, and ``length_line`` as it is sent.
        asks_close: whether ``Connection: close`` was given.
        has_date: whether the application dates its answer itself.
        has_server: whether it names the server itself.

    """

    __slots__ = ("asks_close", "has_date", "has_server", "head", "length", "length_line", "status")

    def __init__(self, status: int) -> None:
        self.status = status
        self.head = b""
        self.length: int | None = None
        self.length_line = b""
        self.asks_close = False
        self.has_date = False
        self.has_server = False

    def act_upon(self, special: Special) -> bytes:
        """Take a field that means something to the server; return what of it is sent in any case.

        Raises ValueError if it contradicts another.
        """
        role, line, value, length = special
        if length is not None:
            if self.length not in (None, length):
                raise ValueError(f"two Content-Length headers, {self.length} and {length}")
            self.length = length
            self.length_line = line
        elif role is Role.CONNECTION:
            self.asks_close = self.asks_close or "close" in value.lower()
        elif role is not Role.HOP_BY_HOP:
            self.has_date = self.has_date or role is Role.DATE
            self.has_server = self.has_server or role is Role.SERVER
            return line
        return b""


_heads: dict[tuple[object, ...], Fields] = {}
_statuses: dict[str, tuple[int, bytes]] = {}
_fields: dict[tuple[str, str], bytes | Special] = {}
_dropped: set[str] = set()


def read_head(status: str, headers: list[tuple[str, str]]) -> Fields:
    """Return what was given to start_response, checked.

    Raises TypeError and ValueError, which say what is expected.
    """
    if not isinstance(headers, list):
        raise TypeError(f"expected a list of headers, found {type(headers).__name__}")
    key = (status, *headers)
    try:
        known = _heads.get(key)
    except TypeError:  # a list in it, as in [["Content-Type", "text/plain"]], cannot be looked up
        _check_status(status)
        for header in headers:
            _check_field(header)
        raise
    if known is None:
        known = _read_fields(headers, *_read_status(status))
        if len(known.head) <= TABLE_HEAD_SIZE:
            _bound(_heads, TABLE_HEADS)
            _heads[key] = known
    return known


def _read_status(status: str) -> tuple[int, bytes]:
    known = _statuses.get(status)
    if known is None:
        known = _check_status(status)
        _bound(_statuses, TABLE_SIZE)
        _statuses[status] = known
    return known


def _read_fields(headers: list[tuple[str, str]], status: int, first: bytes) -> Fields:
    fields = Fields(status)
    lines = [first]
    for pair in headers:
        field = _fields.get(pair) or _check_field(pair)
        lines.append(fields.act_upon(field) if isinstance(field, Special) else field)
    fields.head = b"".join(lines)
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


def http_date(second: int) -> str:
    """Return a second since 1970 as fields show it (RFC 9110 5.6.7: IMF-fixdate).

    Not strftime: the names of days and months must not follow a locale that the application sets. Nor email.utils, which
    takes longer to import than all that a request needs.
    """
    year, month, day, hour, minute, rest, weekday, _, _ = time.gmtime(second)
    return f"{DAYS[weekday]}, {day:02} {MONTHS[month - 1]} {year:04} {hour:02}:{minute:02}:{rest:02} GMT"


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
            dated = f"Date: {http_date(second)}\r\n".encode("ascii")
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
    status = str.__str__(status)
    if not STATUS.fullmatch(status):
        raise ValueError(f"expected a status like '200 OK', found {status!r}")
    return int(status[:3]), f"HTTP/1.1 {status[:3]} {status[4:]}\r\n".encode("latin-1")


def _check_field(pair: tuple[str, str]) -> bytes | Special:
    if not isinstance(pair, tuple) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
        raise TypeError(f"expected {HEADER_FORM}, found {pair!r}")
    # What a subclass of str holds is what is checked and sent, whatever its own methods say.
    name, value = map(str.__str__, pair)
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
        _bound(_fields, TABLE_SIZE)
        _fields[(name, value)] = field
    return field


def _find_role(name: str, value: str) -> Role | None:
    if name in HOP_BY_HOP:
        return _drop(name, value)
    role = ROLES.get(name)
    if role is Role.LENGTH and not LENGTH.fullmatch(value):
        raise ValueError(f"expected Content-Length to be a number of bytes, found {value!r}")
    return role


def _drop(name: str, value: str) -> Role:
    """Have a field left out that is about a connection, and warn of the first one of its name."""
    if name == TRANSFER_ENCODING and not REMOVED_CODINGS.issuperset(value.lower().replace(",", " ").split()):
        expected = "the body is to be handed over without a transfer coding (PEP 3333)"
        raise ValueError(f"the header {name}: {value} belongs to the server, {expected}")
    if name not in _dropped:
        _dropped.add(name)
        logger.warning(
            "dropped the header %s: %s of the application: it is about the connection (PEP 3333)", name, value
        )
    return Role.HOP_BY_HOP


def _bound(table: dict[Any, Any], most: int) -> None:
    # Starting again costs less than keeping count of what was used last.
    if len(table) >= most:
        table.clear()
