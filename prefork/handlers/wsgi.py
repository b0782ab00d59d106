"""Running a WSGI application (PEP 3333): a request's head and body in, pieces of an answer out.

Nothing here touches a connection. Whoever holds it asks for the next pieces when the last ones are on their way, so
the same code serves an application that runs in the event loop and one that runs in threads.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, BinaryIO, Final, NamedTuple, NoReturn

from prefork.config.schema import Http
from prefork.handlers import response
from prefork.handlers.access import REQUEST_ID
from prefork.handlers.body import Body
from prefork.handlers.context import end_copy, exit_code
from prefork.handlers.peer import Trust, believe, mount
from prefork.handlers.response import Fields
from prefork.log import logger
from prefork.protocols.http1 import Block, Chunked, Counted, Grammar, Head, Refusal

__all__ = [
    "Block",
    "Body",
    "Counted",
    "Cut",
    "Exchange",
    "FileSpan",
    "FileWrapper",
    "Head",
    "Refusal",
    "WsgiApp",
    "WsgiHandler",
]

# What each request says for itself. The keys are in the common part already, so that a copy is born with room for
# them: growing a dictionary costs more than copying it.
OWN: Final = dict.fromkeys(
    (
        "REMOTE_ADDR",
        "REMOTE_PORT",
        "REQUEST_METHOD",
        "PATH_INFO",
        "QUERY_STRING",
        "REQUEST_URI",
        "RAW_URI",
        "SERVER_PROTOCOL",
        "wsgi.input",
    )
)
# A body below it is copied behind its head, so that both go out in one plain send, which costs less than to send two
# pieces.
SMALL: Final = 8192
PLAIN_FILES: Final = (io.BufferedReader, io.BufferedRandom, io.FileIO)
BODILESS: Final = frozenset({204, 205, 304})
# What ends a head, with what it says about its connection.
END: Final = b"\r\n"
KEEP: Final = b"Connection: keep-alive\r\n\r\n"
CLOSE: Final = b"Connection: close\r\n\r\n"
# In seconds; a balancer or another worker has room sooner than that, and a second keeps clients from hammering.
RETRY_AFTER: Final = b"Retry-After: 1\r\n"

Environ = dict[str, Any]
Pieces = list[bytes]
Sink = Callable[[Pieces], object]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]
StartResponse = Callable[..., Callable[[bytes], object]]
WsgiApp = Callable[[Environ, StartResponse], Iterable[bytes]]


class Cut(Exception):  # noqa: N818 (what has to happen to the connection, not a fault of its holder)
    """An answer has begun and cannot be completed."""


class FileSpan(NamedTuple):
    """A part of a file that is to be sent: its descriptor, the first byte, the number of bytes."""

    descriptor: int
    offset: int
    size: int


class FileWrapper:
    """``wsgi.file_wrapper``: an iterable of a file's blocks, which the server may send in a faster way.

    It has the file's own seek, tell and seekable, if there are any: Werkzeug's send_file looks for them, and would read
    up to a range's beginning otherwise.
    """

    def __init__(self, filelike: Any, blksize: int = 65536) -> None:
        self._filelike = filelike
        self._blksize = blksize
        for name in ("close", "seek", "tell", "seekable"):
            method = getattr(filelike, name, None)
            if method is not None:
                setattr(self, name, method)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        block: bytes = self._filelike.read(self._blksize)
        if not block:
            raise StopIteration
        return block

    def span(self) -> FileSpan | None:
        """Return what is left to read as a part of a regular file, or None if it is not surely that.

        A fileno() alone proves nothing: that of a GzipFile is the compressed file's.
        """
        if type(self._filelike) not in PLAIN_FILES:
            return None
        raw = getattr(self._filelike, "raw", self._filelike)
        if not isinstance(raw, io.FileIO):
            return None
        status = os.fstat(raw.fileno())
        if not stat.S_ISREG(status.st_mode):
            return None
        offset = self._filelike.tell()
        # Those of /proc are made as they are read, and said to be empty before.
        return FileSpan(raw.fileno(), offset, status.st_size - offset) if offset < status.st_size else None


class WsgiHandler:
    """What all requests of one worker have in common.

    Args:
        application: the user's.
        http: the limits of requests.
        threads: how many threads of this process call the application.
        leave: called when the application asks for the end of its process (``sys.exit``).

    Attributes:
        draining: whether answers tell the client that its connection ends with them.
        is_named: whether answers name the server; ``stamp`` makes their fields accordingly.
        wrote: called after each piece that an application writes by PEP 3333's ``write``; may raise Cut.

    """

    def __init__(
        self, application: WsgiApp, http: Http, threads: int, leave: Callable[[SystemExit], None]
    ) -> None:
        self.application = application
        self.leave = leave
        self.draining = False
        self.is_named = http.server_header
        self.wrote: Callable[[Exchange], object] | None = None
        self.stamp = response.stamp if http.server_header else response.unnamed
        self._root = http.root_path.encode("utf-8").decode("latin-1")
        self.grammar = Grammar(http.max_request_line, http.max_headers, http.max_header_size, http.max_body)
        self._constant: Environ = {
            "SCRIPT_NAME": self._root,
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": threads > 1,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
            "wsgi.file_wrapper": FileWrapper,
        }

    def environ_of(self, name: str, port: str) -> Environ:
        """Return what all requests have in common that came in at one address."""
        return {**self._constant, "SERVER_NAME": name, "SERVER_PORT": port, **OWN}

    def refuse(self, refusal: Refusal, *, with_body: bool) -> bytes:
        """Return the answer to a request that is not served; it is the connection's last one."""
        more = RETRY_AFTER if refusal.status == 503 else b""
        status, reason, named = refusal.status, refusal.reason, self.is_named
        return response.plain(status, reason, close=True, body=with_body, more=more, named=named)

    def exchange(
        self,
        head: Head,
        body: BinaryIO,
        common: Environ,
        host: str,
        port: str,
        trust: Trust | None = None,
    ) -> Exchange:
        """Return the exchange for one request, not begun yet.

        Args:
            head: the request's.
            body: the request's, whole, at its beginning; closed by ``finish``.
            common: from ``environ_of``.
            host: the client's address.
            port: the client's port.
            trust: whom to believe about the client, if the peer is one of those.

        Raises Refusal if trusted proxies contradict each other.

        """
        environ = common.copy()
        environ["REMOTE_ADDR"] = host
        environ["REMOTE_PORT"] = port
        environ.update(head.line.variables)
        environ.update(head.fields)
        if trust is not None and head.block.is_forwarded:
            claims = trust.read(head.fields)
            believe(environ, claims)
            mount(environ, self._root, claims.prefix)
        elif self._root:
            mount(environ, self._root, None)
        environ["wsgi.input"] = body
        if isinstance(head.body, Chunked):
            # The application gets the body decoded and whole: its length is known, the coding is gone.
            environ["CONTENT_LENGTH"] = str(head.body.size)
            del environ["HTTP_TRANSFER_ENCODING"]
        return Exchange(self, head, environ, body)


