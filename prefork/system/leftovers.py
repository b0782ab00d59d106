"""What a fork does not carry over as it was: threads other than the calling one, and sockets, which it shares."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Collection
from contextlib import suppress

TASKS = "/proc/self/task"
DESCRIPTORS = "/proc/self/fd"


def other_threads(joined: threading.Thread | None = None) -> list[str]:
    """Return the names of all threads of this process but the calling one, those that Python does not know included.

    ``joined`` is left out: the kernel may list a thread for some microseconds after ``join`` has returned.
    """
    left_out = {threading.get_native_id(), joined and joined.native_id}
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    tasks = (int(task) for task in os.listdir(TASKS))
    found = (names.get(task) or _task_name(task) for task in tasks if task not in left_out)
    return sorted(name for name in found if name)


def open_sockets(known: Collection[int]) -> list[str]:
    """Return in words the sockets of this process whose descriptors are neither known nor standard streams."""
    descriptors = sorted({int(number) for number in os.listdir(DESCRIPTORS)} - {0, 1, 2, *known})
    return [_described(number) for number in descriptors if _is_socket(number)]


def _task_name(task: int) -> str | None:
    """Return what the kernel calls a thread, None if it has just ended."""
    try:
        with open(f"{TASKS}/{task}/comm", encoding="utf-8", errors="replace") as file:
            return f"{file.read().strip()} (native)"
    except (FileNotFoundError, ProcessLookupError):  # before it was opened, or before it was read
        return None


def _is_socket(descriptor: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:
        return False  # what listed the folder itself


def _described(descriptor: int) -> str:
    with socket.socket(fileno=os.dup(descriptor)) as found:
        family = getattr(found.family, "name", f"family {found.family}").removeprefix("AF_").lower()
        ends = [_address(found.getsockname())]
        with suppress(OSError):  # it is not connected
            ends.append(_address(found.getpeername()))
    return " ".join([family, " -> ".join(filter(None, ends))]).strip()


def _address(address: object) -> str:
    if isinstance(address, tuple) and len(address) >= 2:
        return f"{address[0]}:{address[1]}"
    return address if isinstance(address, str) else repr(address) if address else ""
