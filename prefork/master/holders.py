"""Who listens on an address already: a process to name in a hint. Reads /proc; says nothing where there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator

from prefork.units import TcpAddress

LISTEN_STATE = "0A"


def holder_of(address: TcpAddress) -> str | None:
    """Return ``pid 4711 (prefork: master shop) listens there``, or None if that cannot be known (proc(5))."""
    inodes = set(_listening_inodes(address))
    holders = sorted(pid for pid in _pids() if inodes & _socket_inodes(pid))
    if not holders:
        return None
    # Of a server and its children the parent is the one to name; it is the oldest.
    return f"pid {holders[0]} ({_title(holders[0])}) listens there"


def _listening_inodes(address: TcpAddress) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as file:
                rows = [line.split() for line in file][1:]
        except OSError:
            continue
        for row in rows:
            if row[3] == LISTEN_STATE and int(row[1].rpartition(":")[2], 16) == address.port:
                yield row[9]


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _socket_inodes(pid: int) -> set[str]:
    folder = f"/proc/{pid}/fd"
    found = set()
    try:
        for name in os.listdir(folder):
            target = os.readlink(f"{folder}/{name}")
            if target.startswith("socket:["):
                found.add(target[8:-1])
    except OSError:
        return found  # somebody else's process, or one that is gone
    return found


def _title(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode("utf-8", "replace").strip()[:80]
    except OSError:
        return "gone"
