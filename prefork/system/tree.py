"""All processes below one, whichever session or group they have moved to: who they are, what they use, signals to them.

Linux tells by /proc (proc(5)), and has orphans become children of the nearest subreaper above them (prctl(2)), so that
nobody gets out from below it. Elsewhere nobody is found here, and only a process group can be signalled as a whole.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import stat
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import NamedTuple

from prefork.system.process import resident_memory

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
# Who forks while it is being killed is found in the next round; only a fork bomb could need so many.
ROUNDS = 100
# What the letters of proc(5) mean to people.
STATES = {"R": "running", "D": "waiting for a disk", "T": "halted", "t": "traced", "Z": "dead"}
# Processes that are left alone: when each began, by its pid.
Spared = Mapping[int, int]
NOBODY: Spared = MappingProxyType({})
PEAK = re.compile(rb"^VmHWM:\s*(\d+) kB$", re.MULTILINE)


class Process(NamedTuple):
    """A process as /proc/PID/stat shows it; ``began`` (in clock ticks) tells it from others with the same number."""

    pid: int
    state: str
    parent: int
    session: int
    began: int

    @property
    def description(self) -> str:
        """Return a line for people: its number, its state and its command line."""
        command = _read(self.pid, "cmdline").replace(b"\0", b" ").decode("utf-8", "replace").strip()
        name = command or _read(self.pid, "comm").decode("utf-8", "replace").strip()
        return f"pid {self.pid}, {STATES.get(self.state, 'sleeping')}: {name}"


def become_subreaper() -> None:
    """Have whoever loses its parent below this process become a child of this one."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with(parent: int) -> None:
    """Have the kernel kill this process once its parent, whose pid is given, is dead.

    To be called after the last change of the user, which would take it back (prctl(2)).
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it is dead already


def below(root: int, spared: Spared = NOBODY) -> list[Process]:
    """Return the processes below one, those nearer to it first; some may be dead and not reaped yet.

    Those that are ``spared``, by pid and when they began, are left out, with all that is below them.
    """
    found: list[Process] = []
    waiting = [root]
    while waiting:
        children = [child for child in _children(waiting.pop(0)) if spared.get(child.pid) != child.began]
        found += children
        waiting += [child.pid for child in children]
    return found


def signal_below(root: int, number: int, group: int) -> None:
    """Send a signal to every process below one; elsewhere than on Linux to a process group."""
    if sys.platform.startswith("linux"):
        for process in below(root):
            _send_signal(process, number)
    else:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def kill_below(root: int, spared: Spared = NOBODY) -> None:
    """Kill every process below one, those that are forked meanwhile included, except those that are spared."""
    _kill_all(lambda: below(root, spared))


def kill_marked(root: int, session: int, mark: str) -> None:
    """Kill of one's children who belongs to a session, or was started with ``mark`` (NAME=value) in its environment.

    With each of them goes who is below it. Session 0 is nobody's: the kernel's threads have it, and who came from
    outside of a pid namespace (pid_namespaces(7)).
    """
    _kill_all(lambda: [process for top in _marked(root, session, mark) for process in (top, *below(top.pid))])


def kill_orphans(root: int, known: Container[int], mark: str, pipe: int, spared: Spared = NOBODY) -> None:
    """Kill the orphans of a dead process, which are children of ``root`` by now, with all that is below them.

    A program that it has started has ``mark`` (NAME=value) in its environment. A copy that it has forked has the
    environment that the kernel has once shown for all of them, but holds a pipe open for writing that no other process has
    (pipe(7)); ``pipe`` is its inode.

    Args:
        root: the subreaper that has them now.
        known: its children that are none of them.
        mark: what its programs have in their environment.
        pipe: which of all pipes its copies hold.
        spared: who is left alone, with all that is below it.

    """

    def find() -> list[Process]:
        tops = [
            child
            for child in _children(root)
            if child.pid not in known
            and spared.get(child.pid) != child.began
            and (_has_mark(child.pid, mark) or _writes_to(child.pid, pipe))
        ]
        return [process for top in tops for process in (top, *below(top.pid, spared))]

    _kill_all(find)


def kill_each(find: Callable[[], Iterable[int]]) -> None:
    """Kill whom ``find`` tells of, and those of whom it tells only then: they were forked meanwhile."""
    _kill_all(lambda: [process for process in map(_look, find()) if process is not None])


def began(pid: int) -> int | None:
    """Return when a process began, in clock ticks since the boot; None if there is none of that number."""
    found = _look(pid)
    return None if found is None else found.began


def memory_below(root: int) -> int:
    """Return the resident memory of all processes below one, in bytes; what several share counts for each."""
    return sum(resident_memory(process.pid) or 0 for process in below(root))


def peak_below(root: int) -> int:
    """Return the largest resident memory that one process below another has ever had, in bytes."""
    peaks = (PEAK.search(_read(process.pid, "status")) for process in below(root))
    return max((int(peak[1]) * 1024 for peak in peaks if peak), default=0)


def _children(parent: int) -> Iterator[Process]:
    """Yield a process's children; which of its threads has forked them does not matter."""
    for pid in _children_by_threads(parent) if os.path.exists("/proc/thread-self/children") else _all():
        process = _look(pid)
        if process is not None and process.parent == parent:
            yield process


