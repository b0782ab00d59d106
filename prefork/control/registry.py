"""Which servers run: each leaves a record in a folder that depends on its user alone, so that commands find it.

A command knows a server by its file, from any folder, in any environment, also as root. Hence the records do not lie where
XDG_RUNTIME_DIR says: cron, sudo and a second login have another one. What lies in another user's folder is that user's
word: it is bounded, never followed through links, and believed only of servers that the same user runs.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import socket
import stat
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from prefork.errors import CommandError, ListenError
from prefork.units import short_hash

RUN = "/run"
SHARED = "/tmp"  # noqa: S108 - the folders below it are made with mode 0700; owner and mode are checked by both sides
MAX_RECORD = 65536
SUFFIX = ".json"
REMEDY = "set master.control to a path in a folder of your own"


class Record(msgspec.Struct, frozen=True):
    """A server that runs.

    Attributes:
        name: its ``master.name``.
        pid: its master's.
        born: when that process began, in clock ticks since the boot of the machine; 0 where this is not known.
        file: the absolute path of its file as it was given, links kept.
        real: the file's real path when it was last loaded.
        control: the path of its control socket as configured.
        bound: the same path, with links followed as they were when the socket was bound.

    """

    name: str
    pid: int
    born: int
    file: str
    real: str
    control: str
    bound: str

    def runs(self, *paths: str) -> bool:
        """Tell whether one of the paths is this server's file."""
        return self.file in paths or self.real in paths


class Entry(NamedTuple):
    """A record that was found, the user whose folder it lies in, and its own path."""

    record: Record
    uid: int
    path: str

    @property
    def has_process(self) -> bool:
        """Whether the server's process lives; True where that cannot be known."""
        return not os.path.isdir("/proc/self") or _birth(self.record.pid) == self.record.born

    @property
    def listens(self) -> bool:
        """Whether the control socket is there and somebody listens on it."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self.record.bound)
            except BlockingIOError:
                return True  # its backlog is full
            except OSError:
                return False
        return True


def home(uid: int) -> str:
    """Return the folder for records and default control sockets of a user's servers."""
    return f"{RUN}/prefork" if uid == 0 and os.path.isdir(RUN) else f"{SHARED}/prefork-{uid}"


def absolute(folder: str, path: str) -> str:
    """Return the absolute path of a file as it was given, relative to a folder, links kept.

    ``..`` is taken out where that leads to the same file: behind a link it leads elsewhere.
    """
    joined = os.path.join(folder, path)
    plain = os.path.normpath(joined)
    return plain if os.path.realpath(plain) == os.path.realpath(joined) else os.path.realpath(joined)


def claim(folder: str) -> None:
    """Make the folder of this process's user, if it is not there. Raises ListenError if somebody else could write to it."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    if fault := _fault(os.lstat(folder), os.geteuid()):
        raise ListenError(f"cannot use the folder {folder} for control sockets: {fault}", REMEDY)


class Registration:
    """The record of this process's server.

    Args:
        name, file, control, bound: as in a Record.

    Raises OSError and ListenError if it cannot be written.

    """

    def __init__(self, name: str, file: str, control: str, bound: str) -> None:
        pid, real = os.getpid(), os.path.realpath(file) if file else ""
        self.record = Record(name, pid, _birth(pid), file, real, control, bound)
        folder = home(os.geteuid())
        claim(folder)
        # One control socket is one server's; one file may have several.
        self._path = f"{folder}/{name}-{short_hash(control)}{SUFFIX}"
        self._write()

    def renew(self, bound: str) -> None:
        """Note that the file was loaded, and where the control socket is now. Raises what the constructor does."""
        real = os.path.realpath(self.record.file) if self.record.file else ""
        self.record = msgspec.structs.replace(self.record, real=real, bound=bound)
        claim(os.path.dirname(self._path))
        self._write()

    def close(self) -> None:
        """Remove the record."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def _write(self) -> None:
        # ASCII: a file name that is not UTF-8 has lone surrogates, which JSON carries as escapes only.
        data = json.dumps(msgspec.to_builtins(self.record)).encode()
        beside = f"{self._path}.{self.record.pid}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(beside, self._path)


def entries() -> list[Entry]:
    """Return the records of all servers that this user may see: root sees everybody's.

    Raises CommandError if this user's own folder is one that somebody else could write to.
    """
    uid = os.geteuid()
    own = home(uid)
    with contextlib.suppress(FileNotFoundError):
        if fault := _fault(os.lstat(own), uid):
            raise CommandError(f"cannot use the folder {own} for control sockets: {fault}", REMEDY)
    return [entry for owner, folder in _homes(uid) for entry in _read_folder(folder, owner)]


def forget(entry: Entry) -> None:
    """Remove the record of a server that does not run any more."""
    with contextlib.suppress(OSError):
        os.unlink(entry.path)


def _homes(uid: int) -> Iterator[tuple[int, str]]:
    yield uid, home(uid)
    if uid == 0:
        for folder in sorted(glob.glob(f"{SHARED}/prefork-*")):
            owner = folder.rpartition("-")[2]
            if owner.isdecimal() and owner.isascii() and folder != home(uid):
                yield int(owner), folder


def _read_folder(folder: str, uid: int) -> Iterator[Entry]:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        if _fault(os.fstat(descriptor), uid):
            return
        for name in sorted(os.listdir(descriptor)):
            record = _read_record(descriptor, name, uid) if name.endswith(SUFFIX) else None
            if record is not None:
                yield Entry(record, uid, f"{folder}/{name}")
    finally:
        os.close(descriptor)


def _read_record(folder: int, name: str, uid: int) -> Record | None:
    try:
        # O_NONBLOCK: another user may have put a FIFO there.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != uid:
            return None
        record = msgspec.convert(json.loads(os.read(descriptor, MAX_RECORD)), Record)
    except (OSError, ValueError, RecursionError):  # ValueError: also what msgspec raises
        return None
    finally:
        os.close(descriptor)
    return None if "\0" in record.bound else record  # connect(2) takes no such path


def _fault(status: os.stat_result, uid: int) -> str | None:
    """Return why a folder must not be used, None if only its user can write to it."""
    if not stat.S_ISDIR(status.st_mode):
        return "it is no folder"
    if status.st_uid != uid:
        return f"it belongs to user {status.st_uid}, expected user {uid}"
    mode = stat.S_IMODE(status.st_mode)
    return f"others may write to it (mode {mode:04o}), expected 0700" if mode & 0o022 else None


def _birth(pid: int) -> int:
    """Return when a process began (proc(5): the 22nd field of stat), 0 if there is none or nothing is known."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
