"""What a program prints, line by line into the log.

A burst waits in the pipe, and then the program does: so memory stays bounded, and neither the log nor the worker's other
duties starve. Lines wait for a slow reader of the log, but a reader that is stuck does not keep a program for ever.
"""

from __future__ import annotations

import codecs
import fcntl
import os
import select
import stat
import time
from collections import deque
from contextlib import suppress

from prefork.log import Destination, logger
from prefork.system.privileges import Account
from prefork.system.unread import unread

# Docker's limit as well: who reads logs is prepared for lines of this length.
MAX_LINE = 16384
# In a pipe only PIPE_BUF bytes stay together when several processes write to it (pipe(7)); a record's head is among them.
MAX_LINE_IN_PIPE = select.PIPE_BUF - 256
READ_SIZE = 16384
# What may still be in a pipe at its end (fcntl(2), F_SETPIPE_SZ: pipe-max-size).
MAX_REST = 1024 * 1024
# How long a line waits for a log that takes nothing: a slow reader loses none, a stuck one does not halt the program.
PATIENCE = 5.0
# Half of a pipe is left to the records of the master and of the workers, which do not wait. Looked at so often:
PAUSE = 0.002
# So much of what was printed last is shown with a failed start.
LAST_LINES = 20
CUT = "…"
# After such a pause a line that has not ended is shown as far as it has come: it may be a prompt.
UNFINISHED = 1.0


class Lines:
    """Cuts a stream of bytes into lines; a line that is too long, into pieces, with a mark at each cut."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pending = b""
        self._is_cut = False

    def feed(self, data: bytes) -> list[str]:
        """Return the lines and pieces that have become complete."""
        *complete, self._pending = (self._pending + data).split(b"\n")
        found = [piece for line in complete for piece in self._whole(line)]
        while len(self._pending) > self._limit:
            found.append(self._cut())
        return found

    def rest(self) -> list[str]:
        """Return what there is after the last line's end."""
        line, self._pending = self._pending, b""
        return self._whole(line) if line else []

    def part(self) -> list[str]:
        """Return what has come of a line that has not ended, as one more piece; no character is cut."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(self._pending)
        size = len(self._pending) - len(decoder.getstate()[0])
        return [self._piece(size)] if size else []

    def _whole(self, line: bytes) -> list[str]:
        pending, self._pending = self._pending, line
        found = []
        while len(self._pending) > self._limit:
            found.append(self._cut())
        found.append(self._text(self._pending.removesuffix(b"\r")))
        self._pending, self._is_cut = pending, False
        return found

    def _cut(self) -> str:
        """Take one piece off, and no character in the middle of its bytes."""
        at = self._limit
        while at > self._limit - 4 and self._pending[at] & 0xC0 == 0x80:
            at -= 1
        return self._piece(at)

    def _piece(self, at: int) -> str:
        piece, self._pending = self._pending[:at], self._pending[at:]
        text = self._text(piece) + CUT
        self._is_cut = True
        return text

    def _text(self, line: bytes) -> str:
        return (CUT if self._is_cut else "") + line.decode("utf-8", "backslashreplace")


class Output:
    """The pipe that a program's standard output and standard error go to.

    Attributes:
        descriptor: the end to read from, and to wait for.
        writer: the program's end; to be closed here once the program has it.
        last: the latest lines.
        due: when to ``show_unfinished``, on the monotonic clock; None while that is never.

    Args:
        destination: the log.
        account: whom the program runs as, if not as this process.

    """

    def __init__(self, destination: Destination, account: Account | None = None) -> None:
        self.descriptor, self.writer = os.pipe()
        os.set_blocking(self.descriptor, False)
        if account is not None:
            _give(self.writer, account)
        self.due: float | None = None
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self._destination = destination
        kind = os.fstat(destination.descriptor).st_mode
        self._lines = Lines(MAX_LINE if stat.S_ISREG(kind) else MAX_LINE_IN_PIPE)
        self._is_pipe = stat.S_ISFIFO(kind)
        destination.patience = PATIENCE

    def hand_on(self) -> bool:
        """Log a piece of what has been printed; return False at the end of file."""
        try:
            data = os.read(self.descriptor, READ_SIZE)
        except BlockingIOError:
            return True
        self._log(self._lines.feed(data))
        self.due = time.monotonic() + UNFINISHED if data and not data.endswith(b"\n") else None
        return bool(data)

    def show_unfinished(self) -> None:
        """Log what has come of a line that has not ended."""
        self.due = None
        self._log(self._lines.part())

    def finish(self) -> None:
        """Log all that is left, once nobody is left who would print more."""
        left = MAX_REST
        while left > 0 and (data := self._read_rest()):
            self._log(self._lines.feed(data))
            left -= len(data)
        self._log(self._lines.rest())

    def _read_rest(self) -> bytes:
        try:
            return os.read(self.descriptor, READ_SIZE)
        except BlockingIOError:
            return b""  # somebody elsewhere was handed the pipe, and keeps it

    def _log(self, lines: list[str]) -> None:
        for line in lines:
            if self._is_pipe and not self._destination.lost:
                _wait_for_half(self._destination.descriptor)
            logger.info("| %s", line, extra={"figures": {"message": line, "output": True}})
        self.last.extend(lines)


def _give(pipe: int, account: Account) -> None:
    """Let a user open the pipe that it prints to by its name, /dev/stdout: that takes rights which writing does not."""
    with suppress(OSError):  # in a user namespace that does not have this user
        os.fchown(pipe, account.uid, account.gid)


def _wait_for_half(pipe: int) -> None:
    """Wait, with PATIENCE, until no more than half of a pipe is full; poll(2) tells only of the last page."""
    if not hasattr(fcntl, "F_GETPIPE_SZ"):
        return
    half, until = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) // 2, time.monotonic() + PATIENCE
    while unread(pipe) > half and time.monotonic() < until:
        time.sleep(PAUSE)
