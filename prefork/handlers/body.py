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

    __slots__ = ("_file", "size")

    def __init__(self) -> None:
        self.size = 0
        self._file: BinaryIO = io.BytesIO()

    def add(self, piece: bytes) -> None:
        """Append a piece. Raises OSError when the disk is full."""
        self.size += len(piece)
        if self.size > MEMORY and isinstance(self._file, io.BytesIO):
            self._spill(self._file)
        self._file.write(piece)

    def read_back(self) -> BinaryIO:
        """Return the whole body for reading from its beginning."""
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Give up what was gathered."""
        self._file.close()

    def _spill(self, memory: io.BytesIO) -> None:
        # The file has no name in any folder, so nothing is left behind whatever happens.
        self._file = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115 (read_back's caller closes it)
        self._file.write(memory.getvalue())
