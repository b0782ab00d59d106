"""The access log of one worker: entries are collected, and written together before the loop waits.

Writing never waits. To a file goes one write(2) per batch, to a pipe or a terminal pieces of whole lines of which the
kernel takes all or nothing (PIPE_BUF, pipe(7)), so that the lines of many workers never mix. What finds no room is
kept up to a limit and tried again; further lines are counted as lost, which the server's log says.
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import stat
import threading
import time
from typing import Final

from prefork.handlers.access import (
    CLIENT_LEFT,
    NOTHING,
    Clock,
    Entry,
    Ids,
    Server,
    compile_format,
    wants_id,
)
from prefork.log import close_file, logger

PIPE_BUF: Final = select.PIPE_BUF
NEWLINE: Final = ord("\n")
# How many bytes may wait for a destination that takes nothing.
MAX_BACKLOG: Final = 1 << 20
# How long after a failure the next attempt is made, at first and at most.
FIRST_PAUSE: Final = 0.05
LAST_PAUSE: Final = 5.0
# How long a worker that leaves waits for a reader that is slow.
LAST_WAIT: Final = 0.5


class AccessLog:
    """Makes the lines of one worker and writes them.

    Args:
        text: the format.
        server: who serves.
        descriptor: where to write; closed when another one takes its place.

    Attributes:
        ids: gives each request an id, if the format shows it.

    """

    def __init__(self, text: str, server: Server, descriptor: int) -> None:
        self._text = text
        self._clock = Clock(time.monotonic(), time.time())
        self._format = compile_format(text, server, self._clock)
        self._format_short = compile_format(text, server, self._clock, PIPE_BUF)
        self.ids = Ids() if wants_id(text) else None
        self._lines: list[str] = []
        self._writer = Writer(descriptor)
        # The loop writes, and so does the thread that hears the master when it reopens the log or has to leave.
        self._lock = threading.Lock()
        self._settle()

    @property
    def due(self) -> float:
        """When ``flush`` has to be called next, on the monotonic clock."""
        return self._writer.due

    def end(self, entry: Entry, now: float) -> None:
        """Make the line of a request whose answer is over, one way or another."""
        if now >= self._clock.until:
            self._clock.tell(now, time.time())
        if not entry.sent:
            entry.status = CLIENT_LEFT
        if entry.sent < entry.head_size:
            entry.head_size = entry.sent
        entry.done = now
        line = self._format(entry)
        self._lines.append(line if len(line) <= self._longest else self._format_short(entry))
        entry.head = NOTHING
        entry.sent = entry.received = 0
        entry.since = 0.0

    def flush(self, now: float) -> None:
        """Write what has been collected."""
        if self._lines or now >= self._writer.due:
            self._flush(now)

    def flush_last(self) -> None:
        """Write what has been collected; the process is about to end."""
        self._flush(math.inf)

    def reopen(self, descriptor: int) -> None:
        """Write to another descriptor from now on."""
        with self._lock:
            self._write(math.inf)
            self._writer.reopen(descriptor)
            self._settle()

    def close(self) -> None:
        """Write what can still be written, and say what cannot."""
        with self._lock:
            self._write(math.inf)
            self._writer.finish()

    def _flush(self, now: float) -> None:
        with self._lock:
            self._write(now)

    def _write(self, now: float) -> None:
        # The loop may go on appending meanwhile: these are the first ones, and only they are taken away.
        lines = self._lines[:]
        del self._lines[: len(lines)]
        self._writer.write("".join(lines).encode(), len(lines), now)

    def _settle(self) -> None:
        """Find out how long a line may be: beyond PIPE_BUF the kernel may put other workers' lines in between."""
        wide = len(self._text.encode()) - len(self._text)  # what others count in bytes we count in characters
        self._longest = math.inf if self._writer.is_file else PIPE_BUF - wide


