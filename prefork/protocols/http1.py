"""HTTP/1.1 requests out of bytes (RFC 9110, RFC 9112): heads, the framing of bodies, and reasons to refuse.

A head is read in one pass: the request line by one expression, the fields by splitting them once, with one look at all
their bytes for what must not be there. Measured for a head of twelve fields and 700 bytes (CPython 3.11, best of many):
6.5 us for the fields, where a pass of httptools takes 7.0 us until it has come to the same (3.4 us for its callbacks
alone; then line ends, repeated names and CGI names are still to be checked), one expression for all fields 8.2 us, and
a table of lines as much as it saves if half of them are known. A test has llhttp read whatever is accepted here.

What clients do repeat is found again in tables (memo.py): whole request lines and blocks, which are all fields of a
head. A connection's last block is compared first, since most clients say the same each time. Names of fields are few:
their table also answers whether they are valid. What depends on the request line and the block together (Host,
framing, persistence) is judged for every request.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Any, Final, NoReturn
from urllib.parse import unquote_to_bytes

import msgspec

from prefork.protocols.memo import Memo

# What a worker may remember of request lines and of blocks, in bytes.
LINES_ROOM: Final = 2 << 20
BLOCKS_ROOM: Final = 3 << 20
# How many names of fields and good Hosts are remembered, and the longest: less than half a MiB. A full table starts
# again from nothing. A few hundred names are in use (IANA has registered 250).
TABLE_SIZE: Final = 1024
TABLE_NAME_SIZE: Final = 64
# A head may take as much as this many fields of the largest size; nginx has large_client_header_buffers 4.
LARGE_FIELDS: Final = 8
# The most digits of a chunk's size.
MAX_DIGITS: Final = 15

# Expressions here and in forwarded.py take each byte of a client a bounded number of times. Repetitions of one character
# are possessive (``*+``): they give nothing back. Repetitions of groups are not, as CPython before 3.11.5 gets those
# wrong (gh-106052; Debian 12 has 3.11.2): each round of them begins with a character that cannot belong to the one before.

# All of a block's bytes but the control characters; a tab is white space (RFC 9110 5.5).
TEXT: Final = bytes(set(range(256)) - set(range(32)) - {127} | {9})
BLANK_LINES: Final = re.compile(rb"(?:\r\n)*")
TCHARS: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
NAME: Final = re.compile(TCHARS)
# What a partial head may begin with: a method; CR begins a blank line; nothing came yet.
BEGINNINGS: Final = frozenset(
    {bytes([byte]) for byte in range(128) if NAME.fullmatch(chr(byte))} | {b"\r", b""}
)
TARGET: Final = r"[\x21\x22\x24-\x7e]++"  # RFC 9112 3.2 is narrower, but browsers send | and " as they are
REQUEST_LINE: Final = re.compile(rf"({TCHARS}) ({TARGET}) HTTP/([0-9])\.([0-9])")
ABSOLUTE: Final = re.compile(r"[Hh][Tt][Tt][Pp][Ss]?://([^/?]++)(.*)")
# RFC 3986 3.2.2; a future version's literal ([v1.x]) names nothing that exists.
HOST: Final = re.compile(
    r"(?:((?:[A-Za-z0-9._~!$&'()*+,;=-]++|%[0-9A-Fa-f]{2})*)|\[([0-9A-Fa-f:.]++)\])(?::([0-9]{0,5}))?"
)
MAX_PORT: Final = 65535
LENGTH: Final = re.compile(r"[0-9]{1,19}")
MAX_LENGTH: Final = 2**63 - 1
# RFC 9110 5.6.4, and RFC 9112 7.1.1: an extension has a name.
QUOTED: Final = r'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]++|\\[\t \x21-\x7e\x80-\xff])*"'
EXTENSION: Final = rf"[ \t]*+;[ \t]*+{TCHARS}(?:[ \t]*+=[ \t]*+(?:{TCHARS}|{QUOTED}))?"
CHUNK: Final = re.compile(rf"([0-9A-Fa-f]{{1,{MAX_DIGITS}}})((?:{EXTENSION})*)".encode("ascii"))

# What proxies say about the client; read only if they are trusted (forwarded.py).
FORWARDING: Final = frozenset(
    {
        "HTTP_FORWARDED",
        "HTTP_X_FORWARDED_FOR",
        "HTTP_X_FORWARDED_PROTO",
        "HTTP_X_FORWARDED_HOST",
        "HTTP_X_FORWARDED_PREFIX",
    }
)
UNREPEATABLE: Final = frozenset({"HTTP_HOST", "CONTENT_LENGTH", "CONTENT_TYPE"})
# A field whose CGI name is that of the variable naming an outgoing proxy (httpoxy, CVE-2016-5385).
POISON: Final = "PROXY"
# What must not stand in trailers (RFC 9110 6.5.1); Go's net/http refuses the same three.
NO_TRAILERS: Final = frozenset({"transfer-encoding", "content-length", "trailer"})


class Refusal(Exception):  # noqa: N818 (it is an answer to be sent, not a fault of ours)
    """A request that is not going to be served.

    Args:
        status: the status to answer with.
        reason: what was found and what was expected, for the client's author to read.

    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason


class RequestLine:
    """What one request line says.

    Attributes:
        method: as it came; methods are tokens, and which of them there are is for the application to say.
        target: as it came.
        path: decoded from percent-encoding into latin-1, as PEP 3333 wants it; empty for ``*``.
        query: what follows the first question mark, as it came.
        protocol: ``HTTP/1.1`` or ``HTTP/1.0``; a later minor version counts as 1.1 (RFC 9110 2.5).
        authority: host and port of a target in absolute form (RFC 9112 3.2.2), which overrule the Host field.
        what: method and path, for people to read.
        variables: what it says as CGI does (RFC 3875 4.1), and as servers for WSGI do.
        told: what a log has made of it, with its maker, for the next request.
        is_plain: whether there is nothing else to it: HTTP/1.1 without an authority.

    """

    __slots__ = (
        "authority",
        "is_1_1",
        "is_plain",
        "method",
        "path",
        "protocol",
        "query",
        "target",
        "told",
        "variables",
        "what",
    )

    def __init__(self, method: str, target: str, protocol: str) -> None:
        self.method = method
        self.target = target
        self.protocol = protocol
        self.is_1_1 = protocol == "HTTP/1.1"
        self.authority, local = None, target
        if target[0] != "/" or method == "CONNECT":
            self.authority, local = _split_target(method, target)
        path, _, self.query = local.partition("?")
        self.path = unquote_to_bytes(path).decode("latin-1") if "%" in path else path
        self.what = f"{method} {path or target}".encode("latin-1")
        self.variables = {
            "REQUEST_METHOD": method,
            "PATH_INFO": self.path,
            "QUERY_STRING": self.query,
            "REQUEST_URI": target,
            "RAW_URI": target,
            "SERVER_PROTOCOL": protocol,
        }
        self.is_plain = self.is_1_1 and self.authority is None
        self.told: tuple[object, Any] | None = None

    def __str__(self) -> str:
        return self.what.decode("latin-1")


class Block:
    """What all fields of a head say together.

    Attributes:
        raw: its bytes, with the line breaks that end the head.
        fields: values by CGI name (RFC 3875 4.1.18: ``HTTP_ACCEPT``, ``CONTENT_TYPE``), repeated ones joined.
        is_plain: whether there is nothing in it for the server but how long the body is: a Host, at most a good
            Content-Length, nothing expected, no close.
        length: what a plain block's Content-Length says, 0 without one.
        is_forwarded: whether it says something about a client before the peer.
        asks_close, asks_keep: whether the client wants that of the connection (RFC 9112 9.3).
        told: as a request line's.

    """

    __slots__ = ("asks_close", "asks_keep", "fields", "is_forwarded", "is_plain", "length", "raw", "told")

    def __init__(self, raw: bytes, fields: dict[str, str], max_body: int) -> None:
        self.raw = raw
        self.fields = fields
        self.told: tuple[object, Any] | None = None
        length = fields.get("CONTENT_LENGTH")
        connection = fields.get("HTTP_CONNECTION")
        self.length = 0
        if length is not None:
            self.length = int(length) if LENGTH.fullmatch(length) else max_body + 1
        self.is_plain = (
            "HTTP_HOST" in fields
            and (connection is None or connection == "keep-alive")
            and self.length <= max_body
            and "HTTP_TRANSFER_ENCODING" not in fields
            and "HTTP_EXPECT" not in fields
        )
        self.is_forwarded = not fields.keys().isdisjoint(FORWARDING)
        self.asks_close = self.asks_keep = False
        if connection is not None:
            options = [option.strip() for option in connection.lower().split(",")]
            self.asks_close = "close" in options
            self.asks_keep = "keep-alive" in options


