"""The pid file: held by a lock for as long as the master lives, so that a stale one is no obstacle."""

from __future__ import annotations

import fcntl
import os

from prefork.errors import ListenError


class PidFile:
    """A file that holds this process's number, locked.

    Raises ListenError if another process holds it, or it cannot be written.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = self._open()
        os.truncate(self._descriptor, 0)
        os.write(self._descriptor, f"{os.getpid()}\n".encode())

    def close(self) -> None:
        """Remove the file and give up the lock, in this order: nobody else can have taken it in between."""
        found = os.fstat(self._descriptor)
        try:
            there = os.stat(self._path)
            if (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino):
                os.unlink(self._path)
        except FileNotFoundError:
            pass
        os.close(self._descriptor)

    def _open(self) -> int:
        """Return a descriptor of the locked file that is at the path in the end."""
        while True:
            try:
                os.makedirs(os.path.dirname(self._path) or ".", exist_ok=True)
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise ListenError(f"cannot write the pid file {self._path}: {error.strerror}") from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.read(descriptor, 32).decode("ascii", "replace").strip()
                os.close(descriptor)
                raise ListenError(
                    f"the pid file {self._path} is held by a running server, pid {pid}",
                    f"kill -TERM {pid} stops it gracefully",
                ) from None
            if _is_at(self._path, descriptor):
                return descriptor
            os.close(descriptor)


def _is_at(path: str, descriptor: int) -> bool:
    """Tell whether a path still means the open file: its last holder may have removed it just before the lock."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