class Writer:
    """Writes whole lines to a descriptor without ever waiting for it.

    Attributes:
        is_file: whether it is a regular file, which takes lines of any length.
        due: when to try again, on the monotonic clock; infinite while nothing waits.

    """

    def __init__(self, descriptor: int) -> None:
        self.due = math.inf
        self._waiting = bytearray()
        self._is_torn = False
        self._is_slow = False
        self._lost = 0
        self._pause = 0.0
        self._attach(descriptor)

    def write(self, data: bytes, lines: int, now: float) -> None:
        """Write lines behind those that wait already; keep what finds no room, or count it as lost."""
        if not self._waiting or len(self._waiting) + len(data) <= MAX_BACKLOG:
            self._waiting += data
        else:
            self._lost += lines
        if self._waiting and (now >= self.due or not self._pause):
            self._try(now)

    def reopen(self, descriptor: int) -> None:
        """Write to another descriptor; the old one is closed."""
        if self._is_torn:  # the rest of a line whose beginning stays behind
            del self._waiting[: self._waiting.find(b"\n") + 1]
            self._is_torn = False
            self._lost += 1
        close_file(self._descriptor)
        if self._socket is not None:
            self._socket.close()
        self._attach(descriptor)
        if self._waiting:
            self._try(math.inf)

    def finish(self) -> None:
        """Wait a little for a slow reader, then give up and say what is lost."""
        until = time.monotonic() + LAST_WAIT
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        while self._waiting and self._is_slow and (wait := until - time.monotonic()) > 0:
            if poll.poll(wait * 1000):
                self._try(math.inf)
        self._lost += self._waiting.count(b"\n")
        if self._lost:
            logger.error("%d lines of the access log are lost: its destination is full or gone", self._lost)

    def _attach(self, descriptor: int) -> None:
        self._descriptor = descriptor
        mode = os.fstat(descriptor).st_mode
        self.is_file = stat.S_ISREG(mode)
        self._socket = _socket_of(descriptor) if stat.S_ISSOCK(mode) else None
        self._must_ask = not self.is_file and self._socket is None and os.get_blocking(descriptor)

    def _try(self, now: float) -> None:
        """Write what waits, as far as there is room."""
        try:
            while self._waiting:
                self._write_piece()
        except OSError as error:
            self._fail(error, now)
        else:
            self.due = math.inf
            if self._pause:
                self._recover()

    def _write_piece(self) -> None:
        size = len(self._waiting) if self.is_file else _piece(self._waiting)
        with memoryview(self._waiting) as view:
            written = self._send(view[:size])
        self._is_torn = 0 < written < size and self._waiting[written - 1] != NEWLINE
        del self._waiting[:written]

    def _send(self, data: memoryview) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if self._must_ask and not _has_room(self._descriptor):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return os.write(self._descriptor, data)

    def _fail(self, error: OSError, now: float) -> None:
        self._is_slow = isinstance(error, BlockingIOError)
        if not self._pause:
            reason = "its reader does not read" if self._is_slow else error.strerror
            logger.error(
                "the access log cannot be written: %s; lines wait, and the next ones will be lost", reason
            )
        self._pause = min(2 * self._pause, LAST_PAUSE) or FIRST_PAUSE
        self.due = (time.monotonic() if now == math.inf else now) + self._pause

    def _recover(self) -> None:
        self._pause = 0.0
        if self._lost:
            logger.warning("the access log is written again; %d of its lines were lost", self._lost)
        else:
            logger.info("the access log is written again; none of its lines was lost")
        self._lost = 0


def _piece(data: bytearray) -> int:
    """Return the size of as many whole lines as the kernel takes all or not at all."""
    if len(data) <= PIPE_BUF:
        return len(data)
    return (data.rfind(b"\n", 0, PIPE_BUF) if b"\n" in data[:PIPE_BUF] else data.find(b"\n")) + 1


def _socket_of(descriptor: int) -> socket.socket:
    return socket.socket(fileno=os.dup(descriptor))


def _has_room(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(flags & select.POLLOUT for _, flags in poll.poll(0))
