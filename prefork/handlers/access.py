r"""One line of the access log per request, made so that it can be read back whatever a client has sent. Pure.

In text a value never contains what ends it: ``"``, ``\``, the first character of what the template puts behind it, and
all that is not printable ASCII appear as ``\xHH``, a byte each, as nginx writes them. A value that is missing is ``-``
(``\-`` before a hyphen); one that is a hyphen is ``\x2D``. In JSON a value is a string of the bytes' characters in ISO 8859-1, or null. What is too
long for the destination is cut, and then ends with ``\...`` or ``…``, which no whole value can.
"""

from __future__ import annotations

import base64
import binascii
import math
import os
import re
import time
from collections.abc import Callable
from enum import Enum
from functools import lru_cache, partial
from itertools import count
from json.encoder import encode_basestring_ascii  # what json.dumps(str) comes to, five times as fast
from operator import itemgetter, methodcaller
from typing import Any, Final, NamedTuple

from prefork.config.access import JSON, TEMPLATES, parse_template
from prefork.handlers.response import MONTHS
from prefork.protocols.http1 import Block, Head, RequestLine

# What is kept of a line or a block for its next entry, in characters; the tables of http1.py count on it.
PART_SIZE: Final = 512
# How many clients' addresses are kept as they are written.
CLIENTS: Final = 256
# Room for a figure, when a line's length is bounded: 2**64 has 20 digits.
FIGURE_SIZE: Final = 30
LEAST_VALUE_SIZE: Final = 16
# What the JSON object takes at most beside its texts of any length, and how many of those there are: target, referer,
# agent and host. Where the request line was not understood it may be three texts, but then there are no others.
JSON_SIZE: Final = 1024
JSON_TEXTS: Final = 4
# How much is shown of what is no request line.
RAW_SIZE: Final = 2048
SAFE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
REQUEST_ID: Final = "HTTP_X_REQUEST_ID"
# 499 is nginx's: there is no standard status for a client that did not wait for its answer.
CLIENT_LEFT: Final = 499


class RawLine:
    """What came in place of a request line and was refused, the beginning of it: taken apart as far as it is one."""

    __slots__ = ("method", "path", "protocol", "query", "target", "text", "told")

    def __init__(self, data: bytes) -> None:
        self.told: tuple[object, Any] | None = None
        first, _, _ = data.lstrip(b"\r\n")[:RAW_SIZE].partition(b"\n")
        self.text = first.removesuffix(b"\r").decode("latin-1")
        parts = self.text.split(" ")
        self.method, self.target, self.protocol = parts if len(parts) == 3 else ("", "", "")
        self.path, _, self.query = self.target.partition("?")


class RawHead:
    """What came in place of a request's head."""

    __slots__ = ("fields", "line", "size")
    block = Block(b"", {}, 0)

    def __init__(self, data: bytes) -> None:
        self.line = RawLine(data)
        self.fields: dict[str, str] = {}
        self.size = len(data)


NOTHING: Final = RawHead(b"")
Line = RequestLine | RawLine
AnyHead = Head | RawHead


class Entry:
    """What is known of the request that a connection is about; filled in on its way by whoever serves it.

    Attributes:
        client, port: the client's, empty on a Unix socket.
        head: the request's.
        status: the answer's.
        head_size: bytes of the answer's head that were sent.
        sent: bytes of the answer, head included, that were sent.
        received: bytes of the request's body, as they came.
        request_id: the request's, if the format shows it and there was one to be told.
        since: when its first byte came, on the monotonic clock; 0 between requests.
        done: when its answer was done.
        waited: seconds for which it waited for a thread.

    """

    __slots__ = (
        "client",
        "done",
        "head",
        "head_size",
        "port",
        "received",
        "request_id",
        "sent",
        "since",
        "status",
        "waited",
    )

    def __init__(self, client: str, port: str) -> None:
        self.client = client
        self.port = port
        self.head: Head | RawHead = NOTHING
        self.status = 0
        self.head_size = 0
        self.sent = 0
        self.received = 0
        self.request_id = ""
        self.since = 0.0
        self.done = 0.0
        self.waited = 0.0


