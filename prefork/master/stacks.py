"""Makes a worker's stacks readable: the user's code first, of prefork nothing but the frame that called it."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# The rooms whose code runs in a worker. The examples are in the package too, but they stand for the user's code.
ROOMS = tuple(os.path.join(PACKAGE, room, "") for room in ("worker", "handlers", "protocols"))
# As faulthandler prints them; the latest frame comes first.
THREAD = re.compile(r"^(?=(?:Current thread|Thread) 0x)", re.MULTILINE)
FRAME = re.compile(r'  File "(.*)", line \d+ in (.*)')
# What every thread of the threading module begins with.
STARTERS = {"_bootstrap", "_bootstrap_inner", "run"}


class Frame(NamedTuple):
    """One line of a stack."""

    line: str
    file: str
    function: str


# Where a worker begins and a template does, and where a worker's thread is that hears the master.
FORKED = {
    (os.path.join(PACKAGE, "worker", "main.py"), "work"),
    (os.path.join(PACKAGE, "worker", "template.py"), "run"),
}
HEARS = (os.path.join(PACKAGE, "worker", "orders.py"), "_hear")


def readable(text: str) -> str:
    """Return what faulthandler wrote, without frames and threads that say nothing about the user's code.

    Left out are what lies below the worker's beginning (it was forked in the middle of the master's loop), how
    threads begin, the import machinery (as in Python's own tracebacks), and the thread that hears the master.
    """
    head, *threads = THREAD.split(text)
    shown = [thread for thread in threads if HEARS not in {frame[1:] for frame in _frames(thread)}]
    return "".join([head, *map(_trimmed, shown)]).strip()


def _frames(thread: str) -> list[Frame]:
    return [Frame(found[0], found[1], found[2]) for found in FRAME.finditer(thread)]


def _trimmed(thread: str) -> str:
    frames = _frames(thread)
    kept = {frame.line for frame in _without_ours(_without_start(_since_fork(frames)))}
    dropped = {frame.line for frame in frames} - kept
    return "".join(line for line in thread.splitlines(keepends=True) if line.rstrip("\n") not in dropped)


def _since_fork(frames: list[Frame]) -> list[Frame]:
    return frames[: next((number for number, frame in enumerate(frames) if frame[1:] in FORKED), None)]


def _without_start(frames: list[Frame]) -> list[Frame]:
    while len(frames) > 1 and frames[-1].file.endswith("threading.py") and frames[-1].function in STARTERS:
        frames = frames[:-1]
    return frames


def _without_ours(frames: list[Frame]) -> list[Frame]:
    """Return the frames up to the oldest of the user's and the one that called it; the latest if all are ours."""
    users = [number for number, frame in enumerate(frames) if not frame.file.startswith(ROOMS)]
    end = max(users, default=-1) + 2
    return [frame for frame in frames[:end] if not frame.file.startswith("<frozen importlib")]
