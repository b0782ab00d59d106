"""The log: one record, one line's start, one ``write``; text for people or JSON for programs.

A record names the process it is about first (``web/2 gen=1 pid=4711``), which need not be the one that writes it.
A file takes each record with a single write(2) on an O_APPEND descriptor, so those of many processes never mix. A full
disk or a reader that does not read costs lines, never a request; how many were lost is said as soon as it can be.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import select
import stat
from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec

from prefork.errors import ListenError

# None of logging's own: dictConfig() and fileConfig() disable every logger that exists unless they are told not to, and
# logging.disable() switches all of them off. Until ``start`` it hands its records on as others do.
logger = logging.Manager(logging.RootLogger(logging.WARNING)).getLogger("prefork")
logger.parent = logging.getLogger()

# What a terminal or a log viewer could take for a command; line ends and tabs are laid out by the formatter.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
STDOUT, STDERR = 1, 2
# A reader that is slow, and not stuck, gets the whole of a long record if it takes a part of it every so many seconds.
PATIENCE = 0.05
# How many symbolic links lead to a log, at most; as many as the kernel follows (path_resolution(7)).
MAX_LINKS = 40
LINK = "it is a symbolic link, in a folder that others can write to"


class Identity(msgspec.Struct, frozen=True):
    """Whom a record is about: ``master``, or a worker's ``pool/slot`` with its generation."""

    name: str
    pid: int
    generation: int | None = None

    def __str__(self) -> str:
        generation = "" if self.generation is None else f" gen={self.generation}"
        return f"{self.name}{generation} pid={self.pid}"


class TextFormatter(logging.Formatter):
    """``2026-11-22T17:00:00.123Z info  web/2 gen=1 pid=4711 ready in 0.41 s``; further lines are indented."""

    def __init__(self, own: Identity) -> None:
        super().__init__()
        self._own = own

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or lines, of a record, without the last line's end."""
        identity = getattr(record, "identity", self._own)
        text = f"{_stamp(record)} {record.levelname.lower():<5} {identity} {_text(record)}"
        return CONTROL.sub(lambda found: repr(found[0])[1:-1], text).replace("\n", "\n    ")


class JsonFormatter(logging.Formatter):
    """An object per line: time, level, name, generation, pid, message, and whatever figures come with the record."""

    def __init__(self, own: Identity) -> None:
        super().__init__()
        self._own = own

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, without its end."""
        identity: Identity = getattr(record, "identity", self._own)
        fields: dict[str, Any] = {
            "time": _stamp(record),
            "level": record.levelname.lower(),
            "name": identity.name,
            "generation": identity.generation,
            "pid": identity.pid,
            "message": _text(record),
        }
        return json.dumps(fields | getattr(record, "figures", {}), default=str)


class Destination(logging.Handler):
    """Writes records to a descriptor, which can be exchanged at any time.

    Attributes:
        patience: for how many seconds a record waits for a slow reader; none does after one was lost.

    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.descriptor = descriptor
        self.patience = 0.0
        self.lost = 0
        self._is_torn = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or count it as lost."""
        if self.lost and self._write(self.format(_loss(self.lost))):
            self.lost = 0
        if self.lost or not self._write(self.format(record)):
            self.lost += 1

    def _write(self, text: str) -> bool:
        """Write a record whole, on a line of its own, and return whether that was possible."""
        data = b"\n" * self._is_torn + text.encode("utf-8", "backslashreplace") + b"\n"
        written = write_nowait(self.descriptor, data, 0.0 if self.lost else self.patience)
        self._is_torn = written < len(data) and (written > 0 or self._is_torn)
        return written == len(data)

    def reopen(self, descriptor: int) -> None:
        """Write to another descriptor from now on; the old one is closed unless it is a standard stream."""
        self.acquire()
        try:
            old, self.descriptor = self.descriptor, descriptor
        finally:
            self.release()
        close_file(old)


def start(level: str, style: str, descriptor: int, own: Identity) -> Destination:
    """Log to a descriptor from now on, on behalf of ``own``.

    Args:
        level: debug, info, warning or error.
        style: text or json.
        descriptor: where to write; open for appending.
        own: whom records are about that do not say otherwise.

    """
    destination = Destination(descriptor)
    destination.setFormatter(JsonFormatter(own) if style == "json" else TextFormatter(own))
    logger.handlers[:] = [destination]
    logger.setLevel(level.upper())
    logger.propagate = False
    return destination


def open_file(path: str) -> int:
    """Return a descriptor that appends to a log file; ``-`` is stderr. Raises ListenError if it cannot be opened."""
    if path == "-":
        return STDERR
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        descriptor = _open_safely(path)
    except OSError as error:
        raise ListenError(f"cannot open the log file {path}: {error.strerror}") from error
    os.set_blocking(descriptor, True)  # whoever else writes to it expects that
    return descriptor


class Outlets(msgspec.Struct, frozen=True):
    """The descriptors that a server's records are written to; ``access`` is None if there is no access log."""

    DESCRIPTORS: ClassVar = ("log", "access")

    log: int
    access: int | None

    def descriptors(self) -> list[int]:
        """Return those that there are, the log's first."""
        return [self.log] if self.access is None else [self.log, self.access]

    def close(self) -> None:
        """Close them, unless they are standard streams."""
        for descriptor in self.descriptors():
            close_file(descriptor)