class Head(msgspec.Struct):
    """A request's line and fields.

    Attributes:
        line: the request line.
        block: its fields, which it shares with others.
        fields: what they say, by name: not to be changed.
        body: how the body is framed; None without one.
        keep_alive: whether the client wants to go on using the connection.
        expects: whether the client waits for 100 Continue before it sends the body (RFC 9110 10.1.1).
        size: the length of the head in bytes, with all that ended it.

    """

    line: RequestLine
    block: Block
    fields: dict[str, str]
    size: int
    body: Framing | None = None
    expects: bool = False
    keep_alive: bool = True


class Grammar:
    """Reads heads, within limits; what it learns about lines serves all connections of a worker.

    Args:
        max_request_line: bytes of a request line; 414 beyond.
        max_headers: fields of one head; 431 beyond.
        max_header_size: bytes of one field's line, and of a body's chunk extensions and trailers together; 431 beyond.
        max_body: bytes of a body, decoded; 413 beyond.

    """

    def __init__(self, max_request_line: int, max_headers: int, max_header_size: int, max_body: int) -> None:
        self._max_request_line = max_request_line
        self._max_headers = max_headers
        self._max_header_size = max_header_size
        self._max_body = max_body
        self._max_head = max_request_line + LARGE_FIELDS * max_header_size
        self._lines: Memo[bytes, RequestLine] = Memo(LINES_ROOM, _memory_of_line)
        self._blocks: Memo[bytes, Block] = Memo(BLOCKS_ROOM, _memory_of_block)
        self._names: dict[str, str] = {}  # by the names as they came, with their colons
        self._hosts: set[str] = set()

    def read_head(self, data: bytes, last: Block | None = None) -> Head | None:
        """Return the head that ``data`` begins with, or None if its end has not come yet.

        Args:
            data: what has come.
            last: the fields of the connection's last request: most clients say the same each time.

        Raises Refusal, and may do so before the end came.

        """
        first_end = data.find(b"\r\n")
        if last is not None and first_end > 0 and data.startswith(last.raw, first_end + 2):
            first, block, size = data[:first_end], last, first_end + 2 + len(last.raw)
            return self._judge(self._lines.get(first) or self._read_line(first), block, size)
        size = data.find(b"\r\n\r\n") + 4
        if size < 4:
            self._check_beginning(data)
            return None
        if not first_end:
            return self._skip_blank_lines(data)
        first, raw = data[:first_end], data[first_end + 2 : size]
        line = self._lines.get(first) or self._read_line(first)
        return self._judge(line, self._blocks.get(raw) or self._read_block(raw), size)

    def _judge(self, line: RequestLine, block: Block, size: int) -> Head:
        if size > self._max_head + 4:
            raise self._too_large(0)
        head = Head(line, block, block.fields, size)
        if not (line.is_plain and block.is_plain):
            self._judge_together(head, block)
        elif block.length:
            head.body = Counted(block.length)
        return head

    def _skip_blank_lines(self, data: bytes) -> Head | None:
        # RFC 9112 2.2: some clients end a body with a line break that its length does not count.
        found = BLANK_LINES.match(data)
        assert found is not None, "nothing at all matches too"
        if found.end() > self._max_head:
            raise Refusal(400, "nothing but blank lines")
        head = self.read_head(data[found.end() :])
        if head is not None:
            head.size += found.end()
        return head

    def _check_beginning(self, data: bytes) -> None:
        """Refuse what nothing can turn into a valid head, rather than wait for its end."""
        if data[:1] not in BEGINNINGS:
            raise Refusal(400, "a request begins with a method")
        first = data.find(b"\r\n", 2)  # behind a blank line, if there is one
        if first > self._max_request_line + 2 or (first < 0 and len(data) > self._max_request_line + 3):
            raise Refusal(414, f"the request line is longer than {self._max_request_line} bytes")
        if len(data) > self._max_head + 3:
            raise self._too_large(data.count(b"\r\n"))
        if data.count(b"\n") != data.count(b"\r\n"):
            raise Refusal(400, "a line ends with LF, expected CR LF")

    def _too_large(self, count: int) -> Refusal:
        if count > self._max_headers:
            return Refusal(431, f"{count} fields, at most {self._max_headers} are accepted")
        return Refusal(431, f"the head is larger than {self._max_head} bytes")

    def _read_line(self, first: bytes) -> RequestLine:
        """Read a request line that is not in the table."""
        if len(first) > self._max_request_line:
            raise Refusal(414, f"a request line of {len(first)} bytes, at most {self._max_request_line}")
        found = REQUEST_LINE.fullmatch(first.decode("latin-1"))
        if found is None:
            _refuse_line(first.decode("latin-1"))
        method, target, major, minor = found.groups()
        if major != "1":
            raise Refusal(505, "expected HTTP/1.1 or HTTP/1.0")
        line = RequestLine(method, target, "HTTP/1.0" if minor == "0" else "HTTP/1.1")
        self._lines.offer(first, line)
        return line

    def _read_block(self, raw: bytes) -> Block:
        """Read all fields of a head, with the line breaks that end it, that are not in the table."""
        lines = raw.decode("latin-1").split("\r\n")
        # Each CR and each LF is part of a line break, and there are no other control characters.
        if raw.translate(None, TEXT) != b"\r\n" * (len(lines) - 1):
            raise Refusal(400, "a control character in a field")
        del lines[-2:]  # the empty line, and what comes behind it
        if len(lines) > self._max_headers:
            raise self._too_large(len(lines))
        if len(raw) > self._max_header_size:
            self._check_sizes(lines)
        # A known name ends, with its colon, at the first blank; all others are looked at more closely.
        blanks = None if raw.isascii() else " \t"  # beyond ASCII there are others, which are part of a value
        names = self._names
        fields: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(" ")
            try:
                fields[names[name]] = value.strip(blanks)
            except KeyError:
                key, value = self._split_field(line)
                fields[key] = value
        if len(fields) != len(lines):
            fields = self._join(lines)
        fields.pop("", None)
        if "HTTP_HOST" in fields and fields["HTTP_HOST"] not in self._hosts:
            self._learn_host(fields["HTTP_HOST"])
        block = Block(raw, fields, self._max_body)
        self._blocks.offer(raw, block)
        return block

    def _check_sizes(self, lines: list[str]) -> None:
        size = max(map(len, lines))
        if size > self._max_header_size:
            raise Refusal(431, f"a field of {size} bytes, at most {self._max_header_size} are accepted")

    def _split_field(self, line: str) -> tuple[str, str]:
        """Return the CGI name and the value of a field; its name may be new."""
        name, colon, value = line.partition(":")
        if not colon:
            raise Refusal(400, "a field without a colon")
        key = self._names.get(name + colon)
        if key is None:
            key = _name_for_cgi(name)
            if len(name) <= TABLE_NAME_SIZE:
                if len(self._names) >= TABLE_SIZE:
                    self._names.clear()
                self._names[name + colon] = key
        return key, value.strip(" \t")

    def _join(self, lines: list[str]) -> dict[str, str]:
        """Return fields of which some are repeated (RFC 9110 5.3; RFC 6265 5.4 for cookies)."""
        fields: dict[str, str] = {}
        for line in lines:
            key, value = self._split_field(line)
            if key not in fields:
                fields[key] = value
            elif key in UNREPEATABLE:
                raise Refusal(400, f"a second {key.removeprefix('HTTP_').replace('_', '-').title()} field")
            else:
                fields[key] += ("; " if key == "HTTP_COOKIE" else ",") + value
        return fields

    def _learn_host(self, host: str) -> None:
        if not is_host(host):
            raise Refusal(400, "Host is not a host with an optional port")
        if len(host) <= TABLE_NAME_SIZE:
            if len(self._hosts) >= TABLE_SIZE:
                self._hosts.clear()
            self._hosts.add(host)

    def _judge_together(self, head: Head, block: Block) -> None:
        """Judge what no line says alone: Host, framing, persistence, expectation."""
        fields, line = head.fields, head.line
        if line.is_1_1 and "HTTP_HOST" not in fields:
            raise Refusal(400, "no Host field")
        if line.authority is not None:
            head.fields = {**fields, "HTTP_HOST": line.authority}
        if "CONTENT_LENGTH" in fields or "HTTP_TRANSFER_ENCODING" in fields:
            head.body = self._frame(head)
        head.keep_alive = not block.asks_close and (line.is_1_1 or block.asks_keep)
        if "HTTP_EXPECT" in fields:
            _expect(head)

    def _frame(self, head: Head) -> Framing | None:
        fields = head.fields
        coding = fields.get("HTTP_TRANSFER_ENCODING")
        if coding is not None:
            if not head.line.is_1_1:
                raise Refusal(400, "Transfer-Encoding in HTTP/1.0")  # RFC 9112 6.1: its framing is faulty
            if "CONTENT_LENGTH" in fields:
                raise Refusal(400, "both Transfer-Encoding and Content-Length")
            if coding.lower() != "chunked":
                raise Refusal(400, "the one transfer coding that is accepted is chunked")
            return Chunked(self._max_body, self._max_header_size)
        length = fields["CONTENT_LENGTH"]
        if not LENGTH.fullmatch(length) or int(length) > MAX_LENGTH:
            raise Refusal(400, "Content-Length is not a number of bytes")
        if int(length) > self._max_body:
            raise Refusal(413, f"a body of {length} bytes, at most {self._max_body} are accepted")
        return Counted(int(length)) if int(length) else None


