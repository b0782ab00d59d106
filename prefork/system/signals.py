"""Signals: a handler queues and wakes, nothing else."""

from __future__ import annotations

import ctypes
import inspect
import mmap
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable
from functools import cache
from types import FrameType

# The signal by which a worker is asked for its stacks. A real-time one: applications use those hardly ever.
STACKS_SIGNAL = signal.SIGRTMIN + 8 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR2
READ_SIZE = 4096
STACK_SIZE = 512 * 1024
_handler_of = signal._signal.getsignal  # type: ignore[attr-defined]  # noqa: SLF001 - see is_default


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

    def is_empty(self) -> bool:
        """Return whether none waits to be taken."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        return not poll.poll(0)

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


class _Stack(ctypes.Structure):
    """struct stack_t of Linux (sigaltstack(2))."""

    _fields_ = (("base", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def enlarge_stack() -> None:
    """Give the handlers of this thread's signals a stack that has room for all of them at once; Linux only.

    Python's handlers run on the alternative stack that faulthandler has put up, and do not hold other signals back.
    Each frame takes up to 11 KiB (AT_MINSIGSTKSZ, with AMX), and faulthandler has room for one and 8 KiB: signals that
    come together overflowed it, which is a segmentation fault.
    """
    if sys.platform.startswith("linux"):
        stack = _Stack(ctypes.addressof(ctypes.c_char.from_buffer(_stack())), 0, STACK_SIZE)
        ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None)


@cache
def _stack() -> mmap.mmap:
    """Return memory that is kept for good, and takes room only as far as it is used."""
    return mmap.mmap(-1, STACK_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


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


def reset_for_copy() -> None:
    """Let TERM end a process that the application has forked, unless the application has a handler of its own.

    What a terminal sends to the whole group stays without effect: the worker finishes what it has, and may need its copy.
    """
    signal.set_wakeup_fd(-1)
    if signal.getsignal(signal.SIGTERM) in _own_handlers:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def handle_term(handler: Callable[[int, FrameType | None], None]) -> None:
    """Have TERM handled by a function of prefork's own, in Python."""
    signal.signal(signal.SIGTERM, handler)
    if handler not in _own_handlers:
        _own_handlers.append(handler)


def is_default(number: int) -> bool:
    """Return whether a signal does what it does without a handler; asked for often: signal.getsignal() takes eight times as long."""
    return bool(_handler_of(number) == signal.SIG_DFL)


def is_of_handler(error: BaseException) -> bool:
    """Return whether a handler that the application has for a signal has raised this, in the midst of something else."""
    place = error.__traceback__
    while place is not None:
        code, values = place.tb_frame.f_code, place.tb_frame.f_locals
        arguments = [values.get(name) for name in code.co_varnames[: code.co_argcount]]
        if code.co_flags & inspect.CO_VARARGS:
            arguments += values.get(code.co_varnames[code.co_argcount + code.co_kwonlyargcount], ())
        arguments = arguments[-2:]
        if len(arguments) == 2 and isinstance(arguments[0], int) and isinstance(arguments[1], FrameType):
            return True
        place = place.tb_next
    return False


def report_to(numbers: Iterable[int]) -> int:
    """Have these signals do nothing but write their numbers, as bytes, to a pipe; return the end to read them from."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, _ignore)
    return read


def reset_for_program() -> None:
    """Give the program that is about to be executed every signal as it expects it: not ignored, not held back."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    unblock_all()


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Handle a signal by its number having been written to the wake-up descriptor."""


_own_handlers: list[Callable[[int, FrameType | None], None]] = [_ignore]
