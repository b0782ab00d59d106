"""Pools that run an external program: where it is found, and the environment that it finds itself in."""

from __future__ import annotations

import os
from collections.abc import Mapping

from prefork.config.schema import Pool
from prefork.errors import BootError

# What other managers say to their own programs: it would be believed by one that is not theirs (sd_notify(3),
# sd_listen_fds(3), sd_watchdog_enabled(3)).
OF_OTHERS = (
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "MAINPID",
)
# The settings of this prefork, and what one above it has said.
OF_PREFORK = "PREFORK_"
# Tells whatever a program starts from what others do.
MARK = "PREFORK_WORKER"
# The first descriptor that a program is given (SD_LISTEN_FDS_START).
FIRST_LISTENER = 3


def find(program: str) -> str:
    """Return the path of the program that a command begins with, as execvp(3) finds it.

    Raises BootError when there is none that this process may execute.
    """
    if os.sep in program:
        return _check(program)
    folders = os.environ.get("PATH", os.defpath)
    found = [os.path.join(folder, program) for folder in folders.split(os.pathsep)]
    present = [path for path in found if os.path.isfile(path)]
    executable = next((path for path in present if os.access(path, os.X_OK)), None)
    if executable is None and not present:
        raise BootError(f"cannot run {program!r}: no such program in PATH ({folders})")
    return executable or _check(present[0])


def _check(path: str) -> str:
    where = f", from {os.getcwd()}" if not os.path.isabs(path) else ""
    if not os.path.exists(path):
        raise BootError(f"cannot run {path!r}: no such file{where}")
    if os.path.isdir(path) or not os.access(path, os.X_OK):
        raise BootError(f"cannot run {path!r}: permission denied", "chmod +x makes a file a program")
    return path


def environment(
    inherited: Mapping[str, str], pool: Pool, slot: int, generation: int, notify: str | None, mark: str
) -> dict[str, str]:
    """Return the environment of a program of a pool, that this process is about to become.

    ``inherited`` is the one that prefork was started in, ``notify`` the address for sd_notify(3) if the program is to
    say itself that it is ready, ``mark`` its worker's identity.
    """
    kept = (name for name in inherited if name not in OF_OTHERS and not name.startswith(OF_PREFORK))
    own = {name: inherited[name] for name in kept} | pool.env
    own |= {
        "PREFORK_POOL": pool.name,
        "PREFORK_SLOT": str(slot),
        "PREFORK_GENERATION": str(generation),
        MARK: mark,
    }
    if pool.listen:
        count = len(pool.listen)
        names = ":".join([pool.name] * count)
        own |= {"LISTEN_FDS": str(count), "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": names}
    return own | ({"NOTIFY_SOCKET": notify} if notify else {})
