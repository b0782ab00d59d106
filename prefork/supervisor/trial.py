"""A pool's next generation while it does not count yet: what it has shown, and why it may have to be given up."""

from __future__ import annotations

from enum import Enum, auto

import msgspec

from prefork.config.schema import TEMPLATE, Pool
from prefork.supervisor.events import Exit
from prefork.supervisor.worker import Life, State


class Verdict(Enum):
    """What a trial has shown so far."""

    PENDING = auto()
    PASSED = auto()
    FAILED = auto()


class Trial(msgspec.Struct):
    """A generation that does not count yet.

    ``cleared`` once all that it comes after have passed; ``places`` is how many workers it is tried with, once that is
    known, ``spawned`` how many of them were started; ``failure`` is how its latest worker failed, with the traceback;
    ``ends`` are the final ones, by slot.
    """

    settings: Pool
    generation: int
    cleared: bool = False
    begun: bool = False
    places: int | None = None
    spawned: int = 0
    failure: tuple[str, str] = ("no worker could be started", "")
    has_failed: bool = False
    has_done: bool = False
    ends: dict[int, Exit] = msgspec.field(default_factory=dict)

    @property
    def is_once(self) -> bool:
        """Whether the generation has to be done before it counts."""
        return self.settings.restart == "once"

    @property
    def taken(self) -> int:
        """How many places of the generation before it has to be given, because nobody starts before somebody has ended."""
        return (self.places or 0) if self.settings.stops_first else 0

    def note_gone(self, life: Life) -> None:
        """Take notice of a worker of this generation that is gone, unasked; or of its template."""
        if life.slot == TEMPLATE:
            self._note_template_gone(life)
            return
        if life.is_final:
            self.ends[life.slot] = life.exit or Exit()
        if life.done and (life.is_final or life.ready_at is not None):
            self.has_done = True
        else:
            self.has_failed = True
            self.failure = (life.reason, life.traceback)

    def _note_template_gone(self, life: Life) -> None:
        """Give up, unless workers were ordered already: they show what the generation is worth."""
        if not self.begun:
            self.begun = self.has_failed = True
            self.failure = (life.reason, life.traceback)

    def verdict(self, workers: list[Life]) -> Verdict:
        """Return what its workers, and those that are gone, have shown."""
        if self.is_once:
            if self.has_failed:
                return Verdict.FAILED
            return Verdict.PASSED if len(self.ends) == self.settings.workers else Verdict.PENDING
        if self.has_done or any(life.state is State.READY for life in workers):
            return Verdict.PASSED
        # Who has failed is waited for until it is gone: only then is it known how it ended.
        return Verdict.PENDING if workers or not self.begun else Verdict.FAILED

    def complaint(self) -> str:
        """Return in words why it was given up."""
        what = "no worker of generation {} got ready"
        if self.is_once:
            what = "its work in generation {} did not end well"
        return f"{what.format(self.generation)}: {self.failure[0]}"