def open_outlets(file: str, access: str) -> Outlets:
    """Return descriptors for the log and the access log (``off``: none). Raises ListenError."""
    descriptor = open_file(file)
    try:
        return Outlets(descriptor, None if access == "off" else _open_access(access))
    except ListenError:
        close_file(descriptor)
        raise


def _open_access(path: str) -> int:
    """Return a descriptor that appends to an access log, and never blocks if that can be had; ``-`` is stdout."""
    try:
        if path == "-":
            return _open_stdout()
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        return _open_safely(path)
    except OSError as error:
        raise ListenError(f"cannot open the access log {path}: {error.strerror}") from error


def _open_safely(path: str) -> int:
    """Return a descriptor that appends to a file, without being led elsewhere by those who can write to its folder.

    A symbolic link counts only in a folder that nobody else can write to: in one of the workers' user it would have root
    create, or append to, any file. A file with further names (link(2)) is refused there, too. Raises OSError.
    """
    for _ in range(MAX_LINKS):
        is_ours = _is_trusted(os.path.dirname(path) or ".")
        try:
            descriptor = _open_unblocking(path, os.O_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            if not is_ours:
                raise OSError(error.errno, LINK) from error
        else:
            return _checked(descriptor, is_ours)
        if path.startswith(("/proc/", "/dev/")):  # /dev/stderr and the like, whose last link is no path
            return _open_unblocking(path)
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _is_trusted(folder: str) -> bool:
    """Tell whether nobody but root and this process's user can put anything into a folder."""
    found = os.stat(folder)
    groups = 0 if found.st_gid in (0, os.getegid()) else stat.S_IWGRP
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & (stat.S_IWOTH | groups)


def _checked(descriptor: int, is_ours: bool) -> int:
    found = os.fstat(descriptor)
    if is_ours or not stat.S_ISREG(found.st_mode) or found.st_nlink <= 1:
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EMLINK, f"it has {found.st_nlink} names, in a folder that others can write to")


def _open_unblocking(path: str, more: int = 0) -> int:
    flags = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | more
    try:
        return os.open(path, os.O_WRONLY | flags, 0o644)
    except OSError as error:
        if error.errno != errno.ENXIO or not stat.S_ISFIFO(os.stat(path).st_mode):
            raise
    return os.open(path, os.O_RDWR | flags)  # fifo(7): nobody has it open for reading yet


def _open_stdout() -> int:
    """Return stdout; where it may block, as a descriptor of our own: others who write to it expect it to block."""
    mode = os.fstat(STDOUT).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        with contextlib.suppress(
            OSError
        ):  # no /proc, or somebody else's terminal: then it is asked before each write
            return _open_unblocking("/proc/self/fd/1")
    return STDOUT


def close_file(descriptor: int) -> None:
    """Close a log's descriptor, unless it is a standard stream."""
    if descriptor > STDERR:
        os.close(descriptor)


def write_nowait(descriptor: int, data: bytes, patience: float = 0.0) -> int:
    """Write as much as there is room for, and return how many bytes that was.

    A file takes all at once, so that lines of several processes do not mix. A pipe that is ready takes PIPE_BUF bytes
    without waiting, and keeps them together (pipe(7)); beyond them its reader has PATIENCE to make room, or for all of
    them ``patience`` seconds, if that is longer.
    """
    written, wait = 0, patience
    try:
        size = len(data) if stat.S_ISREG(os.fstat(descriptor).st_mode) else select.PIPE_BUF
        while written < len(data) and _has_room(descriptor, wait):
            written += os.write(descriptor, data[written : written + size])
            wait = max(PATIENCE, patience)
    except OSError:
        return written  # a full disk, a reader that left: whoever logs counts what is lost
    return written


def _has_room(descriptor: int, wait: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(flags & select.POLLOUT for _, flags in poll.poll(wait * 1000))


def _loss(lines: int) -> logging.LogRecord:
    text = "%s records of this log were lost: its destination was full or gone"
    return logging.LogRecord(logger.name, logging.WARNING, __file__, 0, text, (lines,), None)


def _text(record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info and record.exc_info[0] is not None:
        text += "\n" + logging.Formatter().formatException(record.exc_info)
    return text


def _stamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"
