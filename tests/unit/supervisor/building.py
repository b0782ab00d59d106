"""Configurations and a few verbs, so that tests read as stories: pids are 42 and above, nobody is really born."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from prefork.config.schema import Config, Listen, Log, Master, Pool
from prefork.supervisor.actions import Action, Disown, Spawn
from prefork.supervisor.events import BootFailed, Event, Exit, Exited, LeftQueue, Ready, Spawned, SpawnFailed
from prefork.supervisor.server import Supervisor
from prefork.units import Address, Share, TcpAddress

CLEAN = Exit(code=0)
SHOT = Exit(signal="SIGKILL")
A = TcpAddress("127.0.0.1", 8000)
B = TcpAddress("127.0.0.1", 8001)
T = TypeVar("T")


def pool(name: str = "web", *, at: Sequence[Address] = (A,), surge: int = 1, **options: Any) -> Pool:
    listen = tuple(Listen(address=address) for address in at)
    return Pool(name=name, listen=listen, wsgi="shop:app", surge=Share(number=surge), **options)


def config(*pools: Pool) -> Config:
    master = Master(name="shop", directory="/srv", control="/run/shop.sock")
    return Config(master=master, log=Log(), pools={each.name: each for each in pools})


class House:
    """A supervisor whose forks succeed at once; the rest is told to it by the test."""

    def __init__(self, chance: float = 0.5) -> None:
        self.supervisor = Supervisor(lambda: chance)
        self.now = 100.0
        self.actions: list[Action] = []
        self.spawned: dict[int, Spawn] = {}
        self.forks = True
        self.disowned: Spawned | None = None  # who turns out to be born when it is waited for no longer
        self.busy_times: dict[int, float] = {}

    def tell(self, event: Event) -> list[Action]:
        """Hand in an event, and the birth of whoever is spawned; return all that was asked for."""
        self.actions = self._handle(event)
        return self.actions

    def _handle(self, event: Event) -> list[Action]:
        asked: list[Action] = []
        for action in self.supervisor.handle(event, self.now):
            asked.append(action)
            if isinstance(action, Spawn) and self.forks:
                self.spawned[action.birth] = action
                asked += self._handle(Spawned(action.birth, 41 + action.birth))
            elif isinstance(action, Disown):
                asked += self._handle(self.disowned or SpawnFailed(action.birth, action.reason))
        return asked

    def wait(self, seconds: float, event: Event) -> list[Action]:
        self.now += seconds
        return self.tell(event)

    def births(self, generation: int | None = None, name: str = "web") -> list[int]:
        """Return who lives in a pool, oldest first."""
        lives = [life for keeper in self.supervisor._all() for life in keeper.lives.values()]
        return sorted(
            life.birth for life in lives if life.pool.name == name and generation in (None, life.generation)
        )

    def ready(self, *births: int) -> list[Action]:
        return [action for birth in births for action in self.tell(Ready(birth))]

    def leave(self, *births: int) -> list[Action]:
        """Have drained workers leave their queue and exit."""
        asked: list[Action] = []
        for birth in births:
            asked += [*self.tell(LeftQueue(birth)), *self.tell(Exited(birth, CLEAN))]
        return asked

    def fail(
        self, birth: int, reason: str = "ImportError: shop", traceback: str = "Traceback: …"
    ) -> list[Action]:
        return [*self.tell(BootFailed(birth, reason, traceback)), *self.tell(Exited(birth, Exit(code=3)))]


def only(kind: type[T], actions: Sequence[object]) -> list[T]:
    return [action for action in actions if isinstance(action, kind)]


def one(kind: type[T], actions: Sequence[object]) -> T:
    found = only(kind, actions)
    assert len(found) == 1, actions
    return found[0]
