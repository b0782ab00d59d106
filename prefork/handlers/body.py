"""The body of a request, gathered whole before the application is called: in memory first, then in a file."""

from __future__ import annotations

import io
import tempfile
from typing import BinaryIO

# Forms and JSON documents stay below it; nginx's client_body_buffer_size is 16 KiB.
MEMORY: int = 65536


class Body:
    """Gathers the pieces of one body.

    Attributes:
        size: bytes gathered so far.

    """

    __slots__ = ("_file", "_first", "size")

    def __init__(self) -> None:
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
    # The file has no name in any folder, so nothing is left behind whatever happens. Without a buffer a full disk shows
    # while pieces come, and not when what is left of them is flushed, by reading or by closing.
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (read_back's caller closes it)
    _write(file, memory.getbuffer())
    return file


def _write(file: io.BytesIO | io.FileIO, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:  # a disk that becomes full takes a part first
        rest = rest[file.write(rest) :]
