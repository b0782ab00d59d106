"""HTTP/1.1 requests out of bytes (RFC 9110, RFC 9112): heads, the framing of bodies, and reasons to refuse.

Real clients repeat nearly all of their lines, often all fields of a head together, and what these mean depends on
their bytes alone. So a line is judged once, by llhttp and by what llhttp leaves to its user, and afterwards found
again in a bounded table under its bytes; and so is a block, which is all fields of a head. What depends on the
request line and the block together (Host, framing, persistence) is judged for every request.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Final, TypeVar
from urllib.parse import unquote_to_bytes

import httptools
import msgspec

# How many lines and blocks are kept, and the largest: some 8 MiB at most. A full table starts again from nothing,
# which costs less than keeping count of what was used last.
TABLE_LINES: Final = 4096
TABLE_LINE_SIZE: Final = 512
TABLE_BLOCKS: Final = 512
TABLE_BLOCK_SIZE: Final = 4096
# A head may take as much as this many fields of the largest size; nginx has large_client_header_buffers 4.
LARGE_FIELDS: Final = 8
# Chunk extensions mean nothing to anybody; Go's net/http bounds them in all at 16 KiB too (CVE-2023-39326).
MAX_EXTENSIONS: Final = 16384

CONTROLS_OF_FIELD: Final = bytes(set(range(256)) - set(range(32)) - {127} | {9})
BLANK_LINES: Final = re.compile(rb"(?:\r\n)*")
METHOD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Methods that llhttp knows, but not as HTTP/1.1: the preface of HTTP/2, and RTSP.
FOREIGN_METHODS: Final = frozenset(
    b"PRI DESCRIBE ANNOUNCE SETUP PLAY PAUSE TEARDOWN GET_PARAMETER SET_PARAMETER REDIRECT RECORD FLUSH".split()
)
# What a partial head may begin with: a method, known or not; CR begins a blank line; nothing came yet.
BEGINNINGS: Final = frozenset(
    {bytes([byte]) for byte in range(256) if METHOD.fullmatch(bytes([byte]))} | {b"\r", b""}
)
TARGET: Final = re.compile(
    rb"[\x21\x22\x24-\x7e]+"
)  # RFC 9112 3.2 is narrower, but browsers send | and " as they are
ABSOLUTE: Final = re.compile(r"[Hh][Tt][Tt][Pp][Ss]?://([^/?]+)(.*)")
# RFC 3986 3.2.2; a future version's literal ([v1.x]) names nothing that exists.
HOST: Final = re.compile(
    r"(?:((?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{0,5}))?"
)
MAX_PORT: Final = 65535
VERSION: Final = re.compile(rb"HTTP/[0-9]\.[0-9]")
LENGTH: Final = re.compile(r"[0-9]{1,19}")
MAX_LENGTH: Final = 2**63 - 1
CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})([ \t]*;[\t\x20-\x7e\x80-\xff]*)?")

# Fields that a server has to act upon, beside Host, Connection and Content-Length.
MEANINGFUL: Final = frozenset({"HTTP_TRANSFER_ENCODING", "HTTP_EXPECT"})
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
POISON: Final = b"proxy"

T = TypeVar("T")


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
        method: as it came, upper case.
        target: as it came.
        path: decoded from percent-encoding into latin-1, as PEP 3333 wants it; empty for ``*``.
        query: what follows the first question mark, as it came.
        protocol: ``HTTP/1.1`` or ``HTTP/1.0``.
        authority: host and port of a target in absolute form (RFC 9112 3.2.2), which overrule the Host field.
        what: method and path, for people to read.
        variables: what it says as CGI does (RFC 3875 4.1), and as servers for WSGI do.
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
        "variables",
        "what",
    )

    def __init__(self, method: str, target: str, protocol: str) -> None:
        self.method = method
        self.target = target
        self.protocol = protocol
        self.is_1_1 = protocol == "HTTP/1.1"
        self.authority, local = _split_target(method, target)
        path, _, self.query = local.partition("?")
        self.path = unquote_to_bytes(path).decode("latin-1")
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

    """

    __slots__ = ("asks_close", "asks_keep", "fields", "is_forwarded", "is_plain", "length", "raw")

    def __init__(self, raw: bytes, fields: dict[str, str], max_body: int) -> None:
        self.raw = raw
        self.fields = fields
        length = fields.get("CONTENT_LENGTH", "0")
        self.length = int(length) if LENGTH.fullmatch(length) else max_body + 1
        self.is_plain = (
            "HTTP_HOST" in fields
            and fields.get("HTTP_CONNECTION", "keep-alive") == "keep-alive"
            and self.length <= max_body
            and MEANINGFUL.isdisjoint(fields)
        )
        self.is_forwarded = not FORWARDING.isdisjoint(fields)
        options = {option.strip() for option in fields.get("HTTP_CONNECTION", "").lower().split(",")}
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
        max_header_size: bytes of one field's line; 431 beyond.
        max_body: bytes of a body, decoded; 413 beyond.

    """

    def __init__(self, max_request_line: int, max_headers: int, max_header_size: int, max_body: int) -> None:
        self._max_request_line = max_request_line
        self._max_headers = max_headers
        self._max_header_size = max_header_size
        self._max_body = max_body
        self._max_head = max_request_line + LARGE_FIELDS * max_header_size
        self._lines: dict[bytes, RequestLine] = {}
        self._fields: dict[bytes, tuple[str, str]] = {}
        self._blocks: dict[bytes, Block] = {}

    def read_head(self, data: bytes, last: Block | None = None) -> Head | None:
        """Return the head that ``data`` begins with, or None if its end has not come yet.

        Args:
            data: what has come.
            last: the fields of the connection's last request: most clients say the same each time.

        Raises Refusal, and may do so before the end came.

        """
        first_end = data.find(b"\r\n")
        if last is not None and data.startswith(last.raw, first_end + 2):
            line = self._lines.get(data[:first_end])
            if line is not None:
                return self._judge(line, last, first_end + 2 + len(last.raw))
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._check_beginning(data)
            return None
        if not first_end:
            return self._skip_blank_lines(data)
        first = data[:first_end]
        rest = data[first_end + 2 : end]
        line = self._lines.get(first)
        block = self._blocks.get(rest)
        if line is None or block is None:
            line, block = self._learn(first, rest)
        return self._judge(line, block, end + 4)

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

    def _learn(self, first: bytes, rest: bytes) -> tuple[RequestLine, Block]:
        """Judge what is not known yet of a request line and a block, and keep it."""
        fields = rest.split(b"\r\n") if rest else []
        if len(fields) > self._max_headers:
            raise self._too_large(len(fields))
        line = self._lines.get(first) or self._read_line(first)
        unknown = [field for field in fields if field not in self._fields]
        pairs = [self._split_field(field) for field in unknown]
        _ask_llhttp(line, pairs)
        named = {field: self._fields[field] for field in fields if field in self._fields}
        named |= {field: _name_for_cgi(*pair) for field, pair in zip(unknown, pairs, strict=True)}
        raw = rest + b"\r\n\r\n" if rest else b"\r\n"
        block = Block(raw, _merge([named[field] for field in fields]), self._max_body)
        _keep(self._lines, first, line, TABLE_LINES, TABLE_LINE_SIZE)
        _keep(self._blocks, rest, block, TABLE_BLOCKS, TABLE_BLOCK_SIZE)
        for field in unknown:
            _keep(self._fields, field, named[field], TABLE_LINES, TABLE_LINE_SIZE)
        return line, block

    def _read_line(self, first: bytes) -> RequestLine:
        if len(first) > self._max_request_line:
            raise Refusal(414, f"a request line of {len(first)} bytes, at most {self._max_request_line}")
        method, *others = first.split(b" ")
        if not METHOD.fullmatch(method):
            raise Refusal(400, "a request begins with a method")
        if len(others) != 2 or not TARGET.fullmatch(others[0]):
            raise Refusal(400, "the request line is not a method, a target and a version")
        target, version = others
        if not VERSION.fullmatch(version):
            raise Refusal(400, "the request line does not end with a version")
        if version not in (b"HTTP/1.1", b"HTTP/1.0"):
            raise Refusal(505, "expected HTTP/1.1 or HTTP/1.0")
        if method in FOREIGN_METHODS:
            raise Refusal(501, "the method is not known")
        return RequestLine(method.decode("ascii"), target.decode("ascii"), version.decode("ascii"))

    def _split_field(self, field: bytes) -> tuple[bytes, bytes]:
        if len(field) > self._max_header_size:
            raise Refusal(431, f"a field of {len(field)} bytes, at most {self._max_header_size} are accepted")
        return split_field(field)

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
        max_line: bytes of a trailer's line, 431 beyond; and of a chunk's, 400 beyond.

    Attributes:
        size: bytes of the decoded body that have been announced; all of them once ``is_done``.

    """

    __slots__ = ("_extensions", "_inside", "_left", "_max_body", "_max_line", "_pending", "is_done", "size")

    def __init__(self, max_body: int, max_line: int) -> None:
        self.is_done = False
        self._max_body = max_body
        self._max_line = max_line
        self._pending = b""
        self.size = 0
        self._extensions = 0
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
        if len(data) - at > self._max_line + 1:  # a CR may be there already
            raise Refusal(431 if not self._inside else 400, "a line of a chunked body is too long")

    def _begin_chunk(self, line: bytes) -> None:
        found = CHUNK_SIZE.fullmatch(line)
        if found is None or len(line) > self._max_line:
            raise Refusal(400, "a chunk's size is not a hexadecimal number, or its line is too long")
        self._extensions += len(found[2] or b"")
        if self._extensions > MAX_EXTENSIONS:
            raise Refusal(400, "the chunk extensions are too long")
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
        self._extensions += len(line)
        if len(line) > self._max_line or self._extensions > MAX_EXTENSIONS + self._max_line:
            raise Refusal(431, "the trailers are too large")
        _ask_llhttp(None, [split_field(line)])