class Counted:
    """A body framed by Content-Length."""

    __slots__ = ("is_done", "left")

    def __init__(self, length: int) -> None:
        self.left = length
        self.is_done = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the part of ``data`` that belongs to the body, and the rest, which does not."""
        piece = data[: self.left]
        self.left -= len(piece)
        self.is_done = not self.left
        return piece, data[len(piece) :]


class Chunked:
    """A body in the chunked coding (RFC 9112 7.1). Its trailers are judged and dropped: merged, they would inject.

    Args:
        max_body: bytes of the decoded body; 413 beyond.
        max_extra: bytes of all chunk extensions and trailers, which mean nothing to anybody; 431 beyond. Go's net/http
            bounds them as well (CVE-2023-39326).

    Attributes:
        size: bytes of the decoded body that have been announced; all of them once ``is_done``.

    """

    __slots__ = ("_inside", "_left", "_max_body", "_pending", "_room", "is_done", "size")

    def __init__(self, max_body: int, max_extra: int) -> None:
        self.is_done = False
        self._max_body = max_body
        self._room = max_extra
        self._pending = b""
        self.size = 0
        self._left = 0  # of the present chunk's data and of the line break behind it
        self._inside = True  # before the last chunk; after it come trailers

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Return what ``data`` adds to the decoded body, and the rest, which is empty until the end came.

        Raises Refusal; what was decoded before it is lost, as the request is.
        """
        data = self._pending + data
        self._pending = b""
        pieces: list[bytes] = []
        at = 0
        while not self.is_done:
            if self._left > 2:
                piece = data[at : at + self._left - 2]
                pieces.append(piece)
                self._left -= len(piece)
                at += len(piece)
            step = self._step(data, at)
            if step is None:
                self._pending = data[at:]
                return b"".join(pieces), b""
            at = step
        return b"".join(pieces), data[at:]

    def _step(self, data: bytes, at: int) -> int | None:
        """Read a chunk's end, a chunk's beginning or a trailer; return where it ends, None if that has not come."""
        if self._left:
            return self._end_chunk(data, at)
        end = data.find(b"\r\n", at)
        if end < 0:
            self._wait(data, at)
            return None
        line = data[at:end]
        if not self._inside:
            self._read_trailer(line)
        else:
            self._begin_chunk(line)
        return end + 2

    def _wait(self, data: bytes, at: int) -> None:
        if b"\n" in data[at:]:
            raise Refusal(400, "a line of a chunked body ends with LF, expected CR LF")
        if len(data) - at > self._room + MAX_DIGITS + 1:  # a CR may be there already
            raise Refusal(431, "a line of a chunked body is too long")

    def _begin_chunk(self, line: bytes) -> None:
        found = CHUNK.fullmatch(line)
        if found is None:
            raise Refusal(400, "a chunk's line is not a hexadecimal size with valid extensions")
        self._take_room(len(found[2]))
        size = int(found[1], 16)
        self.size += size
        if self.size > self._max_body:
            raise Refusal(413, f"a chunked body of more than {self._max_body} bytes")
        self._inside = size > 0
        self._left = size + 2 if size else 0

    def _end_chunk(self, data: bytes, at: int) -> int | None:
        if self._left > 2:
            return None
        found = data[at : at + 2]
        if not b"\r\n".startswith(found):
            raise Refusal(400, "a chunk is longer than its size")
        if len(found) < 2:
            return None
        self._left = 0
        return at + 2

    def _read_trailer(self, line: bytes) -> None:
        if not line:
            self.is_done = True
            return
        self._take_room(len(line))
        _check_trailer(line)

    def _take_room(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise Refusal(431, "the chunk extensions and trailers are too large")


Framing = Counted | Chunked


def _memory_of_line(first: bytes, _line: RequestLine) -> int:
    """Return how many bytes a table takes that keeps a line, about: itself, what it says in seven pieces, and in a log."""
    return 2000 + 6 * len(first)


def _memory_of_block(raw: bytes, block: Block) -> int:
    """Return how many bytes a table takes that keeps a block, about: its bytes twice, a text for each value, a log's."""
    return 1500 + 140 * len(block.fields) + 2 * len(raw)


def is_host(text: str) -> bool:
    """Return whether this is a host, possibly empty, with an optional port (RFC 9110 7.2)."""
    found = HOST.fullmatch(text)
    if found is None or int(found[3] or 0) > MAX_PORT:
        return False
    try:
        return found[2] is None or bool(IPv6Address(found[2]))
    except ValueError:
        return False


def _refuse_line(line: str) -> NoReturn:
    """Say what is wrong with a request line."""
    method, *others = line.split(" ")
    if not NAME.fullmatch(method):
        raise Refusal(400, "a request begins with a method")
    if len(others) != 2 or not re.fullmatch(TARGET, others[0]):
        raise Refusal(400, "the request line is not a method, a target and a version")
    raise Refusal(400, "the request line does not end with a version")


def _check_trailer(line: bytes) -> None:
    name, colon, _ = line.decode("latin-1").partition(":")
    if line.translate(None, TEXT) or not colon or not NAME.fullmatch(name):
        raise Refusal(400, "a trailer is not a name, a colon and a value")
    if name.lower() in NO_TRAILERS:
        raise Refusal(400, f"{name} is no trailer")


def _split_target(method: str, target: str) -> tuple[str | None, str]:
    """Return the authority, if the target has one, and the target in origin form (RFC 9112 3.2)."""
    if method == "CONNECT":
        if not is_host(target) or ":" not in target:
            raise Refusal(400, "the target of CONNECT is not a host and a port")
        raise Refusal(501, "this is no proxy")
    if target.startswith("/"):
        return None, target
    if target == "*" and method == "OPTIONS":
        return None, ""
    absolute = ABSOLUTE.fullmatch(target)
    # RFC 9110 4.2.1: a URL with an empty host is invalid, though the Host field may be empty.
    if absolute is None or absolute[1].startswith(":") or not is_host(absolute[1]):
        raise Refusal(400, "the target is neither a path nor a URL")
    path = absolute[2]
    return absolute[1], path if path.startswith("/") else "/" + path


def _name_for_cgi(name: str) -> str:
    """Return a field's name as CGI has it (RFC 3875 4.1.18); an empty one if the field has to be dropped.

    An underscore would make it look like another field: X_Forwarded_For like X-Forwarded-For.
    """
    if not NAME.fullmatch(name):
        raise Refusal(400, "the name of a field is not a token")
    key = name.upper().replace("-", "_")
    if "_" in name or key == POISON:
        return ""
    return key if key in ("CONTENT_LENGTH", "CONTENT_TYPE") else "HTTP_" + key


def _expect(head: Head) -> None:
    if head.fields["HTTP_EXPECT"].lower() != "100-continue":
        raise Refusal(417, "the one expectation that is known is 100-continue")
    # RFC 9110 10.1.1: from a client of HTTP/1.0 it is ignored, and without a body there is nothing to wait for.
    head.expects = head.line.is_1_1 and head.body is not None
