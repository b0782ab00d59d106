"""An event loop in which TERM stays a drain, whatever handler for it the application adds and removes.

With uvloop's own methods the wake-up descriptor is the loop's while it runs, and so the signal the application's alone, and
deadly once its handler is removed.
"""

from __future__ import annotations

import inspect
import signal
from collections.abc import Callable
from typing import TypeVarTuple, Unpack

import uvloop

Ts = TypeVarTuple("Ts")
# Has TERM heard by prefork's handler, which calls this function then, if it is given one.
HearTerm = Callable[[Callable[[], object] | None], None]


class HearingLoop(uvloop.Loop):
    """A loop whose handlers for TERM are called beside prefork's own.

    Args:
        hear_term: see there.

    """

    def __init__(self, hear_term: HearTerm) -> None:
        super().__init__()
        self._hear_term = hear_term
        self._has_term_handler = False
        hear_term(None)

    def add_signal_handler(self, sig: int, callback: Callable[[Unpack[Ts]], object], *args: *Ts) -> None:
        """Call something when a signal comes; see ``asyncio.loop.add_signal_handler``."""
        if sig != signal.SIGTERM:
            super().add_signal_handler(sig, callback, *args)
            return
        if inspect.iscoroutine(callback) or inspect.iscoroutinefunction(callback):
            raise TypeError("coroutines cannot be used with add_signal_handler()")
        self._hear_term(lambda: self.call_soon_threadsafe(callback, *args))
        self._has_term_handler = True

    def remove_signal_handler(self, sig: int) -> bool:
        """Do so no more; return whether there was a handler."""
        if sig != signal.SIGTERM:
            return super().remove_signal_handler(sig)
        had, self._has_term_handler = self._has_term_handler, False
        if had:
            self._hear_term(None)
        return had

    def close(self) -> None:
        """End the loop; see ``asyncio.loop.close``."""
        self.remove_signal_handler(signal.SIGTERM)
        super().close()