Framing = Counted | Chunked


def split_field(field: bytes) -> tuple[bytes, bytes]:
    """Return name and value of a field's line, without the white space around the value."""
    if field.translate(None, CONTROLS_OF_FIELD):
        raise Refusal(400, "a control character in a field")
    name, colon, value = field.partition(b":")
    if not colon:
        raise Refusal(400, "a field without a colon")
    return name, value.strip(b" \t")


def is_host(text: str) -> bool:
    """Return whether this is a host, possibly empty, with an optional port (RFC 9110 7.2)."""
    found = HOST.fullmatch(text)
    if found is None or int(found[3] or 0) > MAX_PORT:
        return False
    try:
        return found[2] is None or bool(IPv6Address(found[2]))
    except ValueError:
        return False


def _merge(named: list[tuple[str, str]]) -> dict[str, str]:
    """Return fields by name; values of the same name joined (RFC 9110 5.3, RFC 6265 5.4 for cookies)."""
    merged: dict[str, str] = {}
    for name, value in named:
        if name not in merged:
            merged[name] = value
        elif name in UNREPEATABLE:
            raise Refusal(400, f"a second {name.removeprefix('HTTP_').replace('_', '-').title()} field")
        else:
            merged[name] += ("; " if name == "HTTP_COOKIE" else ",") + value
    merged.pop("", None)
    return merged


