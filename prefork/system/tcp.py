"""What Linux can do with a listening TCP socket beyond the usual."""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

# struct sock_filter: code, jump if true, jump if false, operand (linux/filter.h). A TCP socket's filter sees the
# segment from its TCP header on; byte 13 holds the flags. A first SYN is dropped, all else is let through whole.
INSTRUCTION = struct.Struct("HBBI")
LOAD_BYTE, JUMP_IF_EQUAL, AND, RETURN = 0x30, 0x15, 0x54, 0x06
FLAGS_OFFSET, SYN, SYN_AND_ACK = 13, 0x02, 0x12
DROP, PASS = 0, 0xFFFFFFFF
NO_NEW_CONNECTIONS = b"".join(
    INSTRUCTION.pack(*instruction)
    for instruction in (
        (LOAD_BYTE, 0, 0, FLAGS_OFFSET),
        (AND, 0, 0, SYN_AND_ACK),
        (JUMP_IF_EQUAL, 0, 1, SYN),
        (RETURN, 0, 0, DROP),
        (RETURN, 0, 0, PASS),
    )
)
SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27
SO_BINDTOIFINDEX = 62
# The number of an interface that no machine has, and that of none.
NOWHERE, ANYWHERE = 2**31 - 1, 0
# How long a handshake waits for its client's first bytes, in seconds: until SYN-ACK is sent again (RFC 6298 2.1), no longer.
FIRST_BYTES_TIME = 1
# By address family, the kernel's tables of connections (proc_net_tcp(5)), and what is said there of half a handshake.
TABLES = {socket.AF_INET: "/proc/self/net/tcp", socket.AF_INET6: "/proc/self/net/tcp6"}
SYN_RECV = "03"


def refuse_handshakes(listener: socket.socket) -> None:
    """Let no new connection into a listener's queue; those in it, and handshakes under way, are not touched.

    Closing a listener resets whoever is in its queue, so the queue has to be emptied before, while nobody comes in.
    Who tries meanwhile sends SYN again after a second (RFC 6298), and is refused once the listener is closed.

    Filters need CAP_NET_ADMIN since Linux commit 5d39580f68e6 (2026, and in stable kernels). Without it the listener is
    bound to an interface that does not exist, so that nobody finds it, and who tries is refused at once; everybody may
    do that, but only once, since Linux 5.7. Where neither works the gap between the last accept and the close stays.
    """
    if not sys.platform.startswith("linux"):
        return
    code = ctypes.create_string_buffer(NO_NEW_CONNECTIONS)
    program = struct.pack("HP", len(NO_NEW_CONNECTIONS) // INSTRUCTION.size, ctypes.addressof(code))
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    except OSError:
        with suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, NOWHERE)


def allow_handshakes(listener: socket.socket) -> None:
    """Undo ``refuse_handshakes``. Raises PermissionError where that needs rights which this process does not have."""
    if not sys.platform.startswith("linux"):
        return
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    except FileNotFoundError:  # it has none
        listener.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, ANYWHERE)


@contextmanager
def shared_port(sockets: Iterable[socket.socket]) -> Iterator[None]:
    """Let sockets of this user bind addresses that overlap, while this lasts (SO_REUSEPORT, socket(7)).

    To 0.0.0.0:8000 beside 127.0.0.1:8000, which is about to be closed: until then its clients are the latter's.
    """
    shared = list(sockets)
    for each in shared:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        yield
    finally:
        for each in shared:  # or any program of this user could take some of the clients
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)


def await_first_bytes(listener: socket.socket, wanted: bool) -> None:
    """Have clients enter a listener's queue when their first bytes are there, or when they are connected.

    Who accepts then has something to read at once, and needs not watch the connection for it (TCP_DEFER_ACCEPT, tcp(7)). A
    client that says nothing is let in after about a second. Not for protocols in which the server speaks first.
    """
    with suppress(AttributeError, OSError):  # it saves work, no more
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, FIRST_BYTES_TIME if wanted else 0)


def has_handshakes(listener: socket.socket) -> bool:
    """Return whether a client is connecting that is not in a listener's queue yet; False where nobody can tell.

    It may take itself for connected already, where its first bytes are awaited.
    """
    if listener.family not in TABLES or not sys.platform.startswith("linux"):
        return False
    port = f":{listener.getsockname()[1]:04X}"
    try:
        with open(TABLES[listener.family], encoding="ascii") as table:
            # A line begins with number, local address, remote address, state.
            rows = (line.split(maxsplit=4) for line in table)
            return any(row[3] == SYN_RECV and row[1].endswith(port) for row in rows)
    except OSError:  # no /proc, or no descriptor
        return False
