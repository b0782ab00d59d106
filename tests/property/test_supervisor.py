"""Random histories against the supervisor: no order to the dead, no spinning, no sleeping over work, convergence, an end."""

from __future__ import annotations

import os

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from prefork.config.listeners import keyed
from prefork.config.order import circle, predecessors
from prefork.config.schema import Config, Pool
from prefork.config.schema import Scale as Scaling
from prefork.supervisor.events import (
    Boot,
    ChannelLost,
    Continued,
    Exit,
    Halted,
    Invalid,
    Knocked,
    LeftQueue,
    Reload,
    Rest,
    Scale,
    Shift,
    Spent,
    Stop,
)
from prefork.supervisor.pool import SETTLE
from prefork.supervisor.server import Phase
from prefork.supervisor.worker import QUICK, STACKS, UNKILLABLE
from tests.property.fake_system import BROKEN, PORTS, FakeSystem, config, pool

CLOCKS = {"boot_timeout": 8.0, "request_timeout": 4.0, "stall_timeout": 4.0, "graceful_timeout": 5.0}
DRAIN_DELAY = 3.0
AGE = 40.0
IDLE_FOR = 6.0
# An obedient world has settled by then: back-off at its limit, boots, drains and the clocks of who still hangs.
LONG_ENOUGH = 300.0
# A dump may be under way when the drain is ordered, and another follows its clock; three pools may leave one by one.
SLOWEST_STOP = DRAIN_DELAY + 3 * (SETTLE + CLOCKS["graceful_timeout"] + 2 * STACKS)
A_MOMENT = 0.1
RESTARTS = ["always", "always", "always", "on-failure", "never", "once"]
EXAMPLES = int(os.environ.get("SUPERVISOR_EXAMPLES", "200"))


NAMES = st.sampled_from(["web", "api", "mail"])


@st.composite
def scales(draw: st.DrawFn) -> Scaling:
    least = draw(st.integers(0, 3))
    most = draw(st.integers(max(1, least), 5))
    return Scaling(min=least, max=most, spare=draw(st.integers(0, most)), idle_for=IDLE_FOR)


@st.composite
def pools(draw: st.DrawFn, name: str, ports: list[int], broken: bool) -> Pool:
    restart = draw(st.sampled_from(RESTARTS))
    kind = "task" if restart == "once" else draw(st.sampled_from(["wsgi", "wsgi", "task", "command"]))
    return pool(
        name,
        [PORTS[number] for number in ports],
        broken=broken and draw(st.booleans()),
        surge=draw(st.integers(1, 3)),
        workers=draw(st.integers(1, 4)),
        threads=draw(st.sampled_from([1, 4])),
        preload=kind != "command" and draw(st.booleans()),
        reload="if-changed" if kind == "command" else "always",
        replace=draw(st.sampled_from(["start-first", "stop-first"])) if kind != "wsgi" else "start-first",
        drain_delay=draw(st.sampled_from([0.0, DRAIN_DELAY])),
        restart=restart,
        essential=restart in ("never", "on-failure") and draw(st.integers(0, 3)) == 3,
        task=kind == "task",
        max_age=draw(st.sampled_from([0.0, 0.0, 0.0, AGE])),
        scale=draw(scales()) if restart == "always" and kind == "wsgi" and draw(st.booleans()) else None,
        **CLOCKS,
    )


@st.composite
def configs(draw: st.DrawFn, broken: bool) -> Config:
    """Draw one to three pools that share the three ports among them; some come after earlier ones."""
    names = draw(st.permutations(["web", "api", "mail"]))[: draw(st.integers(1, 3))]
    ports = draw(st.permutations(range(3)))
    drawn = [draw(pools(name, [port], broken)) for name, port in zip(names, ports, strict=False)]
    ordered = [
        msgspec.structs.replace(
            pool, after=tuple(name for name in names[:number] if draw(st.integers(0, 2)) == 2)
        )
        for number, pool in enumerate(drawn)
    ]
    found = config(*ordered)
    return config(*drawn) if circle(predecessors(found.pools)) else found


