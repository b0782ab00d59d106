"""What people ask for through the control socket, and what they are answered, now or when it is done."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from prefork import __version__
from prefork.config.listeners import keyed
from prefork.config.schema import Pool
from prefork.control.messages import (
    Current,
    Death,
    Identity,
    ListenerStatus,
    PoolStatus,
    Request,
    ServerStatus,
    TemplateStatus,
    WorkerStatus,
)
from prefork.control.registry import Record
from prefork.control.server import Reply
from prefork.errors import PreforkError
from prefork.master.charge import Charge
from prefork.master.perform import dump_stacks
from prefork.master.server import Server
from prefork.supervisor import actions, events
from prefork.supervisor.events import Event
from prefork.supervisor.pool import Keeper
from prefork.supervisor.server import Phase, Supervisor
from prefork.supervisor.worker import Life, State
from prefork.system import process
from prefork.system.queues import queue_length
from prefork.worker import channel

# Stacks are complete when none have come for QUIET seconds; who sends none within STACKS has none to send.
STACKS = 1.0
QUIET = 0.1
UNANSWERED = "no answer: the worker is halted, is just starting, or blocks signals"

STATES = {
    State.FORKING: "starting",
    State.STARTING: "starting",
    State.READY: "ready",
    State.DRAINING: "draining",
    State.LEAVING: "stopping",
    State.DUMPING: "stopping",
    State.KILLED: "stopping",
    State.GONE: "stopping",
}


class Scaling(NamedTuple):
    """Somebody who waits for a pool to have so many workers."""

    keeper: Keeper
    workers: int
    reply: Reply


class Requests:
    """Answers requests.

    Attributes:
        record: what commands find the server by.

    Args:
        server, supervisor: what is asked about.
        feed: takes an event to the supervisor and has done what it decides.
        reload: reads the configuration and begins a rollout, of these pools or all; raises PreforkError.
        restart: begins a rollout of one pool by what counts already; raises PreforkError.
        later: calls a function after so many seconds.
        upgrade: begins an upgrade, which ends the reply.

    """

    def __init__(
        self,
        server: Server,
        supervisor: Supervisor,
        feed: Callable[[Event], None],
        reload: Callable[[Sequence[str]], None],
        restart: Callable[[str], None],
        later: Callable[[float, Callable[[], None]], None],
        upgrade: Callable[[Reply], None],
    ) -> None:
        self._server = server
        self._supervisor = supervisor
        self._feed = feed
        self._reload_now = reload
        self._restart_now = restart
        self._later = later
        self._rollout_waiters: list[tuple[Reply, float]] = []
        self._scale_waiters: list[Scaling] = []
        self._stop_waiters: list[Reply] = []
        self._gathering = 0
        self.record: Record | None = None
        self._commands: dict[str, Callable[[dict[str, Any], Reply], None]] = {
            "status": self._status,
            "reload": self._reload,
            "restart": self._restart,
            "signal": self._signal,
            "scale": self._scale,
            "stop": self._stop,
            "reopen": self._reopen,
            "stacks": self._stacks,
            "upgrade": lambda _arguments, reply: upgrade(reply),
            "identity": self._identity,
        }

    def handle(self, request: Request, reply: Reply) -> None:
        """Answer a request, now or later."""
        command = self._commands.get(request.command)
        if command is None:
            known = ", ".join(self._commands)
            reply.error(f"unknown command {request.command!r}", f"this server knows {known}")
            return
        command(request.arguments, reply)

    def tell(self, action: actions.Tell) -> None:
        """Show a line to whoever waits for something to be done."""
        rollouts = (reply for reply, _ in self._rollout_waiters)
        for reply in [*rollouts, *(scaling.reply for scaling in self._scale_waiters), *self._stop_waiters]:
            reply.progress(action.text)

    def end_rollout(self, action: actions.EndRollout) -> None:
        """Tell whoever waits for a rollout how it went; a superseded one is not told of, its successor is."""
        waiters, self._rollout_waiters = self._rollout_waiters, []
        for reply, began in waiters:
            if action.reason is None:
                reply.result({"generation": action.generation, "seconds": round(time.monotonic() - began, 3)})
            else:
                goes_on = self._supervisor.phase is Phase.RUNNING
                hint = "the server goes on as before" if goes_on else None
                reply.error(action.reason, action.hint or hint, action.traceback)

    def settle(self) -> None:
        """Tell those who wait for a number of workers how it went, once that is known."""
        if self._scale_waiters:
            waiters, self._scale_waiters = self._scale_waiters, []
            self._scale_waiters += [scaling for scaling in waiters if not self._is_answered(scaling)]

    def _is_answered(self, scaling: Scaling) -> bool:
        keeper, reply = scaling.keeper, scaling.reply
        if self._supervisor.phase is not Phase.RUNNING or keeper.closing is not None:
            reply.error(f"pool {keeper.name} is stopping")
        elif keeper.wanted != scaling.workers or keeper.is_settled:
            reply.result(
                {
                    "pool": keeper.name,
                    "workers": keeper.wanted,
                    "ready": keeper.ready,
                    "stopped": keeper.stopped,
                }
            )
        elif keeper.degraded is not None:
            found = f"{keeper.ready} of {keeper.wanted} workers ready"
            reply.error(f"pool {keeper.name}: {found}: {keeper.degraded}", "the server goes on trying")
        else:
            return False
        return True

    def past(self) -> list[tuple[Reply, float]]:
        """Return who waits for the end of a rollout, and since when; the next program may be the one to tell them."""
        return self._rollout_waiters

    def resume(self, past: list[tuple[Reply, float]]) -> None:
        """Tell those as well who have asked the program before."""
        self._rollout_waiters += past

    def refuse_rollout(self, error: PreforkError) -> None:
        """Tell whoever waits for a rollout that it does not even begin."""
        waiters, self._rollout_waiters = self._rollout_waiters, []
        for reply, _ in waiters:
            reply.fail(error)

    def _identity(self, _arguments: dict[str, Any], reply: Reply) -> None:
        answer = Identity(
            name=self._server.config.master.name,
            pid=os.getpid(),
            version=__version__,
            file=self.record.file if self.record else "",
            real=self.record.real if self.record else "",
            state=self._supervisor.state,
            generation=self._server.generation,
            uptime=round(time.monotonic() - self._server.began, 3),
        )
        reply.result(msgspec.to_builtins(answer))

    def _reload(self, arguments: dict[str, Any], reply: Reply) -> None:
        self._await_rollout(reply, lambda: self._reload_now(arguments["pools"]))

    def _restart(self, arguments: dict[str, Any], reply: Reply) -> None:
        pool = arguments["pool"]
        keeper = self._supervisor.keepers.get(pool)
        if keeper is None:
            self._refuse_name(pool, reply)
        elif self._supervisor.phase is not Phase.RUNNING or keeper.settings is None:
            reply.error(f"pool {pool} is just starting; it cannot be restarted now")
        elif keeper.stopped:
            reply.error(f"pool {pool} is stopped", f"prefork scale TARGET {pool} N starts it")
        else:
            self._await_rollout(reply, lambda: self._restart_now(pool))

    def _refuse_name(self, pool: str, reply: Reply) -> None:
        reply.error(f"there is no pool {pool!r}", f"pools are: {', '.join(self._supervisor.keepers)}")

    def _await_rollout(self, reply: Reply, begin: Callable[[], None]) -> None:
        waiter = (reply, time.monotonic())
        self._rollout_waiters.append(waiter)
        try:
            begin()
        except PreforkError as error:
            self._rollout_waiters.remove(waiter)
            reply.fail(error)

    def _scale(self, arguments: dict[str, Any], reply: Reply) -> None:
        pool, workers = arguments["pool"], arguments["workers"]
        if pool not in self._supervisor.keepers:
            self._refuse_name(pool, reply)
        elif self._supervisor.keepers[pool].is_done:
            reply.error(f"all workers of pool {pool} are done", "prefork reload starts them anew")
        elif self._supervisor.phase is not Phase.RUNNING:
            reply.error(f"the server is {self._supervisor.phase.value}; it cannot be scaled now")
        elif workers and self._supervisor.keepers[pool].resting:
            reply.error(f"pool {pool} was drained by SIGWINCH", "prefork reload brings its workers back")
        else:
            self._scale_pool(self._supervisor.keepers[pool], workers, reply)

    def _scale_pool(self, keeper: Keeper, workers: int, reply: Reply) -> None:
        if keeper.settings is None:
            reply.error(f"pool {keeper.name} is just starting; it cannot be scaled now")
            return
        least, most = keeper.settings.size_range
        if workers != 0 and not least <= workers <= most:
            reply.error(
                f"expected a number of workers from {least} to {most}, found {workers!r}", "0 stops the pool"
            )
            return
        self._scale_waiters.append(Scaling(keeper, workers, reply))
        self._feed(events.Scale(keeper.name, workers))

    def _signal(self, arguments: dict[str, Any], reply: Reply) -> None:
        pool, name = arguments["pool"], arguments["signal"].upper().removeprefix("SIG")
        keeper = self._supervisor.keepers.get(pool)
        settings = keeper.settings if keeper else None
        if keeper is None:
            self._refuse_name(pool, reply)
        elif f"SIG{name}" not in signal.Signals.__members__:
            reply.error(f"expected the name of a signal, found {arguments['signal']!r}", "as in USR1, HUP")
        elif settings is not None and settings.kind != "command":
            hint = "its workers are told what to do by reload, restart, scale and stop"
            reply.error(
                f"pool {pool} runs no programs: expected a pool with command, found {settings.kind}", hint
            )
        else:
            self._pass_on(pool, name, reply)

    def _pass_on(self, pool: str, name: str, reply: Reply) -> None:
        charges = [charge for charge in self._server.charges.values() if charge.pool.name == pool]
        programs = [charge for charge in charges if charge.pool.kind == "command"]
        if sent := sum(channel.send(charge.channel, channel.Signal(name)) for charge in programs):
            reply.result({"pool": pool, "signal": f"SIG{name}", "programs": sent})
        else:
            reply.error(f"no program of pool {pool} runs now: SIG{name} was sent to none")

    def _stop(self, arguments: dict[str, Any], reply: Reply) -> None:
        self._stop_waiters.append(reply)
        self._feed(events.Stop(now=arguments["now"]))

    def _reopen(self, _arguments: dict[str, Any], reply: Reply) -> None:
        try:
            self._server.reopen_logs()
        except PreforkError as error:
            reply.fail(error)
        else:
            reply.result({})

    # Stacks.

    def _stacks(self, arguments: dict[str, Any], reply: Reply) -> None:
        name = arguments["worker"]
        charges = [charge for charge in self._server.charges.values() if name in (None, charge.identity.name)]
        if not charges:
            reply.error(f"there is no worker {name!r}", "prefork status shows them all")
            return
        for charge in self._not_struck(charges):
            dump_stacks(self._server, actions.DumpStacks(charge.birth))
        self._gathering += 1
        self._gather_stacks(charges, reply, 0, time.monotonic() + STACKS)

    def _gather_stacks(self, charges: list[Charge], reply: Reply, before: int, until: float) -> None:
        """Wait until nothing more comes, then answer."""
        size = sum(len(charge.stacks) for charge in charges)
        complete = size == before and all(charge.stacks for charge in charges)
        if not complete and time.monotonic() < until:
            self._later(QUIET, lambda: self._gather_stacks(charges, reply, size, until))
            return
        reply.result({"workers": [_stacks_of(charge) for charge in charges]})
        self._gathering -= 1
        if not self._gathering:  # what somebody else waits for is not taken away
            self._clear_stacks()

    def _clear_stacks(self) -> None:
        """Forget what was answered: it would be shown as the place of a later crash."""
        for charge in self._not_struck(list(self._server.charges.values())):
            charge.stacks.clear()

    def _not_struck(self, charges: list[Charge]) -> list[Charge]:
        """Leave out workers whose stacks are being collected because a clock has struck."""
        keepers = [*self._supervisor.keepers.values(), *self._supervisor.departing]
        lives = [life for keeper in keepers for life in keeper.everybody()]
        struck = {life.birth for life in lives if life.state is State.DUMPING}
        return [charge for charge in charges if charge.birth not in struck]

    # Status.

    def _status(self, _arguments: dict[str, Any], reply: Reply) -> None:
        server, supervisor = self._server, self._supervisor
        status = ServerStatus(
            name=server.config.master.name,
            pid=process.own_pid(),
            version=__version__,
            state=supervisor.state,
            generation=server.generation,
            uptime=round(time.monotonic() - server.began, 3),
            pools=[self._pool(keeper) for keeper in [*supervisor.keepers.values(), *supervisor.departing]],
        )
        reply.result(msgspec.to_builtins(status))

    def _pool(self, keeper: Keeper) -> PoolStatus:
        settings = keeper.settings or (keeper.trial.settings if keeper.trial else None)
        return PoolStatus(
            name=keeper.name,
            kind=settings.kind if settings else "",
            application=settings.application if settings else "",
            wanted=keeper.size,
            ready=keeper.ready,
            degraded=keeper.degraded,
            restarts=keeper.restarts,
            listeners=self._listeners(settings) if settings else [],
            last_death=self._last_death(keeper.name),
            workers=[
                self._worker(life) for birth, life in keeper.lives.items() if birth in self._server.charges
            ],
            done=len(keeper.ends),
            waits_for=self._supervisor.waits_for(keeper),
            templates=[self._template(life) for life in keeper.templates.lives.values()],
            size_range=settings.size_range if settings and settings.scale else None,
            stopped=keeper.stopped,
            release=settings.release.start.real if settings else "",
            is_preloaded=bool(settings and settings.preload),
        )

    def _listeners(self, settings: Pool) -> list[ListenerStatus]:
        return [
            ListenerStatus(str(found.address), queue_length(found.socket), found.listen.backlog)
            for key in keyed(settings)
            for found in self._server.listeners.of(key)
        ]

    def _last_death(self, pool: str) -> Death | None:
        death = self._server.deaths.get(pool)
        if death is None:
            return None
        ago = round(time.monotonic() - death.at, 3)
        return Death(death.identity.name, death.identity.pid, death.cause, ago)

    def _worker(self, life: Life) -> WorkerStatus:
        charge = self._server.charges[life.birth]
        snapshot = charge.snapshot()
        now = time.monotonic()
        is_at_work = life.state is State.READY and life.pool.restart == "once"
        return WorkerStatus(
            slot=charge.slot,
            generation=charge.generation,
            pid=charge.child.pid,
            state="working" if is_at_work else STATES[life.state],
            age=round(charge.age, 3),
            requests=snapshot.requests,
            connections=snapshot.connections,
            memory=charge.memory(),
            current=[Current(request.what, round(now - request.since, 3)) for request in snapshot.current],
        )

    def _template(self, life: Life) -> TemplateStatus:
        charge = self._server.charges[life.birth]
        return TemplateStatus(
            generation=charge.generation,
            pid=charge.child.pid,
            state=STATES[life.state],
            age=round(charge.age, 3),
            memory=charge.memory(),
        )


def _stacks_of(charge: Charge) -> dict[str, Any]:
    return {
        "worker": charge.identity.name,
        "generation": charge.generation,
        "pid": charge.child.pid,
        "stack": charge.stacks_text() or UNANSWERED,
    }
