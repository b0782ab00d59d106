"""The log: one record, one line's start, one ``write``; text for people or JSON for programs.

A record names the process it is about first (``web/2 gen=1 pid=4711``), which need not be the one that writes it.
Lines are written with a single write(2) on an O_APPEND descriptor, so those of many processes never mix. A full disk
or a reader that does not read costs lines, never a request; how many were lost is said as soon as it can be.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prefork.errors import ListenError

logger = logging.getLogger("prefork")

# What a terminal or a log viewer could take for a command; line ends and tabs are laid out by the formatter.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
STDERR = 2


@dataclass(frozen=True, slots=True)
class Identity:
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
    """Writes records to a descriptor, which can be exchanged at any time."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.descriptor = descriptor
        self.lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or count it as lost."""
        line = self.format(record)
        if self.lost:
            line = f"({self.lost} lines of this log were lost: its destination was full or gone)\n{line}"
        if write_line(self.descriptor, line):
            self.lost = 0
        else:
            self.lost += 1

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
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ListenError(f"cannot open the log file {path}: {error.strerror}") from error


def close_file(descriptor: int) -> None:
    """Close a log's descriptor, unless it is a standard stream."""
    if descriptor > STDERR:
        os.close(descriptor)


def write_line(descriptor: int, line: str) -> bool:
    """Write a line without waiting for room; return whether it was written.

    A pipe that is writable takes PIPE_BUF bytes at once (pipe(7)); longer records may wait for a slow reader.
    """
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        if not any(flags & select.POLLOUT for _, flags in poll.poll(0)):
            return False
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        return False
    return True


def _text(record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info and record.exc_info[0] is not None:
        text += "\n" + logging.Formatter().formatException(record.exc_info)
    return text


def _stamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"
