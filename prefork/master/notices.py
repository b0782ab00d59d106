"""What the service manager is told: when the server is ready, reloads and stops, how it stands, and that it lives.

A reload is announced before anything is read: the manager waits for READY then, and a refused reload ends in it too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from enum import Enum

from prefork.config.order import longest_stop
from prefork.config.schema import Pool
from prefork.log import logger
from prefork.supervisor.server import Phase, Supervisor
from prefork.system.notify import Notifier
from prefork.system.process import own_pid

# How soon a message is tried again that found the manager's queue full.
PAUSE = 0.1
# The watchdog is not fed more often than this, in seconds: an interval that is shorter cannot be kept by anything.
SHORTEST_WATCH = 0.01
# What a drain may take beyond its clocks: stacks, records, the last close.
MARGIN = 5.0


class Word(Enum):
    """What was said last of the server's state (sd_notify(3))."""

    READY = "READY=1"
    RELOADING = "RELOADING=1"
    STOPPING = "STOPPING=1"


class Notices:
    """Says each change once.

    Args:
        notifier: the way to the service manager; without one nothing is said.
        supervisor: what it is told about.
        later: calls a function after so many seconds.

    """

    def __init__(
        self,
        notifier: Notifier | None,
        supervisor: Supervisor,
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._notifier = notifier
        self._supervisor = supervisor
        self._later = later
        self._said: Word | None = None
        self._status = ""
        self._will_extend = False
        if notifier is not None and notifier.watchdog is not None:
            self._feed_watchdog(notifier, notifier.watchdog)

    def past(self) -> Word | None:
        """Return what was said last, for a program that takes over: the manager has heard it from this process."""
        return self._said

    def resume(self, past: Word | None) -> None:
        """Go on from what the program before has said last."""
        self._said = past

    def begin_reload(self) -> None:
        """Announce a reload; ``show`` tells how it ends."""
        if self._said is Word.READY:
            self._say(Word.RELOADING, self._status)

    def show(self) -> None:
        """Tell what has changed, if anything has."""
        if self._notifier is None:
            return
        word, status = self._word(), _status(self._supervisor)
        if (word, status) != (self._said, self._status):
            self._say(word, status)

    def _word(self) -> Word | None:
        if self._supervisor.phase is Phase.STOPPING:
            return Word.STOPPING
        if self._supervisor.is_rolling:
            return self._said and Word.RELOADING
        return Word.READY if self._supervisor.is_manned else self._said

    def _say(self, word: Word | None, status: str) -> None:
        assignments = [f"STATUS={status}"]
        if word is not None and word is not self._said:
            assignments += [word.value, *_details(word)]
        if word is not Word.READY:
            assignments.append(f"EXTEND_TIMEOUT_USEC={_microseconds(_longest(self._supervisor, word))}")
        assert self._notifier is not None
        try:
            self._notifier.tell(assignments)
        except BlockingIOError:
            self._later(PAUSE, self.show)
            return
        except OSError as error:
            logger.warning("the service manager cannot be told %s: %s", assignments, error.strerror)
        self._said, self._status = word, status
        self._plan_extension()

    def _plan_extension(self) -> None:
        """See to it that the manager goes on waiting while work is done that no clock limits, and nothing is told."""
        if _is_endless(self._supervisor) and not self._will_extend:
            self._will_extend = True
            self._later(_longest(self._supervisor, self._said) / 2, self._extend)

    def _extend(self) -> None:
        self._will_extend = False
        if _is_endless(self._supervisor):
            self._say(self._said, self._status)

    def _feed_watchdog(self, notifier: Notifier, interval: float) -> None:
        """Show that the loop turns, twice as often as demanded, as sd_watchdog_enabled(3) advises."""
        try:
            notifier.tell(["WATCHDOG=1"])
        except OSError as error:
            logger.debug("the watchdog was not fed: %s", error.strerror)
        self._later(max(interval / 2, SHORTEST_WATCH), lambda: self._feed_watchdog(notifier, interval))


def _details(word: Word) -> list[str]:
    match word:
        case Word.READY:
            return [f"MAINPID={own_pid()}"]
        case Word.RELOADING:
            return [f"MONOTONIC_USEC={_microseconds(time.monotonic())}"]
        case Word.STOPPING:
            return []


def _status(supervisor: Supervisor) -> str:
    keepers = supervisor.keepers.values()
    wanted = [max(0, keeper.size - len(keeper.ends)) for keeper in keepers]
    # While one generation replaces another there are more; whether all pools have theirs is what people want to know.
    ready = sum(min(keeper.ready, number) for keeper, number in zip(keepers, wanted, strict=True))
    degraded = "".join(
        f"; {keeper.name} is degraded: {keeper.degraded}" for keeper in keepers if keeper.degraded
    )
    return f"{supervisor.state}, generation {supervisor.generation}: {ready} of {sum(wanted)} workers ready{degraded}"


def _longest(supervisor: Supervisor, word: Word | None) -> float:
    """Return how long it may take until there is something to tell again, in seconds."""
    pools = list(_settings(supervisor))
    if word is Word.STOPPING:
        return MARGIN + longest_stop({pool.name: pool for pool in pools})
    return MARGIN + max((pool.boot_timeout + pool.graceful_timeout for pool in pools), default=0.0)


def _is_endless(supervisor: Supervisor) -> bool:
    """Return whether a start or a reload waits for a pool that runs once: its work may take as long as it likes."""
    trials = (keeper.trial for keeper in supervisor.keepers.values())
    return any(trial is not None and trial.is_once for trial in trials)


def _settings(supervisor: Supervisor) -> Iterator[Pool]:
    for keeper in supervisor.keepers.values():
        if keeper.settings is not None:
            yield keeper.settings
        if keeper.trial is not None:
            yield keeper.trial.settings


def _microseconds(seconds: float) -> int:
    return int(seconds * 1e6)
