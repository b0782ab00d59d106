"""An event loop that the stall clock can watch, without a single wake-up while nothing happens.

uvloop tells nobody when it begins to wait and when it goes on. But whatever coroutines do begins with ``call_soon``, by
which a task's next step is ordered, so the first one after a quiet time arms the clock; from then on a timer, the beat,
arms it anew as long as anything has happened since the last beat, and disarms it otherwise. Rejected: a beat for ever,
which would wake idle workers; a thread that watches the loop's descriptor, which sees no timers; asyncio's own loop
with a selector of ours, which takes twice the CPU.

What is not seen is a plain callback (of ``call_later``, ``add_reader``, a protocol) that blocks the loop right after a
quiet time, before any coroutine has run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import Context
from typing import TypeVarTuple, Unpack

import uvloop

from prefork.scoreboard import Row
from prefork.worker.hearing import HearingLoop, HearTerm

# How often the clock is armed anew, at least; four times within stall_timeout if that is more often.
LONGEST_BEAT = 1.0

_call_soon = uvloop.Loop.call_soon
Ts = TypeVarTuple("Ts")


class WatchedLoop(HearingLoop):
    """A loop that arms the stall clock when a coroutine runs.

    Args:
        row: the worker's row of the scoreboard.
        stall_timeout: how long a beat may be late, in seconds.
        wake_master: has the master look at the scoreboard; called when it does not.
        hear_term: see HearingLoop.

    """

    def __init__(
        self, row: Row, stall_timeout: float, wake_master: Callable[[], None], hear_term: HearTerm
    ) -> None:
        super().__init__(hear_term)
        self._row = row
        self._stall_timeout = stall_timeout
        self._wake_master = wake_master
        self._interval = min(LONGEST_BEAT, stall_timeout / 4)
        self._has_stirred = False
        self._is_beating = False

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Call something in the next turn; see ``asyncio.loop.call_soon``."""
        if not self._has_stirred:
            self._stir()
        return _call_soon(self, callback, *args, context=context)

    def _stir(self) -> None:
        self._has_stirred = True
        if not self._is_beating:
            self._is_beating = True
            self._arm()

    def _beat(self) -> None:
        if self._has_stirred:
            self._has_stirred = False
            self._arm()
        else:
            self._is_beating = False
            self._row.rest()
            self._row.set_busy(0.0)

    def _arm(self) -> None:
        self.call_later(self._interval, self._beat)
        due = time.monotonic() + self._interval
        # A beat that is late says that the loop has not come round since: then a new client waits longer here.
        self._row.turn(due, self._stall_timeout)
        self._row.set_busy(due)
        if not self._row.is_watched():
            self._wake_master()
