"""One short function per action: what the supervisor has decided gets done here."""

from __future__ import annotations

import errno
import logging
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

from prefork.config.schema import TEMPLATE, UNSEEN, Pool
from prefork.errors import ListenError
from prefork.log import logger
from prefork.master import anew
from prefork.master.charge import Charge, Means, charge_of, shared
from prefork.master.server import Death, Server
from prefork.scoreboard import Board, Snapshot
from prefork.supervisor import actions, events
from prefork.supervisor.events import Clock, Pulse, Sighting
from prefork.supervisor.worker import CRASHES
from prefork.system import process, signals
from prefork.system.queues import queue_length
from prefork.units import format_duration, format_size
from prefork.worker import channel, main, program, template
from prefork.worker.post import Post

# How a log line names what a clock has found running too long.
RAN = {
    Clock.BOOT: "starting",
    Clock.STALL: "event loop",
    Clock.REQUEST: "request",
    Clock.GRACEFUL: "draining",
}


def spawn(server: Server, action: actions.Spawn) -> events.Spawned | events.SpawnFailed:
    """Fork a worker."""
    try:
        board = server.board_for(action.pool)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        hint = " (RLIMIT_FSIZE, ulimit -f, counts for it as well)" if error.errno == errno.EFBIG else ""
        return events.SpawnFailed(
            action.birth, f"cannot make the scoreboard by memfd_create(2): {reason}{hint}"
        )
    try:
        charge = _fork(server, action, board)
    except (OSError, IndexError) as error:
        reason = (
            "its scoreboard is full" if isinstance(error, IndexError) else f"cannot fork: {error.strerror}"
        )
        return events.SpawnFailed(action.birth, reason)
    except ListenError as error:
        return events.SpawnFailed(action.birth, error.message)
    server.take_in(charge)
    return events.Spawned(action.birth, charge.child.pid)


def _fork(server: Server, action: actions.Spawn, board: Board) -> Charge:
    """Return a worker, or a template, that was just forked. Raises OSError or IndexError, with everything given back."""
    with shared(board) as means:
        post = _post(server, action, board, means)
        run = _runner_of(action)
        if anew.is_wanted(post):
            files = server.certificate_files(action.pool, server.plan_for(action.generation).certificates)
            run = partial(anew.run, files=files, otherwise=run)
        child = process.fork(lambda: run(post))
    return charge_of(action, child, board, means, post.files)


def _runner_of(action: actions.Spawn) -> Callable[[Post], NoReturn]:
    if action.slot == TEMPLATE:
        return template.run
    return program.run if action.pool.kind == "command" else main.run


def _post(server: Server, action: actions.Spawn, board: Board, means: Means) -> Post:
    plan = server.plan_for(action.generation)
    return Post(
        pool=server.as_bound(action.pool),
        slot=action.slot,
        generation=action.generation,
        master=plan.config.master,
        log=plan.config.log,
        hooks=plan.config.hooks.module,
        path=plan.path,
        parent=process.own_pid(),
        account=plan.accounts[action.pool.name],
        board=board,
        row=means.row,
        listeners=server.sockets_of(action.pool),
        inherited=server.inherited_of(action.pool),
        contexts=server.contexts_of(action.pool, plan.certificates),
        channel=means.theirs,
        stacks=means.stacks_write,
        outlets=plan.outlets_of(action.pool),
        cgroup=server.cgroup,
        max_requests=action.max_requests,
    )


def drain(server: Server, action: actions.Drain) -> None:
    """Tell a worker to drain; by a signal if it does not take messages any more."""
    charge = server.charges[action.birth]
    if not channel.send(charge.channel, channel.Drain(action.grace, action.empty_queue)):
        charge.child.send_signal(signal.SIGTERM)


def look_again(server: Server, action: actions.LookAgain) -> None:
    """Tell a worker to look at its listeners; one that takes no messages is told otherwise that it has to leave."""
    channel.send(server.charges[action.birth].channel, channel.LookAgain())


def terminate(server: Server, action: actions.Terminate) -> None:
    """Tell a worker by a signal to drain."""
    server.charges[action.birth].child.send_signal(signal.SIGTERM)


def leave(server: Server, action: actions.Leave) -> None:
    """Tell a worker to exit at once."""
    channel.send(server.charges[action.birth].channel, channel.Leave())


def dump_stacks(server: Server, action: actions.DumpStacks) -> None:
    """Have a worker write its stacks."""
    charge = server.charges[action.birth]
    charge.stacks.clear()
    channel.send(charge.channel, channel.WriteLogs())
    charge.child.send_signal(signals.STACKS_SIGNAL)


def kill(server: Server, action: actions.Kill) -> None:
    """Kill a worker, with all that it has started."""
    server.charges[action.birth].kill()


def strike(server: Server, action: actions.Strike) -> None:
    """Log which clock has struck, and where the worker was."""
    charge = server.charges[action.birth]
    what = action.what or RAN[action.clock]
    stacks = charge.stacks_text()
    place = f"; it was at:\n{stacks}" if stacks else "; it shows no stacks"
    logger.error(
        "%s ran %s, limit %s (%s); replacing the %s%s",
        what,
        format_duration(action.ran),
        format_duration(action.limit),
        action.clock.value,
        "template" if charge.slot == TEMPLATE else "worker",
        place,
        extra={
            "identity": charge.identity,
            "figures": {"clock": action.clock.value, "seconds": action.ran, "stacks": stacks},
        },
    )


