"""Who listens on an address already: a process to name in a hint. Reads /proc; says nothing where there is none."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from prefork.units import Address, InheritedAddress, TcpAddress, UnixAddress

LISTEN_STATE = "0A"
# __SO_ACCEPTCON of a Unix socket's flags (net/unix/af_unix.c): it listens.
ACCEPTS = 0x10000
ORPHANS = ("prefork: worker ", "prefork: guard ")


def holder_of(address: Address) -> str | None:
    """Return ``pid 4711 (prefork: master shop) listens there``, or None if that cannot be known (proc(5))."""
    holders = _holders(_inodes(address))
    # Of a server and its children the parent is the one to name; it is the oldest.
    return f"pid {holders[0]} ({_title(holders[0])}) listens there" if holders else None


def is_being_left(address: Address) -> bool:
    """Tell whether only workers of a dead prefork master listen there, who are about to leave, or nobody any more."""
    inodes = _inodes(address)
    titles = [_title(pid) for pid in _holders(inodes)]
    return not inodes or (bool(titles) and all(title.startswith(ORPHANS) for title in titles))


def _inodes(address: Address) -> set[str]:
    match address:
        case TcpAddress():
            return set(_tcp_inodes(address.port))
        case UnixAddress():
            return set(_unix_inodes(address.path))
        case InheritedAddress():
            return set()


def _holders(inodes: set[str]) -> list[int]:
    return sorted(pid for pid in _pids() if inodes & _socket_inodes(pid))


def _tcp_inodes(port: int) -> Iterator[str]:
    for row in [*_rows("/proc/net/tcp"), *_rows("/proc/net/tcp6")]:
        if row[3] == LISTEN_STATE and int(row[1].rpartition(":")[2], 16) == port:
            yield row[9]


def _unix_inodes(path: str) -> Iterator[str]:
    """Yield the listening sockets at a path; the kernel knows those of prefork by where they were before a rename."""
    folder, name = os.path.split(path)
    ours = re.compile(re.escape(f"{folder}/.") + r"\d+\." + re.escape(name))
    for row in _rows("/proc/net/unix"):
        if int(row[3], 16) & ACCEPTS and len(row) > 7 and (row[7] == path or ours.fullmatch(row[7])):
            yield row[6]


def _rows(table: str) -> list[list[str]]:
    try:
        with open(table, encoding="utf-8", errors="surrogateescape") as file:
            return [line.split() for line in file][1:]
    except OSError:
        return []


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
