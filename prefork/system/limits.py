"""What a process may use: resource limits, CPUs, its share of them. Each is set for good, before its threads begin."""

from __future__ import annotations

import os
import resource


def set_limit(name: str, amount: int) -> None:
    """Set a resource limit, soft and hard, by its name in setrlimit(2), in small letters; -1: unlimited.

    Raises OSError or ValueError where this is not permitted, or the system knows no such limit.
    """
    number = getattr(resource, f"RLIMIT_{name.upper()}", None)
    if number is None:
        raise ValueError("this system has no such limit")
    _, hard = resource.getrlimit(number)
    try:
        resource.setrlimit(number, (amount, amount))
    except ValueError as error:  # what Python makes of EPERM, too
        raise ValueError(f"only root may raise the hard limit, {write_limit(hard)}") from error


def write_limit(amount: int) -> str:
    """Return a limit as the configuration has it."""
    return "unlimited" if amount == resource.RLIM_INFINITY else str(amount)


def pin(cpus: tuple[int, ...]) -> None:
    """Let this process, and the threads that it is going to start, run on these CPUs only.

    Raises OSError, or ValueError for CPUs that it may not use: the kernel would leave them out without a word.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("this system does not bind processes to CPUs")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        raise _foreign(before) from error
    if os.sched_getaffinity(0) != set(cpus):
        raise _foreign(before)


def set_nice(nice: int) -> None:
    """Set how much this process leaves the CPUs to others, from -20 to 19. Raises OSError."""
    os.setpriority(os.PRIO_PROCESS, 0, nice)


def _foreign(usable: set[int]) -> ValueError:
    return ValueError(f"the CPUs for this process are {', '.join(map(str, sorted(usable)))}")
