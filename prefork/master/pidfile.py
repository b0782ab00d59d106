"""The pid file: held by a lock for as long as the master lives, so that a stale one is no obstacle.

Its folder may belong to the user of the workers, who can put anything there: a link to a file of root's, a FIFO, a file of
its own. So links are not followed, nothing is waited for, and only a regular file of this user's, with no other name, is
written to. And who may read the file can lock it: a lock is believed only if the process that the file names lives and
is this user's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from contextlib import suppress

from prefork.errors import ListenError
from prefork.system import process

# How often, and how many seconds apart, a lock is tried again: its holder may be about to end, or to write its pid.
TRIES = 20
PAUSE = 0.05
MAX_PID = 32


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
        self._real_path = os.path.realpath(path)

    @property
    def is_found(self) -> bool:
        """Whether others find the file: its path may mean another one by now, or none."""
        return _is_at(self.path, self.descriptor)

    def close(self) -> None:
        """Remove the file and give up the lock, in this order: nobody else can have taken it in between."""
        # Its path may lead elsewhere by now: an old release does not keep its file.
        for path in dict.fromkeys((self.path, self._real_path)):
            if _is_at(path, self.descriptor):
                os.unlink(path)
        os.close(self.descriptor)

    def _write(self) -> int:
        descriptor = self._obtain()
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        return descriptor

    def _obtain(self) -> int:
        """Return a descriptor of the locked file that is at the path in the end."""
        for _ in range(TRIES):
            descriptor = self._open()
            if _lock(descriptor):
                if _is_at(self.path, descriptor):
                    return descriptor
            elif pid := _holder(descriptor):
                os.close(descriptor)
                raise ListenError(
                    f"the pid file {self.path} is held by a running server, pid {pid}",
                    f"kill -TERM {pid} stops it gracefully",
                )
            else:
                time.sleep(PAUSE)
            os.close(descriptor)
        return self._replace()

    def _replace(self) -> int:
        """Put a new file in the place of one that somebody has locked who is no server: that lock says nothing."""
        with suppress(FileNotFoundError):
            os.unlink(self.path)
        descriptor = self._open()
        if not _lock(descriptor):
            os.close(descriptor)
            raise ListenError(
                f"the pid file {self.path} is locked by another process",
                "fuser -v shows it; put the pid file into a folder that only this user can write to",
            )
        return descriptor

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        try:
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            descriptor = os.open(self.path, flags, 0o644)
        except OSError as error:
            is_link = error.errno == errno.ELOOP
            reason = "it is a symbolic link, which is not followed" if is_link else error.strerror
            raise ListenError(f"cannot write the pid file {self.path}: {reason}") from error
        if fault := _fault(os.fstat(descriptor)):
            os.close(descriptor)
            raise ListenError(
                f"cannot write the pid file {self.path}: {fault}",
                "remove it, or choose a folder that only this user can write to",
            )
        return descriptor


def _fault(found: os.stat_result) -> str | None:
    """Return why a file is none that this server's predecessor has left."""
    if not stat.S_ISREG(found.st_mode):
        return "expected a regular file, found something else"
    if found.st_uid != os.geteuid():
        return f"expected a file of user {os.geteuid()}, found one of user {found.st_uid}"
    if found.st_nlink > 1:
        return f"expected a file with one name, found one with {found.st_nlink}"
    return None


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> int:
    """Return the pid of the living process of this user that a file names, 0 if there is none."""
    text = os.pread(descriptor, MAX_PID, 0).strip()
    pid = int(text) if text.isdigit() else 0
    return pid if pid and process.owner_of(pid) == os.geteuid() else 0


def _is_at(path: str, descriptor: int) -> bool:
    """Tell whether a path still means the open file: its last holder may have removed it just before the lock."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
