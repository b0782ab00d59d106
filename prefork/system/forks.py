"""What the processes that an application forks do not get of the worker, or template, that they are copies of.

A worker's TERM is a drain, which its wake-up descriptor reports: in a copy the signal would end nobody, and be taken for
the worker's own. Its sockets would be held open for as long as a copy lives: listeners, clients, the channel to the master.
Between the fork and the end of ``_become_copy`` TERM is held back, or it would be met by the worker's handler: that is the
moment at which multiprocessing.Pool ends its processes.

prefork's own forks (process.fork) are not meant: they sort out for themselves what they have inherited.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

from prefork.system import signals

_closers: list[Callable[[], object]] = []
_masks = threading.local()
_is_watching = False
_is_own = False
_has_forked = False


def watch() -> None:
    """From now on mind what the application forks; a worker forked by a template starts with nothing to be closed."""
    global _is_watching
    _closers.clear()
    if not _is_watching:
        _is_watching = True
        os.register_at_fork(before=_hold_term, after_in_parent=_go_on_as_parent, after_in_child=_become_copy)


def close_in_copies(close: Callable[[], object]) -> None:
    """Have this called in each process that the application forks, before any code of the application."""
    _closers.append(close)


def have_happened() -> bool:
    """Tell whether the application has forked: a copy that does not know of it may hold any connection open."""
    return _has_forked


def begin_own() -> None:
    """Let the next fork be prefork's own."""
    global _is_own
    _is_own = True


def end_own() -> None:
    """Let further forks be the application's."""
    global _is_own
    _is_own = False


def _hold_term() -> None:
    if not _is_own:
        _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _go_on_as_parent() -> None:
    global _has_forked
    if not _is_own:
        _has_forked = True
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _become_copy() -> None:
    if _is_own:
        return
    signals.reset_for_copy()
    while _closers:
        with suppress(OSError, ValueError):  # closed already
            _closers.pop()()
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)
