"""The standard streams of a process that runs Python: what is printed is seen soon, and what is typed is not taken."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

STDIN = 0


def settle() -> None:
    """Print line by line wherever stdout goes, as Python does on a terminal, and read nothing that is the master's.

    A terminal stays stdin: a debugger that the application calls needs it.
    """
    if not os.isatty(STDIN):
        with suppress(OSError):  # there is no /dev/null, in a folder made by hand for chroot(2)
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(null, STDIN)
            os.close(null)
    for stream in _streams():
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)


def flush() -> Exception | None:
    """Write what was printed and is still in a buffer; return why that was not possible, if it was not.

    The application may have put any object in the place of a stream, such as one that has no flush().
    """
    failure = None
    for stream in _streams():
        try:
            getattr(stream, "flush", _do_nothing)()
        except Exception as error:  # noqa: BLE001 - a full disk, a stream that was closed, or the application's own code
            failure = error
    return failure


def flush_within(seconds: float) -> None:
    """Flush as far as that is possible in this time: another thread may be writing to a pipe that nobody reads."""
    flushing = threading.Thread(target=flush, daemon=True)
    try:
        flushing.start()
    except RuntimeError:  # no room for a thread
        return
    flushing.join(seconds)


def _streams() -> Iterator[Any]:
    """Yield each stream once; None stands for one that was closed when the interpreter started."""
    found = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    yield from {id(stream): stream for stream in found if stream is not None}.values()


def _do_nothing() -> None:
    """Be the flush() of a stream that has none."""
