"""The processes that call the hook ``ended``, each for one worker that has ended, and no longer than ``boot_timeout``."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial

import msgspec

from prefork.config.schema import Log
from prefork.log import Identity, logger
from prefork.master.charge import Charge
from prefork.system import process
from prefork.system.process import Child, Ended
from prefork.units import format_duration
from prefork.worker import farewell


class Running(msgspec.Struct):
    """A process that calls the hook for a worker.

    Attributes:
        child: the process.
        worker: which worker has ended.
        limit: for how many seconds the hook may run.
        until: when they are over, on the monotonic clock.
        is_late: whether it was killed for that.

    """

    child: Child
    worker: Identity
    limit: float
    until: float
    is_late: bool = False


class Farewells:
    """Those that are under way.

    Args:
        later: calls a function after so many seconds.

    """

    def __init__(self, later: Callable[[float, Callable[[], None]], None]) -> None:
        self._later = later
        self._running: dict[int, Running] = {}

    def past(self) -> list[Running]:
        """Return those that are under way, for a program that takes over."""
        return [*self._running.values()]

    def resume(self, past: list[Running]) -> None:
        """Go on with those that the program before has begun."""
        for found in past:
            self._watch(found)

    @property
    def are_over(self) -> bool:
        """Whether no hook is being called."""
        return not self._running

    def begin(self, charge: Charge, ended: Ended, log_as: tuple[Log, int]) -> None:
        """Have the hook called for a worker that has ended, if it has one."""
        if charge.farewell is None:
            return
        of_worker = charge.pool, charge.slot, charge.identity, ended.status
        call = partial(farewell.run, charge.farewell, *of_worker, log_as, process.own_pid())
        try:
            child = process.fork(call)
        except OSError as error:
            logger.error(
                "hook ended is left out: cannot fork: %s", error.strerror, extra={"identity": charge.identity}
            )
            return
        limit = charge.pool.boot_timeout
        self._watch(Running(child, charge.identity, limit, time.monotonic() + limit))

    def take(self, pid: int, ended: Ended) -> bool:
        """Take notice of a dead child; return whether it was one of these."""
        found = self._running.pop(pid, None)
        if found is None:
            return False
        found.child.close()
        if ended.signal is not None and not found.is_late:
            logger.error("hook ended was ended by %s", ended.signal, extra={"identity": found.worker})
        return True

    def end_all(self) -> None:
        """Kill all of them: somebody does not want to wait."""
        for found in self._running.values():
            found.is_late = True
            process.kill_session(found.child)

    def _watch(self, running: Running) -> None:
        self._running[running.child.pid] = running
        self._later(max(0.0, running.until - time.monotonic()), partial(self._end_late, running))

    def _end_late(self, running: Running) -> None:
        if self._running.get(running.child.pid) is running:
            running.is_late = True
            limit = format_duration(running.limit)
            text = "hook ended ran %s, limit %s (boot_timeout); it is killed"
            logger.error(text, limit, limit, extra={"identity": running.worker})
            running.child.send_signal(signal.SIGKILL)
