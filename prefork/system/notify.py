"""Tells the service manager how this process is doing: sd_notify(3), sd_watchdog_enabled(3)."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """The way to a service manager that wants to be told.

    Attributes:
        watchdog: within how many seconds it wants to hear ``WATCHDOG=1`` again and again, or None.

    """

    def __init__(self, path: str, watchdog: float | None) -> None:
        self.watchdog = watchdog
        # A name that begins with "@" is in the abstract namespace (unix(7)).
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def tell(self, assignments: list[str]) -> None:
        """Send assignments like ``READY=1``, all in one message.

        Raises OSError; BlockingIOError while the service manager has not read what it was told before.
        """
        self._socket.sendto("\n".join(assignments).encode(), socket.MSG_NOSIGNAL, self._address)


def notifier(environment: Mapping[str, str]) -> Notifier | None:
    """Return the way to the service manager that an environment names, None if there is none."""
    path = environment.get("NOTIFY_SOCKET")
    return Notifier(path, _watchdog(environment)) if path else None


def _watchdog(environment: Mapping[str, str]) -> float | None:
    interval, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID")
    is_ours = pid in (None, str(os.getpid()))
    return int(interval) / 1e6 if interval.isdecimal() and int(interval) and is_ours else None