def _children_by_threads(parent: int) -> Iterator[int]:
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{parent}/task"):
            yield from map(int, _read(parent, f"task/{thread}/children").split())


def _marked(root: int, session: int, mark: str) -> list[Process]:
    return [child for child in _children(root) if 0 < session == child.session or _has_mark(child.pid, mark)]


def _has_mark(pid: int, mark: str) -> bool:
    return os.fsencode(mark) in _read(pid, "environ").split(b"\0")


def _writes_to(pid: int, pipe: int) -> bool:
    """Return whether a process holds the writing end of a pipe: proc(5) shows the way of opening as permissions."""
    with suppress(OSError):  # it is gone, or somebody's whose files are not for us
        for name in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{name}"
            with suppress(OSError):
                if os.readlink(path) == f"pipe:[{pipe}]" and os.lstat(path).st_mode & stat.S_IWUSR:
                    return True
    return False


def _all() -> Iterator[int]:
    with suppress(OSError):  # there is no /proc
        yield from (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _look(pid: int) -> Process | None:
    """Return what a process is, None if there is none; its name, in parentheses, may be anything."""
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    if not fields:
        return None
    return Process(pid, fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19]))


def _read(pid: int, name: str) -> bytes:
    """Return a file of a process, or nothing if it is gone, or somebody's whose files are not for us."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""


def _kill_all(find: Callable[[], list[Process]]) -> None:
    """Kill who is found until nothing is new; so is a death, for its orphans may have moved to where was looked before."""
    seen: set[tuple[Process, bool]] = set()
    for _ in range(ROUNDS):
        found = {(_identity(process), process.state == "Z") for process in find()}
        if found <= seen:
            return
        for process, is_dead in found - seen:
            if not is_dead:
                _send_signal(process, signal.SIGKILL)
        seen |= found


def _identity(process: Process) -> Process:
    return process._replace(state="", parent=0)


def _send_signal(process: Process, number: int) -> None:
    """Send a signal to a process, not to another one that has got its number since."""
    descriptor = None
    with suppress(AttributeError, OSError):  # it is gone, or the kernel is older than 5.3 and has no pidfds
        descriptor = os.pidfd_open(process.pid)
    try:
        found = _look(process.pid)
        if found is not None and found.began == process.began:
            with suppress(ProcessLookupError, PermissionError):
                _send(process.pid, descriptor, number)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _send(pid: int, descriptor: int | None, number: int) -> None:
    if descriptor is None:
        os.kill(pid, number)
    else:
        signal.pidfd_send_signal(descriptor, number)


def _prctl(option: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
