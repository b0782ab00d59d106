"""What a program says by sd_notify(3): a socket for the programs of one worker, in the place of systemd's."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

from prefork.errors import BootError

MAX_NOTICE = 4096
# At once; the next ones are taken in the next turn.
MAX_NOTICES = 64
# struct ucred: pid, uid, gid (unix(7)).
CREDENTIALS = struct.Struct("3i")


class Notices:
    """A datagram socket with an abstract address of the kernel's choice: no file that could be left behind.

    Anybody on this machine can send to such an address, so the kernel has to tell whose each datagram is.

    Args:
        users: the numbers of those users who are believed.

    Attributes:
        address: what NOTIFY_SOCKET is to be.

    Raises BootError where there are no such sockets.

    """

    def __init__(self, users: set[int]) -> None:
        if not hasattr(socket, "SO_PASSCRED"):
            raise BootError('ready = "notify" needs Linux', 'write ready = "started"')
        self._users = users
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind("")  # autobind, unix(7)
        self.address = "@" + os.fsdecode(self._socket.getsockname()[1:])

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._socket.fileno()

    def take(self) -> Iterator[str]:
        """Yield the assignments that have come, such as ``READY=1``."""
        for _ in range(MAX_NOTICES):
            try:
                # No room for descriptors: the kernel closes those that come along (sd_notify_barrier(3) waits for it).
                data, ancillary, _flags, _address = self._socket.recvmsg(
                    MAX_NOTICE, socket.CMSG_SPACE(CREDENTIALS.size)
                )
            except BlockingIOError:
                return
            if _sender(ancillary) in self._users:
                yield from data.decode("utf-8", "replace").splitlines()


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    """Return the number of the user who has sent a datagram, as the kernel tells."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(data) >= CREDENTIALS.size:
            return int(CREDENTIALS.unpack_from(data)[1])
    return None
