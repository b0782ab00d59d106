"""How many clients wait in a listening socket's queue, as the kernel tells it; Linux only."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys

# struct tcp_info (linux/tcp.h): of a listening socket, tcpi_unacked is the length of its accept queue.
TCP_INFO_SIZE = 104
UNACKED_OFFSET = 24
# sock_diag(7): struct nlmsghdr, struct unix_diag_req, and of the answer struct unix_diag_msg, struct nlattr.
# A listening socket's UNIX_DIAG_RQLEN is the length of its accept queue, and its backlog; ss(8) shows it as Recv-Q.
NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST = 20, 1
TCP_LISTEN = 10
UDIAG_SHOW_RQLEN, UNIX_DIAG_RQLEN = 0x10, 4
NO_COOKIE = 0xFFFFFFFF
HEADER = struct.Struct("=IHHII")
REQUEST = struct.Struct("=BBHIIIII")
ANSWER = struct.Struct("=BBBBIII")
ATTRIBUTE = struct.Struct("=HH")
LENGTH = struct.Struct("=I")
ANSWER_SIZE = 4096


def queue_length(listener: socket.socket) -> int | None:
    """Return how many clients wait to be accepted, or None where the kernel does not tell."""
    if not sys.platform.startswith("linux"):
        return None
    if listener.family == socket.AF_UNIX:
        return _unix_queue_length(listener)
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
    return int.from_bytes(info[UNACKED_OFFSET : UNACKED_OFFSET + 4], sys.byteorder)


def _unix_queue_length(listener: socket.socket) -> int | None:
    inode = os.fstat(listener.fileno()).st_ino
    body = REQUEST.pack(
        socket.AF_UNIX, 0, 0, 1 << TCP_LISTEN, inode & 0xFFFFFFFF, UDIAG_SHOW_RQLEN, NO_COOKIE, NO_COOKIE
    )
    request = HEADER.pack(HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0) + body
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as kernel:
            kernel.send(request)
            return _read_queue_length(kernel.recv(ANSWER_SIZE))
    except OSError as error:
        # A kernel without unix_diag, a sandbox without netlink.
        if error.errno in (
            errno.ENOENT,
            errno.EPROTONOSUPPORT,
            errno.EAFNOSUPPORT,
            errno.EPERM,
            errno.EACCES,
        ):
            return None
        raise


def _read_queue_length(answer: bytes) -> int | None:
    """Return what an answer says; the kernel answers with an error where it has no unix_diag."""
    size, kind = HEADER.unpack_from(answer)[:2]
    at = HEADER.size + ANSWER.size
    while kind == SOCK_DIAG_BY_FAMILY and at + ATTRIBUTE.size <= size:
        length, attribute = ATTRIBUTE.unpack_from(answer, at)
        if attribute == UNIX_DIAG_RQLEN:
            return int(LENGTH.unpack_from(answer, at + ATTRIBUTE.size)[0])
        at += (length + 3) & ~3
    return None
