"""A cgroup for each program, where the server's own is delegated to it.

Neither another session nor another parent or environment takes anybody out of it, and all in it are killed at once.

    the server's own cgroup/        master, workers, guard
        prefork-4700-81234/         the master's pid, and when it began: nobody else's, and the same after an upgrade
            web.0-4711/             what a worker's program has started

Only cgroup v2 has delegation to rely on (cgroups(7)); it may be mounted beside v1, which then has the controllers. No
controller is enabled for those below, so the rule that only the leaves may have processes does not apply, and the server
stays where it was put.
"""

from __future__ import annotations

import os
import re
import select
import time
from collections.abc import Iterator
from contextlib import suppress

from prefork.system import tree

PREFIX = "prefork-"
# How long the killed are waited for: who waits for a disk does not die before it has come.
DYING = 1.0
# As systemd marks what it delegates (systemd.io/CGROUP_DELEGATION); only root can read the first.
DELEGATED = ("trusted.delegate", "user.delegate")


def home() -> str | None:
    """Return the cgroup for those of this process's programs, which need not be there yet; None without delegation."""
    own = _delegated()
    return None if own is None else f"{own}/{PREFIX}{os.getpid()}-{tree.began(os.getpid())}"


def enter(path: str) -> None:
    """Move this process into a cgroup, which is made if it is not there. Raises OSError if that is not possible."""
    os.makedirs(path, exist_ok=True)
    _write(f"{path}/cgroup.procs", b"0")


def kill(path: str) -> None:
    """Kill all processes in a cgroup, and in those below it."""
    try:
        _write(f"{path}/cgroup.kill", b"1")
    except OSError:  # there is no such cgroup, or Linux is older than 5.14
        tree.kill_each(lambda: _members(path))


def remove(path: str) -> bool:
    """Remove a cgroup and those below it, as far as nobody is in them; return whether it is gone."""
    for folder, _, _ in os.walk(path, topdown=False):
        with suppress(OSError):
            os.rmdir(folder)
    return not os.path.exists(path)


def clear(path: str) -> None:
    """Kill all in a cgroup and remove it, once they are dead."""
    kill(path)
    _wait_until_empty(path)
    remove(path)


def remove_stale(path: str) -> None:
    """Remove what masters that are dead have left beside a ``home``; their programs that still live stay."""
    own = os.path.dirname(path)
    for name in os.listdir(own):
        found = re.fullmatch(rf"{PREFIX}(\d+)-(\d+)", name)
        if found and tree.began(int(found[1])) != int(found[2]):  # the number may be somebody else's by now
            remove(f"{own}/{name}")


def _delegated() -> str | None:
    """Return the directory of this process's own cgroup, if it is delegated to it."""
    try:
        mounts, membership = (os.fsdecode(_read(f"/proc/self/{name}")) for name in ("mountinfo", "cgroup"))
    except OSError:  # this is not Linux
        return None
    return next(filter(_is_delegated, directories(mounts, membership)), None)


def directories(mounts: str, membership: str) -> Iterator[str]:
    """Yield where the cgroup v2 of a process is found, by its /proc/PID/mountinfo and /proc/PID/cgroup.

    A mount may show a part of the hierarchy only, as those in containers do.
    """
    own = next((line[3:] for line in membership.splitlines() if line.startswith("0::")), None)
    for line in mounts.splitlines():
        fields, _, kind = line.partition(" - ")
        if own is not None and kind.startswith("cgroup2 "):
            root, place = map(_unescaped, fields.split(" ")[3:5])
            top = root.rstrip("/")
            if f"{own}/".startswith(f"{top}/"):
                yield place.rstrip("/") + own[len(top) :].rstrip("/")


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _is_delegated(directory: str) -> bool:
    """Tell whether a cgroup is this process's to divide.

    Root may write to every cgroup, so root needs the mark; others need the right to move processes as well (cgroups(7)).
    Where the hierarchy is mounted read-only, as in most containers, the mark alone is of no use.
    """
    is_open = os.access(directory, os.R_OK | os.W_OK | os.X_OK)
    if not is_open or not os.access(f"{directory}/cgroup.procs", os.W_OK):
        return False
    return os.geteuid() != 0 or any(_is_marked(directory, name) for name in DELEGATED)


def _is_marked(directory: str, name: str) -> bool:
    try:
        return os.getxattr(directory, name) == b"1"
    except OSError:  # it has no such attribute
        return False


def _members(path: str) -> Iterator[int]:
    for folder, _, _ in os.walk(path):
        with suppress(OSError):  # it is gone
            yield from map(int, _read(f"{folder}/cgroup.procs").split())


def _wait_until_empty(path: str) -> None:
    """Wait until nobody lives in a cgroup, nor in those below it, but not for long."""
    until = time.monotonic() + DYING
    poll = select.poll()
    with suppress(OSError), open(f"{path}/cgroup.events", "rb", buffering=0) as events:
        poll.register(events, select.POLLPRI)
        while b"populated 1" in os.pread(events.fileno(), 4096, 0) and (left := until - time.monotonic()) > 0:
            poll.poll(left * 1000)


def _write(path: str, text: bytes) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(text)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