def _keep(table: dict[bytes, T], key: bytes, value: T, most: int, largest: int) -> None:
    if len(key) <= largest:
        if len(table) >= most:
            table.clear()
        table[key] = value


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


def _name_for_cgi(name: bytes, content: bytes) -> tuple[str, str]:
    """Return the name and value that a field gets; an empty name if it has to be dropped.

    An underscore would make it look like another field: X_Forwarded_For like X-Forwarded-For.
    """
    name, value = name.lower(), content.decode("latin-1")
    if b"_" in name or name == POISON:
        return "", ""
    if name == b"host" and not is_host(value):
        raise Refusal(400, "Host is not a host with an optional port")
    key = name.decode("ascii").upper().replace("-", "_")
    return (key if key in ("CONTENT_LENGTH", "CONTENT_TYPE") else "HTTP_" + key), value


class _Seen:
    """Counts the fields that llhttp sees."""

    def __init__(self) -> None:
        self.fields = 0

    def on_header(self, _name: bytes, _value: bytes) -> None:
        self.fields += 1


def _ask_llhttp(line: RequestLine | None, pairs: list[tuple[bytes, bytes]]) -> None:
    """Have llhttp judge a request line and fields, in the form in which they were understood here.

    Raises Refusal if it disagrees.
    """
    seen = _Seen()
    first = "GET / HTTP/1.1" if line is None else f"{line.method} {line.target} {line.protocol}"
    fields = b"".join(b"%b:%b\r\n" % pair for pair in pairs)
    try:
        httptools.HttpRequestParser(seen).feed_data(b"%b\r\n%b\r\n" % (first.encode("ascii"), fields))
    except httptools.HttpParserUpgrade:
        pass  # RFC 9110 7.8: a server may ignore Upgrade, and then the message is an ordinary one
    except httptools.HttpParserInvalidMethodError:
        raise Refusal(501, "the method is not known") from None
    except httptools.HttpParserError as error:
        raise Refusal(400, str(error)) from None
    if seen.fields != len(pairs):
        raise Refusal(400, "a field that is more than one")


def _expect(head: Head) -> None:
    if head.fields["HTTP_EXPECT"].lower() != "100-continue":
        raise Refusal(417, "the one expectation that is known is 100-continue")
    # RFC 9110 10.1.1: from a client of HTTP/1.0 it is ignored, and without a body there is nothing to wait for.
    head.expects = head.line.is_1_1 and head.body is not None
