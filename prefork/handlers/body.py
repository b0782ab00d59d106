"""The body of a request, gathered whole before the application is called: in memory first, then in a file."""

from __future__ import annotations

import errno
import io
import os
import tempfile
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Forms and JSON documents stay below it; nginx's client_body_buffer_size is 16 KiB.
MEMORY: int = 65536
# What all larger bodies of one worker together may take of memory, where no folder can be written to: a few uploads of
# photographs, and no reason for the kernel to kill a container of the usual size.
MEMORY_FILES: int = 64 * 2**20


def choose_storage() -> str | None:
    """Find out where bodies above MEMORY go; return a warning if that is not a file in some folder."""
    global _open_file
    try:
        tempfile.gettempdir()
    except OSError as error:
        consequence = "are refused"
        if hasattr(os, "memfd_create"):
            _open_file = MemoryFile
            consequence = (
                f"are kept in memory, up to {MEMORY_FILES >> 20} MiB per worker, and refused beyond that"
            )
        remedy = "mount a tmpfs at /tmp, or set TMPDIR"
        return f"{error.strerror}: bodies above {MEMORY >> 10} KiB {consequence}; {remedy}"
    return None


def _open_temporary() -> io.FileIO:
    # The file has no name in any folder, so nothing is left behind whatever happens. Without a buffer a full disk shows
    # while pieces come, and not when what is left of them is flushed, by reading or by closing.
    return tempfile.TemporaryFile(buffering=0)


_open_file: Callable[[], io.FileIO] = _open_temporary


class MemoryFile(io.FileIO):
    """A file in memory that belongs to no folder (memfd_create(2)); all of them share ``MEMORY_FILES``."""

    _lock = threading.Lock()  # the loop writes, and the application's threads close
    _taken = 0

    def __init__(self) -> None:
        super().__init__(os.memfd_create("prefork-body", os.MFD_CLOEXEC), "r+")
        self._size = 0

    def write(self, data: ReadableBuffer) -> int:
        """Append data. Raises OSError when there is no room."""
        size = memoryview(data).nbytes
        if not self._take(size):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)

    def close(self) -> None:
        """Give the memory back."""
        if not self.closed:
            self._take(-self._size)
        super().close()

    def _take(self, size: int) -> bool:
        with MemoryFile._lock:
            if MemoryFile._taken + size > MEMORY_FILES:
                return False
            MemoryFile._taken += size
        self._size += size
        return True


class Body:
    """Gathers the pieces of one body.

    Args:
        began: when its first piece was awaited, in seconds of the monotonic clock.

    Attributes:
        size: bytes gathered so far.

    """

    __slots__ = ("_began", "_file", "_first", "size")

    def __init__(self, began: float = 0.0) -> None:
        self._began = began
        self.size = 0
        self._first = b""  # most bodies come in one piece, which is never copied then
        self._file: io.BytesIO | io.FileIO | None = None

    def add(self, piece: bytes) -> None:
        """Append a piece. Raises OSError when the disk is full."""
        self.size += len(piece)
        if self._file is None and not self._first and self.size <= MEMORY:
            self._first = piece
            return
        if self._file is None:
            self._file = io.BytesIO()
            self._file.write(self._first)
        if self.size > MEMORY and isinstance(self._file, io.BytesIO):
            self._file = _spill(self._file)
        _write(self._file, piece)

    def is_slow(self, now: float, rate: int, grace: float) -> bool:
        """Return whether fewer bytes per second came on average than ``rate``, ``grace`` seconds aside.

        So does Apache's mod_reqtimeout count (``body=20,MinRate=500``): each byte prolongs the time that a body has.
        """
        return (now - self._began - grace) * rate > self.size

    def read_back(self) -> BinaryIO:
        """Return the whole body for reading from its beginning."""
        if self._file is None:
            return io.BytesIO(self._first)
        self._file.seek(0)
        return io.BufferedReader(self._file) if isinstance(self._file, io.FileIO) else self._file

    def close(self) -> None:
        """Give up what was gathered."""
        if self._file is not None:
            self._file.close()


def _spill(memory: io.BytesIO) -> io.FileIO:
    file = _open_file()  # read_back's caller closes it
    _write(file, memory.getbuffer())
    return file


def _write(file: io.BytesIO | io.FileIO, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:  # a disk that becomes full takes a part first
        rest = rest[file.write(rest) :]