births = st.integers(0, 100)


class Histories(RuleBasedStateMachine):
    """Anything may happen to the server, at any time, until it is asked to settle or to stop."""

    @initialize(
        seed=st.integers(0, 2**32),
        nested=st.booleans(),
        first=configs(broken=False),
        behave=st.booleans(),
        seconds=st.sampled_from([10.0, 0.5, 0.0]),
    )
    def boot(self, seed: int, nested: bool, first: Config, behave: bool, seconds: float) -> None:
        self.system = FakeSystem(seed, nested=nested)
        self.system.behave = behave
        self.system.tell(Boot(first))
        self.system.run(seconds)

    def going_on(self) -> bool:
        return self.system.supervisor.phase is not Phase.STOPPING

    def anybody(self, number: int) -> int | None:
        living = self.system.living()
        return living[number % len(living)] if living else None

    # Time and temper.

    @rule(steps=st.integers(1, 30))
    def let_time_pass(self, steps: int) -> None:
        for _ in range(steps):
            self.system.step()

    @rule(seconds=st.sampled_from([10.0, 1.0, 0.1]))
    def let_seconds_pass(self, seconds: float) -> None:
        self.system.run(seconds)

    @rule(behave=st.booleans())
    def change_temper(self, behave: bool) -> None:
        self.system.behave = behave

    # What people ask for.

    @rule(new=configs(broken=True))
    def reload(self, new: Config) -> None:
        self.system.tell(Reload(new))

    @rule()
    def reload_the_same(self) -> None:
        assert self.system.wanted is not None
        self.system.tell(Reload(self.system.wanted))

    @rule(new=configs(broken=True), names=st.sets(NAMES, min_size=1))
    def reload_some(self, new: Config, names: set[str]) -> None:
        """Some pools are as a new file has them, the others stay as they are, or as they are about to be."""
        base = self.base()
        pools = {name: found for name, found in base.pools.items() if name not in names}
        pools |= {name: found for name, found in new.pools.items() if name in names}
        merged = config(*pools.values())
        keys = [key for found in pools.values() for key in keyed(found)]
        if pools and len(set(keys)) == len(keys) and not circle(predecessors(pools)):
            self.system.tell(Reload(merged, only=frozenset(names)))

    @rule(name=NAMES)
    def restart(self, name: str) -> None:
        base = self.base()
        if name in base.pools:
            self.system.tell(Reload(base, only=frozenset({name}), forced=frozenset({name})))

    def base(self) -> Config:
        """Return the configuration that a part of a file is read into: the latest one, unless it was given up."""
        supervisor = self.system.supervisor
        pending = supervisor._pending and supervisor._pending.config
        found = pending or supervisor._candidate or supervisor._config or self.system.wanted
        assert found is not None
        return found

    @rule(new=st.none() | configs(broken=True))
    def upgrade(self, new: Config | None) -> None:
        """Another program goes on, then reloads; or finds a file that it cannot read."""
        if self.system.upgrade() and new is not None:
            self.system.tell(Reload(new))

    @rule(name=NAMES, workers=st.integers(-1, 5))
    def scale(self, name: str, workers: int) -> None:
        if not self.has_not_been_tried(name):
            self.system.tell(Scale(name, workers))

    @rule(by=st.sampled_from([1, -1]))
    def shift(self, by: int) -> None:
        if not self.has_not_been_tried(next(iter(self.system.supervisor.keepers), "")):
            self.system.tell(Shift(by))

    def has_not_been_tried(self, name: str) -> bool:
        """Tell whether a generation that cannot serve counts, because the pool was stopped when it should have been tried."""
        keeper = self.system.supervisor.keepers.get(name)
        return bool(keeper and keeper.stopped and keeper.settings and keeper.settings.application == BROKEN)

    @rule(chance=st.integers(0, 9))
    def rest(self, chance: int) -> None:
        if chance == 9:  # seldom, since there is nobody left afterwards
            self.system.tell(Rest())

    # What processes do.

    @rule(number=births, how=st.sampled_from([Exit(code=1), Exit(signal="SIGKILL"), Exit(code=0)]))
    def somebody_dies(self, number: int, how: Exit) -> None:
        if (birth := self.anybody(number)) is not None:
            self.system.die(birth, how)

    @rule(number=births)
    def somebody_leaves(self, number: int) -> None:
        if (birth := self.anybody(number)) is not None:
            self.system.plan(LeftQueue(birth), 0.0)

    @rule(number=births)
    def somebody_is_spent(self, number: int) -> None:
        if (birth := self.anybody(number)) is not None:
            self.system.plan(Spent(birth, "max_requests 1,003"), 0.0)

    @rule(number=births)
    def somebody_closes_its_channel(self, number: int) -> None:
        if (birth := self.anybody(number)) is not None:
            self.system.plan(ChannelLost(birth), 0.0)

    @rule(number=births)
    def somebody_sends_what_cannot_be(self, number: int) -> None:
        if (birth := self.anybody(number)) is not None:
            self.system.plan(Invalid(birth, "it sent an invalid message"), 0.0)

    @rule(number=births)
    def somebody_is_halted(self, number: int) -> None:
        if (birth := self.anybody(number)) is not None:
            self.system.processes[birth].halted = True
            self.system.tell(Halted(birth))

    @rule()
    def the_halted_go_on(self) -> None:
        for birth, process in list(self.system.processes.items()):
            if process.halted:
                process.halted = False
                self.system.tell(Continued(birth))

    @rule(seconds=st.sampled_from([2.5, 0.5]))
    def all_are_busy(self, seconds: float) -> None:
        for birth in self.system.living():
            self.system.work(birth, seconds)

    @rule()
    def clients_come_to_pools_that_sleep(self) -> None:
        for address in sorted(self.system.awaited, key=str):
            self.system.tell(Knocked(address))

    @rule(number=births, seconds=st.sampled_from([60.0, 3.0, 0.1, 0.0]))
    def a_request_comes(self, number: int, seconds: float) -> None:
        if (birth := self.anybody(number)) is not None:
            self.system.work(birth, seconds)

    # What it must come to.

    @rule(forgiven=st.booleans())
    def it_converges_once_everybody_behaves(self, forgiven: bool) -> None:
        if forgiven:
            self.the_halted_go_on()
        self.system.behave = True
        self.system.run(LONG_ENOUGH)
        self.let_the_old_go()
        assert self.system.is_calm, "it never settles"
        self.system.check_settled()

    def let_the_old_go(self) -> None:
        """Find a moment at which nobody is being replaced: of workers that must not grow old there always is one."""
        for _ in range(1000):
            if self.system.is_calm or not self.system.step():
                break

    @rule(chance=st.integers(0, 9), now=st.booleans())
    def it_is_told_to_stop(self, chance: int, now: bool) -> None:
        if chance == 9:  # seldom, since little can happen after it
            self.stops(now)

    def stops(self, now: bool) -> None:
        quick = now or not self.going_on()
        self.system.tell(Stop(now))
        if quick:
            self.ends_within(QUICK)

    def ends_within(self, seconds: float) -> None:
        self.system.run(seconds + A_MOMENT)
        if any(process.immortal for process in self.system.processes.values()):
            self.system.run(UNKILLABLE)
        assert self.system.ended is not None, "it does not stop"

    def teardown(self) -> None:
        """Stopping always ends, whoever obeys: whatever happened before, and wherever a stop had got to."""
        if not hasattr(self, "system"):
            return
        if self.going_on():
            self.system.tell(Stop())
        self.ends_within(SLOWEST_STOP)


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=60,
    deadline=None,
    derandomize="SUPERVISOR_EXAMPLES" not in os.environ,
)