class Server(NamedTuple):
    """Who serves: the same in every line of a worker."""

    pool: str
    slot: int
    generation: int
    pid: int


class Clock:
    """The time of day for log lines; its text is made once a second.

    Args:
        monotonic, wall: the present moment on both clocks.

    Attributes:
        text: the second as in the common log format.
        until: when ``tell`` has to be called next, on the monotonic clock.

    """

    __slots__ = ("_iso", "_second", "_start", "text", "until")
    text: str
    until: float

    def __init__(self, monotonic: float, wall: float) -> None:
        self.tell(monotonic, wall)

    def tell(self, monotonic: float, wall: float) -> None:
        """Take over the time of day, which may have been set."""
        second = math.floor(wall)
        moment = time.gmtime(second)
        self._second = second
        self._start = monotonic - (wall - second)
        self.until = self._start + 1.0
        # Not strftime: the names of months must not follow a locale that the application sets.
        month = MONTHS[moment.tm_mon - 1]
        clock = f"{moment.tm_hour:02}:{moment.tm_min:02}:{moment.tm_sec:02}"
        self.text = f"{moment.tm_mday:02}/{month}/{moment.tm_year:04}:{clock} +0000"
        self._iso = f"{moment.tm_year:04}-{moment.tm_mon:02}-{moment.tm_mday:02}T{clock}"

    def iso(self, monotonic: float) -> str:
        """Return a moment of this second as in ISO 8601, with milliseconds."""
        return f"{self._iso}{FRACTIONS[int((monotonic - self._start) * 1000) % 1000]}Z"

    def unix(self, monotonic: float) -> str:
        """Return a moment of this second in seconds since 1970."""
        return f"{self._second}{FRACTIONS[int((monotonic - self._start) * 1000) % 1000]}"


FRACTIONS: Final = tuple(f".{number:03d}" for number in range(1000))

Getter = Callable[[Any], Any]
Format = Callable[[Entry], str]
Escape = Callable[[Any], str]


class Source(Enum):
    """What a field of an entry is read from."""

    ENTRY = "entry"
    LINE = "line"
    FIELDS = "fields"


# What is written for a request line or a block is kept there (``told``, with its maker), for the next request that has
# it: a table beside them would hold what never comes again. Values by themselves are written as fast as they are found.


def _of_line(write: Callable[[Line], Any], measure: Callable[[Any], int] = len) -> Callable[[Line], Any]:
    """Return what gives the part of a line; ``write`` makes it, ``measure`` tells how long it is."""

    def part(line: Line) -> Any:
        told = line.told
        if told is not None and told[0] is write:
            return told[1]
        written = write(line)
        if measure(written) <= PART_SIZE:
            line.told = (write, written)
        return written

    return part


def _of_fields(
    write: Callable[[dict[str, str]], Any], measure: Callable[[Any], int] = len
) -> Callable[[AnyHead], Any]:
    """Return what gives the part of a head's fields, likewise."""

    def part(head: AnyHead) -> Any:
        block, fields = head.block, head.fields
        told = block.told
        if fields is not block.fields:
            return write(fields)
        if told is not None and told[0] is write:
            return told[1]
        written = write(fields)
        if measure(written) <= PART_SIZE:
            block.told = (write, written)
        return written

    return part


def _of_clients(escape: Escape, missing: str) -> Escape:
    """Return what writes addresses: a proxy's clients come again, and no address is long."""
    return lru_cache(CLIENTS)(lambda client: escape(client) if client else missing)


def _measure_texts(texts: tuple[Any, ...]) -> int:
    return sum(map(len, texts))


