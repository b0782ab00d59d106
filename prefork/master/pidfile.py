"""The pid file: held by a lock for as long as the master lives, so that a stale one is no obstacle."""

from __future__ import annotations

import fcntl
import os

from prefork.errors import ListenError


class PidFile:
    """A file that holds this process's number, locked.

    Args:
        path: where it is.
        descriptor: the file's, if the program before this one has written and locked it: the number is the same.

    Raises ListenError if another process holds it, or it cannot be written.

    """

    def __init__(self, path: str, descriptor: int | None = None) -> None:
        self.path = path
        self.descriptor = self._write() if descriptor is None else descriptor

    def close(self) -> None:
        """Remove the file and give up the lock, in this order: nobody else can have taken it in between."""
        found = os.fstat(self.descriptor)
        try:
            there = os.stat(self.path)
            if (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino):
                os.unlink(self.path)
        except FileNotFoundError:
            pass
        os.close(self.descriptor)

    def _write(self) -> int:
        descriptor = self._open()
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        return descriptor

    def _open(self) -> int:
        """Return a descriptor of the locked file that is at the path in the end."""
        while True:
            try:
                os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise ListenError(f"cannot write the pid file {self.path}: {error.strerror}") from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.read(descriptor, 32).decode("ascii", "replace").strip()
                os.close(descriptor)
                raise ListenError(
                    f"the pid file {self.path} is held by a running server, pid {pid}",
                    f"kill -TERM {pid} stops it gracefully",
                ) from None
            if _is_at(self.path, descriptor):
                return descriptor
            os.close(descriptor)


def _is_at(path: str, descriptor: int) -> bool:
    """Tell whether a path still means the open file: its last holder may have removed it just before the lock."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
