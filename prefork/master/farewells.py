"""The processes that call the hook ``ended``, each for one worker that has ended, and no longer than ``boot_timeout``."""

from __future__ import annotations

import signal
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
    """A process that calls the hook for a worker; ``is_late`` once it was killed for that."""

    child: Child
    worker: Identity
    is_late: bool = False


class Farewells:
    """Those that are under way.

    Args:
        later: calls a function after so many seconds.

    """

    def __init__(self, later: Callable[[float, Callable[[], None]], None]) -> None:
        self._later = later
        self._running: dict[int, Running] = {}

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
        self._running[child.pid] = Running(child, charge.identity)
        limit = charge.pool.boot_timeout
        self._later(limit, partial(self._end_late, child.pid, child, limit))

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

    def _end_late(self, pid: int, child: Child, limit: float) -> None:
        found = self._running.get(pid)
        if found is not None and found.child is child:
            found.is_late = True
            text = "hook ended ran %s, limit %s (boot_timeout); it is killed"
            logger.error(
                text, format_duration(limit), format_duration(limit), extra={"identity": found.worker}
            )
            child.send_signal(signal.SIGKILL)