def compile_format(text: str, server: Server, clock: Clock, longest: int | None = None) -> Format:
    """Return a function that makes an entry's line, with its end.

    Args:
        text: the value of ``access_format``.
        server: who serves.
        clock: tells the time of day.
        longest: how many bytes the line may have at most, for which each value gets its share; None: any number.

    """
    if text == JSON:
        return _json(server, clock, None if longest is None else (longest - JSON_SIZE) // JSON_TEXTS)
    pieces = parse_template(TEMPLATES.get(text, text))
    room = None if longest is None else _room(pieces, longest)
    if text in TEMPLATES:
        return (_common if text == "common" else _combined)(clock, room)
    return _compile(pieces, server, clock, room)


def wants_id(text: str) -> bool:
    """Return whether a format shows the request's id."""
    return text == JSON or "request_id" in parse_template(TEMPLATES.get(text, text))[1::2]


class Ids:
    """Gives requests an id each, unless they bring a safe one."""

    def __init__(self) -> None:
        self._prefix = os.urandom(8).hex()
        self._numbers = count(1)

    def identify(self, head: Head) -> str:
        """Return the request's X-Request-ID if that is safe, else a new one."""
        given = head.fields.get(REQUEST_ID)
        if given is not None and SAFE_ID.fullmatch(given):
            return given
        return f"{self._prefix}-{next(self._numbers)}"


# The formats that nearly everybody uses are written out: a call per field would cost thrice as much. A test holds the
# first two against their templates.


def _common(clock: Clock, room: int | None) -> Format:
    quoted, unquoted = _text_escape('"', room), _text_escape(" ", room)
    clients = _of_clients(unquoted, "-")
    users = _of_fields(lambda fields: _or_missing(unquoted, _user_of(fields)))
    requests = _of_line(lambda line: _or_missing(quoted, _request(line)))

    def make(entry: Entry) -> str:
        head = entry.head
        return (
            f"{clients(entry.client)} - {users(head)} [{clock.text}]"
            f' "{requests(head.line)}" {entry.status} {entry.sent - entry.head_size}\n'
        )

    return make


def _combined(clock: Clock, room: int | None) -> Format:
    quoted, unquoted = _text_escape('"', room), _text_escape(" ", room)

    def write(fields: dict[str, str]) -> tuple[str, str]:
        referer, agent = (_or_missing(quoted, fields.get(key)) for key in ("HTTP_REFERER", "HTTP_USER_AGENT"))
        return _or_missing(unquoted, _user_of(fields)), f'"{referer}" "{agent}"\n'

    clients = _of_clients(unquoted, "-")
    texts = _of_fields(write, _measure_texts)
    requests = _of_line(lambda line: _or_missing(quoted, _request(line)))

    def make(entry: Entry) -> str:
        head = entry.head
        user, rest = texts(head)
        return (
            f"{clients(entry.client)} - {user} [{clock.text}]"
            f' "{requests(head.line)}" {entry.status} {entry.sent - entry.head_size} {rest}'
        )

    return make


def _json(server: Server, clock: Clock, room: int | None) -> Format:
    escape = _json_escape(room)
    lines = _of_line(partial(_json_line, escape))
    rests = _of_fields(partial(_json_fields, escape))
    clients = _of_clients(escape, "null")
    who = (
        f'"pool":"{server.pool}","slot":{server.slot},"generation":{server.generation},"pid":{server.pid}}}\n'
    )

    def make(entry: Entry) -> str:
        head, done, sent = entry.head, entry.done, entry.sent
        # Hardly ever the same again, so not looked for in a table; and nothing in it has to be escaped.
        identity = f'"{entry.request_id}"' if entry.request_id else "null"
        return (
            f'{{"time":"{clock.iso(done)}","client":{clients(entry.client)},{lines(head.line)},'
            f'"status":{entry.status},"bytes":{sent - entry.head_size},"sent":{sent},'
            f'"received":{entry.received + head.size},{rests(head)},'
            f'"microseconds":{int((done - entry.since) * 1e6)},"waited":{int(entry.waited * 1e6) if entry.waited else 0},'
            f'"request_id":{identity},{who}'
        )

    return make


def _json_line(escape: Escape, line: Line) -> str:
    method, target, protocol = (
        escape(text) if text else "null" for text in (line.method, line.target, line.protocol)
    )
    return f'"method":{method},"target":{target},"protocol":{protocol}'


def _json_fields(escape: Escape, fields: dict[str, str]) -> str:
    referer, agent, host = map(fields.get, ("HTTP_REFERER", "HTTP_USER_AGENT", "HTTP_HOST"))
    return (
        f'"referer":{"null" if referer is None else escape(referer)},'
        f'"agent":{"null" if agent is None else escape(agent)},"host":{"null" if host is None else escape(host)}'
    )


def _or_missing(escape: Escape, value: str | None) -> str:
    return "-" if value is None else escape(value)


# All others: a getter per field. What the line and the fields of a head say is kept with them, together.


def _compile(pieces: tuple[str, ...], server: Server, clock: Clock, room: int | None) -> Format:
    constants = _constants(server)
    getters: dict[Source, list[Getter]] = {source: [] for source in Source}
    places: list[tuple[Source, int]] = []
    form = _literal(pieces[0])
    for name, after in zip(pieces[1::2], pieces[2::2], strict=True):
        if name in constants:
            form += _literal(constants[name])
        else:
            form += "%s"
            source, getter = _getter(name, clock, after[:1], room)
            places.append((source, len(getters[source])))
            getters[source].append(getter)
        form += _literal(after)
    return _fill(form + "\n", getters, places)


def _fill(form: str, getters: dict[Source, list[Getter]], places: list[tuple[Source, int]]) -> Format:
    """Return what fills a form with what the getters get; for each place, whose it is and its number there."""
    own, of_line, of_fields = (getters[source] for source in Source)
    before = {Source.ENTRY: 0, Source.LINE: len(own), Source.FIELDS: len(own) + len(of_line)}
    order = [before[source] + number for source, number in places]
    arrange = itemgetter(*order) if order else lambda _values: ()
    lines = _of_line(lambda line: tuple([getter(line) for getter in of_line]), _measure_texts)
    rests = _of_fields(lambda fields: tuple([getter(fields) for getter in of_fields]), _measure_texts)

    def make(entry: Entry) -> str:
        head = entry.head
        return form % arrange((*[getter(entry) for getter in own], *lines(head.line), *rests(head)))

    return make


def _literal(text: str) -> str:
    return text.replace("%", "%%")


def _constants(server: Server) -> dict[str, str]:
    return {
        "worker": f"{server.pool}/{server.slot}",
        "pool": server.pool,
        "slot": str(server.slot),
        "generation": str(server.generation),
        "pid": str(server.pid),
    }


def _room(pieces: tuple[str, ...], longest: int) -> int:
    """Return how many characters each text may have at most."""
    names = pieces[1::2]
    texts = sum(name not in FIGURES and name not in MOMENTS for name in names)
    used = sum(len(piece.encode()) for piece in pieces[::2]) + FIGURE_SIZE * (len(names) - texts + 1)
    return max(LEAST_VALUE_SIZE, (longest - used) // max(1, texts))


def _getter(name: str, clock: Clock, stop: str, room: int | None) -> tuple[Source, Getter]:
    """Return what a field is read from, and what gets it from there."""
    if name in FIGURES:
        return Source.ENTRY, FIGURES[name]
    if name in MOMENTS:
        return Source.ENTRY, MOMENTS[name](clock)
    escape, missing = _text_escape(stop, room), "\\-" if stop == "-" else "-"
    if name in ATTRIBUTES:
        read: Callable[[Any], str | None] = ATTRIBUTES[name]
        return Source.ENTRY, lambda entry: escape(value) if (value := read(entry)) else missing
    source, read = Source.LINE, LINES.get(name, _user_of)
    if name not in LINES:
        source = Source.FIELDS
        if name != "user":
            key = FIELD_KEYS.get(name) or _key(name.removeprefix("header."))
            read = methodcaller("get", key)
    return source, lambda found: missing if (value := read(found)) is None else escape(value)


def _key(name: str) -> str:
    key = name.upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"


def _user_of(fields: dict[str, str]) -> str | None:
    """Return the name in the field Authorization, if it is of the scheme Basic (RFC 7617)."""
    scheme, _, credentials = fields.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, colon, _ = base64.b64decode(credentials.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return name.decode("latin-1") if colon else None


def _request(line: Line) -> str | None:
    if isinstance(line, RawLine):
        return line.text or None
    return f"{line.method} {line.target} {line.protocol}"


def _text_escape(stop: str, room: int | None) -> Escape:
    """Return what makes a value one that ``stop`` ends, and no longer than ``room``."""
    # One class, without an alternative, is tried in two fifths of the time.
    safe = "".join(sign for sign in map(chr, range(32, 127)) if sign not in ('"', "\\", stop))
    unsafe = re.compile(f"[^{re.escape(safe)}]")

    def escape(value: str) -> str:
        if value == "-":
            return "\\x2D"
        written = value if unsafe.search(value) is None else unsafe.sub(_hexadecimal, value)
        if room is None or len(written) <= room:
            return written
        return (
            unsafe.sub(_hexadecimal, _cut(value, room - 4, lambda sign: 4 if unsafe.match(sign) else 1))
            + "\\..."
        )

    return escape


def _hexadecimal(found: re.Match[str]) -> str:
    return f"\\x{ord(found[0]):02X}"


def _json_escape(room: int | None) -> Escape:
    if room is None:
        return encode_basestring_ascii

    def escape(value: str) -> str:
        written = encode_basestring_ascii(value)
        if len(written) <= room:
            return written
        return encode_basestring_ascii(_cut(value, room - 8, _json_size) + "…")

    return escape


def _json_size(sign: str) -> int:
    return len(encode_basestring_ascii(sign)) - 2


def _cut(value: str, room: int, size: Callable[[str], int]) -> str:
    """Return as much of the beginning of a value as has room when written."""
    for number, sign in enumerate(value):
        room -= size(sign)
        if room < 0:
            return value[:number]
    return value


def _microseconds(entry: Entry) -> int:
    return max(0, int((entry.done - entry.since) * 1e6))


FIGURES: Final[dict[str, Getter]] = {
    "status": lambda entry: entry.status,
    "bytes": lambda entry: entry.sent - entry.head_size,
    "sent": lambda entry: entry.sent,
    "received": lambda entry: entry.received + entry.head.size,
    "microseconds": _microseconds,
    "seconds": lambda entry: f"{_microseconds(entry) / 1e6:.6f}",
    "waited": lambda entry: int(entry.waited * 1e6),
}
MOMENTS: Final[dict[str, Callable[[Clock], Getter]]] = {
    "time": lambda clock: lambda _entry: clock.text,
    "iso_time": lambda clock: lambda entry: clock.iso(entry.done),
    "unix_time": lambda clock: lambda entry: clock.unix(entry.done),
}
LINES: Final[dict[str, Callable[[Line], str | None]]] = {
    "request": _request,
    "method": lambda line: line.method or None,
    "target": lambda line: line.target or None,
    "path": lambda line: line.path or None,
    "query": lambda line: line.query,
    "protocol": lambda line: line.protocol or None,
}
ATTRIBUTES: Final[dict[str, Callable[[Entry], str]]] = {
    "client": lambda entry: entry.client,
    "client_port": lambda entry: entry.port,
    "request_id": lambda entry: entry.request_id,
}
FIELD_KEYS: Final = {"referer": "HTTP_REFERER", "agent": "HTTP_USER_AGENT", "host": "HTTP_HOST"}
