"""Signals: a handler queues and wakes, nothing else."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from types import FrameType

# The signal by which a worker is asked for its stacks. A real-time one: applications use those hardly ever.
STACKS_SIGNAL = signal.SIGRTMIN + 8 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR2
READ_SIZE = 4096


class SignalQueue:
    """The signals of this process as a descriptor to wait for.

    The interpreter's own C handler writes the number of each signal to a pipe (signal.set_wakeup_fd), so none is
    handled in the middle of anything, and none wakes the process without being seen.
    """

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        self._signals = tuple(signals)
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        for number in self._signals:
            signal.signal(number, _ignore)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def fileno(self) -> int:
        """Return the descriptor that is readable when signals wait."""
        return self._read

    def take(self) -> list[signal.Signals]:
        """Return the signals that have come, each once, in the order of their first coming."""
        try:
            data = os.read(self._read, READ_SIZE)
        except BlockingIOError:
            return []
        return [signal.Signals(number) for number in dict.fromkeys(data)]

    def close(self) -> None:
        """Give the wake-up descriptor back; further signals are ignored.

        SIG_IGN, since the interpreter puts SIG_DFL in the place of Python handlers when it ends: a late SIGHUP
        would make a death by a signal of an orderly end.
        """
        signal.set_wakeup_fd(-1)
        for number in self._signals:
            signal.signal(number, signal.SIG_IGN)
        os.close(self._read)
        os.close(self._write)


def block_all() -> None:
    """Hold back all signals, around a fork: neither process handles one meant for the other."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def unblock_all() -> None:
    """Let signals through again."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())


def reset_for_worker() -> None:
    """Make a fresh worker deaf to what is meant for the master, and to nothing else.

    A terminal sends INT, QUIT, HUP and WINCH to the whole group, and people send HUP and USR1 by name: what follows
    is the master's to say. No-op handlers rather than SIG_IGN, because programs that the handler's code starts
    inherit what is ignored, but not handlers (execve(2)). TERM means drain.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    for number in (
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGHUP,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGWINCH,
        signal.SIGTERM,
    ):
        signal.signal(number, _ignore)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Handle a signal by its number having been written to the wake-up descriptor."""
