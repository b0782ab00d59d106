"""How many CPUs this process may really use: its affinity, and the quota of the cgroups that it is in."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator


def usable_cpus(root: str = "/") -> int:
    """Return the number of CPUs that this process can keep busy, at least 1.

    Args:
        root: where the file systems /proc and /sys/fs/cgroup are found; tests give a folder of their own.

    A quota of 1.5 CPUs counts as 2: one worker would leave half a CPU idle.

    """
    quota = min(_quotas(root), default=math.inf)
    return max(1, min(_allowed_cpus(), math.ceil(quota) if quota < math.inf else _allowed_cpus()))


def _allowed_cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on macOS; refused by some sandboxes' filters of system calls
        return os.cpu_count() or 1


def _quotas(root: str) -> Iterator[float]:
    """Yield each CPU quota that holds for this process, in CPUs: that of its group and of every group above."""
    for line in _read(os.path.join(root, "proc/self/cgroup")).splitlines():
        # "0::/user.slice/x" is version 2, "4:cpu,cpuacct:/docker/x" version 1: cgroups(7).
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _quotas_v2(_levels(os.path.join(root, "sys/fs/cgroup"), path))
        elif "cpu" in controllers.split(","):
            yield from _quotas_v1(_levels(os.path.join(root, "sys/fs/cgroup", controllers), path))


def _levels(mount: str, path: str) -> Iterator[str]:
    """Yield the folders from the mount down to the group.

    Without a cgroup namespace a container is told the host's path and sees only its own group, as the mount: levels
    that do not exist have no quota. ".." leads out of the namespace, to where nothing can be seen.
    """
    yield mount
    for step in path.split("/"):
        if step not in ("", ".."):
            mount = os.path.join(mount, step)
            yield mount


def _quotas_v2(folders: Iterator[str]) -> Iterator[float]:
    for folder in folders:
        quota, _, period = _read(os.path.join(folder, "cpu.max")).partition(
            " "
        )  # "150000 100000", "max 100000"
        if quota.isdecimal() and int(period):
            yield int(quota) / int(period)


def _quotas_v1(folders: Iterator[str]) -> Iterator[float]:
    for folder in folders:
        quota = _read(os.path.join(folder, "cpu.cfs_quota_us")).strip()  # -1: none
        period = _read(os.path.join(folder, "cpu.cfs_period_us")).strip()
        if quota.isdecimal() and period.isdecimal():
            yield int(quota) / int(period)


def _read(path: str) -> str:
    """Return a file's text, or nothing where there is no such file: other kernels and systems have fewer."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