class Exchange:
    """One request and its answer.

    Call ``start`` once, then ``pull`` until ``is_over``, then ``finish``; ``finish`` in any case.

    Attributes:
        is_over: whether there is nothing left to pull; ``file`` may be left to be sent.
        file: what is to be sent behind the last pieces.
        head_size: the size of the answer's head in bytes, once it has begun.
        keep_alive: whether the connection can be used for the next request.
        is_last: whether the client said that this is its last request.
        status: the answer's, once it has begun.
        what: method and path, for people to read.
        time_left: seconds until the application's next piece is due, kept by whoever runs it; 0 for as many as it likes.
        stream_until: when an answer in pieces is to be cut, likewise; 0: not known yet.

    """

    __slots__ = (
        "_body",
        "_environ",
        "_fields",
        "_handler",
        "_has_begun",
        "_head",
        "_is_bodiless",
        "_is_chunked",
        "_iterator",
        "_left",
        "_result",
        "_sink",
        "file",
        "head_size",
        "is_last",
        "is_over",
        "keep_alive",
        "status",
        "stream_until",
        "time_left",
        "what",
    )

    def __init__(self, handler: WsgiHandler, head: Head, environ: Environ, body: BinaryIO) -> None:
        self.is_over = False
        self.file: FileSpan | None = None
        self.keep_alive = head.keep_alive
        self.is_last = not head.keep_alive
        self.what = head.line.what
        self.time_left = self.stream_until = 0.0
        self._handler = handler
        self._head = head
        self._environ = environ
        self._body = body
        self._fields: Fields | None = None
        self._has_begun = False
        self._is_bodiless = False
        self._is_chunked = False
        self._left: int | None = None
        self._result: Iterable[bytes] | None = None

    def identify(self, request_id: str) -> None:
        """Tell the application which id the request has in the access log; before ``start``."""
        self._environ[REQUEST_ID] = request_id

    @property
    def client(self) -> tuple[str, str]:
        """Return the client's address and port, which trusted proxies may have told; until ``start``."""
        return self._environ["REMOTE_ADDR"], self._environ["REMOTE_PORT"]

    @property
    def looks_whole(self) -> bool:
        """Return whether a client would take what it has got of the answer for all: its end is the connection's."""
        has_framing = self._is_chunked or self._is_bodiless or self._left is not None
        return self._has_begun and not has_framing

    def start(self, sink: Sink) -> Pieces:
        """Call the application; return the head of the answer and what is known of its body.

        Args:
            sink: takes what the application writes by PEP 3333's ``write``, before this returns; may raise Cut.

        Raises Cut when the answer has begun and cannot be completed.

        """
        self._sink = sink
        try:
            result = self._result = self._handler.application(self._environ, self._start_response)
            end_copy()
            if result.__class__ is list or result.__class__ is tuple:
                return self._take_whole(result)
            if isinstance(result, FileWrapper) and (span := result.span()) is not None:
                return self._take_file(span, result)
            return self._take_first(result)
        except Cut:
            raise
        except BaseException as error:  # noqa: BLE001 (whatever an application raises is an answer of 500)
            return self._fail(error)

    def pull(self) -> Pieces:
        """Return the next pieces; none, when the application has nothing more to say.

        Raises Cut when the application fails.
        """
        try:
            for piece in self._iterator:
                end_copy()
                if piece:
                    return self._frame(piece)
            end_copy()
        except BaseException as error:  # noqa: BLE001 (as above, but the answer has begun)
            self._report(error)
            raise Cut from None
        return self._end()

    def finish(self) -> None:
        """Tell the application that the answer is over, one way or another."""
        self._sink = _too_late  # by now the connection may be about the next request
        result, self._result = self._result, None
        try:
            close = getattr(result, "close", None)
            if close is not None:
                close()
        except BaseException as error:  # noqa: BLE001 (as above)
            self._report(error)
        self._body.close()

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        if exc_info is not None:
            try:
                if self._has_begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # PEP 3333: no reference cycle through the traceback
        elif self._fields is not None:
            raise AssertionError("start_response was called a second time without exc_info")
        fields = self._fields = response.read_head(status, headers)
        self.status = fields.status
        return self._write

    def _write(self, data: bytes) -> None:
        _check_piece(data)
        if not data:
            return
        head = [] if self._has_begun else [self._begin(None)]
        self._sink([*head, *self._frame(data)])
        if self._handler.wrote is not None:
            self._handler.wrote(self)

    def _take_whole(self, result: list[bytes] | tuple[bytes, ...]) -> Pieces:
        body = result[0] if len(result) == 1 else b"".join(result)
        if body.__class__ is not bytes:
            _check_piece(body)
        if self._has_begun:
            return [*(self._frame(body) if body else []), *self._end()]
        head = self._begin(len(body))
        self.is_over = True
        if self._is_bodiless:
            return [head]
        if self._left != len(body):
            return [head, *self._limit(body), *self._end()]
        return [head + body] if len(body) < SMALL else [head, body]

    def _take_file(self, span: FileSpan, wrapper: FileWrapper) -> Pieces:
        if self._has_begun:
            return self._take_first(wrapper)
        head = self._begin(span.size)
        self.is_over = True
        if self._left:
            self.file = span._replace(size=min(span.size, self._left))
            self._compare_length(self.file.size)
        return [head]

    def _take_first(self, result: Iterable[bytes]) -> Pieces:
        """Return the first piece that is not empty, with the head before it: PEP 3333 wants them in this order."""
        self._iterator = _iterate(result)
        piece = next(filter(None, self._iterator), b"")
        _check_piece(piece)
        if self._has_begun:
            return self._frame(piece) if piece else self._end()
        is_whole = not piece or _is_single(result)
        head = self._begin(len(piece) if is_whole else None)
        if is_whole or self._is_bodiless:
            return [head, *(self._frame(piece) if piece else []), *self._end()]
        return [head, *self._frame(piece)]

    def _begin(self, size: int | None) -> bytes:
        """Return the head, having decided on the framing of a body whose size is known or not."""
        if self._fields is None:
            raise AssertionError("the application did not call start_response")
        fields = self._fields
        if self.status in BODILESS or self._head.line.method == "HEAD":
            self._is_bodiless = True
            framing = self._tell_length(fields, size)
        elif fields.length is not None:
            self._left = fields.length
            framing = fields.length_line
        else:
            framing = self._choose_framing(size)
        if self._handler.draining or fields.asks_close:
            self.keep_alive = False
        connection = END
        if not (self.keep_alive and self._head.line.is_1_1):
            connection = KEEP if self.keep_alive else CLOSE
        stamp = self._handler.stamp.lines(fields.has_date, fields.has_server)
        head = b"".join((fields.head, stamp, framing, connection))
        self._has_begun = True
        self.head_size = len(head)
        return head

    def _choose_framing(self, size: int | None) -> bytes:
        if size is not None:
            self._left = size
            return b"Content-Length: %d\r\n" % size
        if self._head.line.is_1_1:
            self._is_chunked = True
            return b"Transfer-Encoding: chunked\r\n"
        self.keep_alive = False  # the body's end is the connection's
        return b""

    def _tell_length(self, fields: Fields, size: int | None) -> bytes:
        # RFC 9110 8.6: the length that GET would have been answered with may be told to HEAD and in 304, but
        # none in 204. An empty body says nothing about it: many applications leave the body of HEAD out.
        if self.status == 205:
            # RFC 9110 15.3.6: without content, but not without framing.
            return b"Content-Length: 0\r\n"
        if fields.length is not None and self.status != 204:
            return fields.length_line
        if size and self.status not in BODILESS:
            return b"Content-Length: %d\r\n" % size
        return b""

    def _frame(self, piece: bytes) -> Pieces:
        _check_piece(piece)
        if self._is_bodiless:
            return []
        if self._is_chunked:
            size = b"%x\r\n" % len(piece)
            return [size + piece + b"\r\n"] if len(piece) < SMALL else [size, piece, b"\r\n"]
        return [piece] if self._left is None else self._limit(piece)

    def _limit(self, piece: bytes) -> Pieces:
        """Return what a Content-Length has room for: the client would take more for the next answer."""
        assert self._left is not None
        if len(piece) > self._left:
            if not isinstance(self._result, FileWrapper):  # of which PEP 3333 wants so much sent, and no more
                self._compare_length(len(piece))
            self.is_over = True
            piece = piece[: self._left]
        self._left -= len(piece)
        return [piece] if piece else []

    def _end(self) -> Pieces:
        self.is_over = True
        if self._is_chunked:
            return [b"0\r\n\r\n"]
        if self._left:
            self._compare_length(0)
        return []

    def _compare_length(self, found: int) -> None:
        """Report a body of another length than the application had announced; its connection ends with it."""
        if self._left is not None and found != self._left:
            self.keep_alive = False
            relation = "longer" if found > self._left else "shorter"
            logger.error("%s: the body is %s than its Content-Length", self._name(), relation)

    def _fail(self, error: BaseException) -> Pieces:
        self._report(error)
        if self._has_begun:
            raise Cut from None
        self.is_over = True
        close = not self.keep_alive or self._handler.draining or not self._head.line.is_1_1
        self.keep_alive = not close
        with_body = self._head.line.method != "HEAD"
        named = self._handler.is_named
        answer = response.plain(500, "Internal Server Error", close=close, body=with_body, named=named)
        self.status, self.head_size = 500, response.head_size(answer)
        return [answer]

    def _report(self, error: BaseException) -> None:
        if isinstance(error, SystemExit):
            end_copy(exit_code(error))
            self.keep_alive = False
            self._handler.leave(error)
        logger.error("%s: the application failed", self._name(), exc_info=error)
        end_copy(1)

    def _name(self) -> str:
        return self.what.decode("latin-1")


def _too_late(_pieces: Pieces) -> NoReturn:
    raise AssertionError("write was called when its answer was over")


def _check_piece(piece: bytes) -> None:
    if not isinstance(piece, bytes):
        raise TypeError(f"expected bytes in the body, found {type(piece).__name__}")


def _iterate(result: Iterable[bytes]) -> Iterator[bytes]:
    try:
        return iter(result)
    except TypeError:
        if hasattr(result, "__iter__"):
            raise
        hint = "; it can be called: is the application a factory?" if callable(result) else ""
        found = f"{type(result).__name__}{hint}"
        raise TypeError(f"expected the application to return an iterable of bytes, found {found}") from None


def _is_single(result: Iterable[bytes]) -> bool:
    """Return whether there is but one piece, as PEP 3333 lets a server find out."""
    try:
        return len(result) == 1  # type: ignore[arg-type]
    except TypeError:
        return False
