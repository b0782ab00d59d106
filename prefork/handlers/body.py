"""The body of a request, gathered whole before the application is called: in memory first, then in a file."""

from __future__ import annotations

import io
import tempfile
from typing import BinaryIO, cast

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
        self._file: BinaryIO | None = None

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
        self._file.write(piece)

    def read_back(self) -> BinaryIO:
        """Return the whole body for reading from its beginning."""
        if self._file is None:
            return io.BytesIO(self._first)
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Give up what was gathered."""
        if self._file is not None:
            self._file.close()


def _spill(memory: io.BytesIO) -> BinaryIO:
    # The file has no name in any folder, so nothing is left behind whatever happens.
    file = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115 (read_back's caller closes it)
    file.write(memory.getvalue())
    return file