def bury(server: Server, action: actions.Bury) -> None:
    """Write the record of a worker's end, and let go of it."""
    charge = server.charges.pop(action.birth)
    now = time.monotonic()
    snapshot = charge.snapshot()
    # Stacks that were asked for are in the log already; these come from a crash.
    stacks = charge.stacks_text() if action.exit.signal in CRASHES else ""
    if not action.expected:
        server.deaths[charge.pool.name] = Death(charge.identity, action.cause, now)
    logger.log(
        logging.INFO if action.expected else logging.ERROR,
        "ended: %s; lived %s%s, peak memory %s%s",
        action.cause,
        format_duration(charge.age),
        "" if charge.slot == TEMPLATE or charge.pool.kind in UNSEEN else _work(snapshot, now),
        format_size(charge.peak_memory),
        f"; it was at:\n{stacks}" if stacks else "",
        extra={"identity": charge.identity, "figures": _figures(action, charge, snapshot)},
    )
    charge.close()


def _work(snapshot: Snapshot, now: float) -> str:
    """Return what a worker has served, and what it was serving."""
    served = f", served {snapshot.requests} request{'s' * (snapshot.requests != 1)}"
    if not snapshot.current:
        return served
    requests = (f"{request.what} ({format_duration(now - request.since)})" for request in snapshot.current)
    return f"{served}, in flight: {', '.join(requests)}"


def _figures(action: actions.Bury, charge: Charge, snapshot: Snapshot) -> dict[str, Any]:
    return {
        "cause": action.cause,
        "expected": action.expected,
        "age": round(charge.age, 3),
        "requests": snapshot.requests,
        "in_flight": [request.what for request in snapshot.current],
        "peak_memory": charge.peak_memory,
    }


def look(server: Server, _action: actions.Look) -> events.Looked:
    """Read every armed deadline off the scoreboard, and what workers are like of whom more is to be known."""
    seen = [(charge, charge.snapshot()) for charge in server.charges.values()]
    valid = [(charge, snapshot) for charge, snapshot in seen if snapshot.fault is None]
    return events.Looked(
        tuple(pulse for charge, snapshot in valid for pulse in _pulses(server, charge, snapshot)),
        tuple(_sighting(charge, snapshot) for charge, snapshot in valid if charge.pool.is_measured),
        {pool.name: _queue(server, pool) for pool in server.config.pools.values() if pool.scale},
        tuple(
            events.Invalid(charge.birth, f"its row of the scoreboard has {snapshot.fault}")
            for charge, snapshot in seen
            if snapshot.fault is not None
        ),
    )


def _sighting(charge: Charge, snapshot: Snapshot) -> Sighting:
    return Sighting(
        birth=charge.birth,
        memory=charge.memory(),
        busy_time=snapshot.busy_for(time.monotonic()),
        served=snapshot.requests,
        has_in_flight=bool(snapshot.current),
        is_full=bool(snapshot.busy_since) or snapshot.connections >= charge.pool.max_connections,
    )


def _queue(server: Server, pool: Pool) -> int:
    return sum(queue_length(listener) or 0 for listener in server.sockets_of(pool))


def _pulses(server: Server, charge: Charge, snapshot: Snapshot) -> Iterator[Pulse]:
    if snapshot.deadline:
        what = "task without a beat" if charge.pool.kind == "task" else ""
        yield _pulse(server, charge, Clock.STALL, snapshot.since, snapshot.deadline, what)
    for request in snapshot.current:
        if request.deadline:
            yield _pulse(server, charge, Clock.REQUEST, request.since, request.deadline, request.what)


def _pulse(server: Server, charge: Charge, clock: Clock, since: float, deadline: float, what: str) -> Pulse:
    """Return a deadline in the supervisor's time; its beginning is moved along, so that what ran stays true."""
    moved = server.clock.adjust(since, deadline)
    return Pulse(charge.birth, clock, moved - (deadline - since), moved, what)


def watch(server: Server, action: actions.Watch) -> None:
    """Let workers know whether somebody looks at the scoreboard by itself."""
    server.watch(action.on)


def shut_doors(server: Server, action: actions.ShutDoors) -> None:
    """Let no new client into these listeners' queues."""
    server.listeners.shut_doors(action.addresses)


def keep_listeners(server: Server, action: actions.KeepListeners) -> None:
    """Close all listeners but these; the guard has to let go of them too."""
    closed = server.listeners.keep(action.addresses)
    for address in closed:
        logger.info("listening on %s no more", address)
    if closed or server.guard.pid is None:
        server.post_guard()


def adopt(server: Server, action: actions.Adopt) -> None:
    """Let the new configuration count."""
    server.adopt(action.generation)


def tell(_server: Server, action: actions.Tell) -> None:
    """Log a line of the supervisor's."""
    logger.log(logging.getLevelNamesMapping()[action.level.upper()], "%s", action.text)


PERFORM: dict[type[actions.Action], Callable[[Server, Any], events.Event | None]] = {
    actions.Spawn: spawn,
    actions.Drain: drain,
    actions.LookAgain: look_again,
    actions.Terminate: terminate,
    actions.Leave: leave,
    actions.DumpStacks: dump_stacks,
    actions.Kill: kill,
    actions.Strike: strike,
    actions.Bury: bury,
    actions.Look: look,
    actions.Watch: watch,
    actions.ShutDoors: shut_doors,
    actions.KeepListeners: keep_listeners,
    actions.Adopt: adopt,
    actions.Tell: tell,
}
