"""The one loop: descriptors -> events -> supervisor -> actions. It waits in one place, until something is due."""

from __future__ import annotations

import os
import random
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from setproctitle import setproctitle

from prefork.config.diff import compare
from prefork.config.partial import take_over
from prefork.config.schema import TEMPLATE, Config
from prefork.control.registry import Registration
from prefork.control.server import ControlServer
from prefork.errors import CommandError, ConfigError, ListenError, PreforkError
from prefork.log import STDERR, logger
from prefork.master.allowance import MOST, SPAN, Allowance
from prefork.master.charge import Charge
from prefork.master.delivery import Delivery
from prefork.master.doorbell import Doorbell
from prefork.master.farewells import Farewells
from prefork.master.lifeline import Lifeline
from prefork.master.notices import Notices
from prefork.master.perform import PERFORM
from prefork.master.release import pin
from prefork.master.requests import Requests
from prefork.master.server import Server
from prefork.master.timers import Timers
from prefork.master.upgrade import Upgrade, Waiter, estate_of
from prefork.master.watcher import Watcher
from prefork.supervisor import actions, events
from prefork.supervisor.actions import Action, End
from prefork.supervisor.events import Event
from prefork.supervisor.server import Phase, Supervisor
from prefork.supervisor.worker import State
from prefork.system import process, signals
from prefork.system.notify import notifier
from prefork.system.process import Ended
from prefork.system.signals import SignalQueue
from prefork.worker import channel
from prefork.worker.channel import ProtocolError

# A standstill that is shorter, in seconds, is none: SIGCONT also comes to who was not halted.
WORTH_TELLING = 0.1
# No wait is longer than this, in seconds: epoll_wait(2) takes milliseconds as an int, which a deadline may exceed.
LONGEST_WAIT = 86400.0

# What is read of a worker: its channel, or the descriptor that its stacks arrive on.
Source = socket.socket | int


class Loop:
    """The master's loop.

    Args:
        server: what the master holds.
        read: reads the configuration anew; raises ConfigError.
        file: the path by which commands find the server.

    """

    def __init__(self, server: Server, read: Callable[[], Config], file: str) -> None:
        self._server = server
        self._read = read
        self._file = file
        self._clock = server.clock
        self._supervisor = Supervisor(random.random)
        self._selector = selectors.DefaultSelector()
        self._allowances: dict[int, Allowance] = {}
        self._paused: set[Source] = set()
        self._timers = Timers()
        self._later = self._timers.later
        self._lifeline = Lifeline(self._selector, server.listeners, self._later)
        self._delivery = Delivery(server, self._selector, self._feed, self._later, self._register)
        self._doorbell = Doorbell(
            self._selector, server.listeners, lambda key: self._feed(events.Knocked(key))
        )
        self._notices = Notices(notifier(os.environ), self._supervisor, self._later)
        self._end: End | None = None
        self._on_signal: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: lambda: self._stop(events.Stop()),
            signal.SIGINT: lambda: self._stop(events.Stop(now=True)),
            signal.SIGQUIT: lambda: self._stop(events.Stop(now=True)),
            signal.SIGHUP: self._reload_or_stop,
            signal.SIGUSR1: self._reopen_log,
            signal.SIGUSR2: lambda: self._upgrade.ask(),
            signal.SIGTTIN: lambda: self._feed(events.Shift(1)),
            signal.SIGTTOU: lambda: self._feed(events.Shift(-1)),
            signal.SIGWINCH: self._rest,
            signal.SIGCHLD: self._see_to_children,
            signal.SIGCONT: lambda: None,
        }
        self._signals = SignalQueue(self._on_signal)
        self._upgrade = Upgrade(
            server, self._supervisor, self._signals, self._selector, self._later, self._estate
        )
        self._requests = Requests(
            server, self._supervisor, self._feed, self._reload, self._restart, self._later, self._upgrade.ask
        )
        self._watcher = Watcher(setproctitle, self._selector, self._reload_by_change, self._later)
        self._farewells = Farewells(self._later)
        self._control: ControlServer | None = None
        self._registration: Registration | None = None

    def run(self, config: Config) -> End:
        """Serve until the end and return how it came."""
        self._watcher.follow(config)
        self._feed(events.Boot(config))
        return self._run()

    def resume(self, past: dict[str, Any], waiters: list[Waiter]) -> End:
        """Go on from where the program before was, with a new generation; ``waiters`` are told how that goes."""
        self._requests.resume(waiters)
        self._notices.resume(past["said"])
        self._farewells.resume(past.get("farewells", []))
        adopted = list(self._server.charges.values())
        self._feed(events.Resume(past["supervisor"]))
        for charge in adopted:
            self._register(charge)
        self._watcher.follow(self._server.config)
        self._server.post_guard()  # the old one's memory is that of the program before
        signals.unblock_all()  # those that came while nobody could take them come now
        try:
            self._reload()
        except PreforkError as error:
            self._log_refusal(error)
            self._requests.refuse_rollout(error)
        return self._run()

    def control(self, path: str, past: dict[str, Any] | None = None) -> ControlServer:
        """Open the control socket, or go on with what is left of the program before. Raises ListenError."""
        server = ControlServer(
            path, self._requests.handle, owner_uid=os.geteuid(), later=self._later, past=past
        )
        server.register(self._selector)
        self._control = server
        self._renew_record()
        return server

    def close_control(self) -> None:
        """Let nobody find the server, or ask it, any more."""
        if self._registration is not None:
            self._registration.close()
        if self._control is not None:
            self._control.close()

    def _renew_record(self) -> None:
        """Leave word where commands find this server; without it they find it by its control socket only."""
        assert self._control is not None
        control, bound = self._control.path, self._control.bound
        try:
            if self._registration is None:
                name = self._server.config.master.name
                self._registration = Registration(name, self._file, control, bound)
            else:
                self._registration.renew(bound)
        except (OSError, ListenError) as error:
            reason = error.message if isinstance(error, ListenError) else error.strerror or error
            logger.warning("prefork list does not show this server: %s", reason)
        if self._registration is not None:
            self._requests.record = self._registration.record

    def _estate(self, waiters: list[Waiter]) -> dict[str, Any]:
        assert self._control is not None
        told = [*self._requests.past(), *waiters]
        estate = estate_of(self._server, self._supervisor, self._control, told)
        return estate | {"said": self._notices.past(), "farewells": self._farewells.past()}

    def _run(self) -> End:
        self._selector.register(self._signals, selectors.EVENT_READ, self._take_signals)
        self._lifeline.follow()
        while self._end is None or not self._farewells.are_over:
            self._turn()
        return self._end

    def close(self) -> None:
        """Give back what the loop held."""
        watcher = self._watcher.dismiss()
        if watcher is not None:
            process.wait_for(watcher)
        self._selector.close()
        self._signals.close()

    def _turn(self) -> None:
        wait = self._wait()
        ready = self._selector.select(wait)
        signals = self._signals.take()
        lost = self._clock.note_sleep(wait, halted=signal.SIGCONT in signals)
        if lost >= WORTH_TELLING:
            logger.info("the last %.1f s may have been a standstill: they bring no deadline nearer", lost)
        for number in signals:
            self._on_signal[number]()
        for key, mask in ready:
            # What came before may have ended this one: its number may even mean another descriptor by now.
            if self._selector.get_map().get(key.fd) is key:
                key.data(mask)
        self._timers.fire()
        due = self._supervisor.next_deadline()
        if due is not None and self._clock.now() >= due:
            self._feed(events.Tick())
        self._upgrade.advance()

    def _wait(self) -> float | None:
        now, due = self._clock.now(), self._supervisor.next_deadline()
        waits = [] if due is None else [due - now]
        timers = self._timers.wait()
        waits += [] if timers is None else [timers]
        return min(max(0.0, min(waits)), LONGEST_WAIT) if waits else None

    def _take_signals(self, _mask: int) -> None:
        """Do nothing: signals are taken first in every turn, because SIGCONT tells how to judge it."""

    # Events in, actions out.

    def _feed(self, event: Event) -> None:
        """Tell the supervisor, and do what it decides; what an action yields goes in before the next is done."""
        pending = deque(self._supervisor.handle(event, self._clock.now()))
        while pending:
            answer = self._perform(pending.popleft())
            if answer is not None:
                pending.extendleft(reversed(self._supervisor.handle(answer, self._clock.now())))
        self._server.show(self._supervisor.state)
        self._notices.show()
        self._requests.settle()

    def _perform(self, action: Action) -> Event | None:
        match action:
            case actions.End():
                self._end = action
                return None
            case actions.EndRollout():
                self._end_rollout(action)
                return None
            case actions.Spawn(_, pool, slot, _) if pool.preload and slot != TEMPLATE:
                return self._delivery.order(action)
            case actions.Disown():
                return self._delivery.disown(action)
            case actions.AwaitClients(addresses):
                self._doorbell.watch(addresses)
                return None
            case actions.Tell():
                self._requests.tell(action)
        answer = PERFORM[type(action)](self._server, action)
        if isinstance(action, actions.KeepListeners):
            self._lifeline.follow()
        if isinstance(answer, events.Spawned):
            self._register(self._server.charges[answer.birth])
        elif isinstance(action, actions.Adopt):
            self._watcher.follow(self._server.config)
        return answer

    def _end_rollout(self, action: actions.EndRollout) -> None:
        with self._doorbell.silenced():
            self._server.settle_rebound(is_good=action.reason is None)
        if action.reason is None:
            logger.info("generation %s serves", action.generation)
        else:
            self._server.withdraw()
            self._log_failure(action)
        self._requests.end_rollout(action)

    def _log_failure(self, action: actions.EndRollout) -> None:
        shown = f"\n{action.traceback.rstrip()}" if action.traceback else ""
        if self._supervisor.phase is Phase.RUNNING:
            hint = f"\nhint: {action.hint}" if action.hint else ""
            logger.error("%s; the server goes on as before%s%s", action.reason, shown, hint)
        else:
            # A first start that fails ends with its traceback on stderr; there the log must not say it as well.
            said_later = self._server.config.log.file == "-"
            logger.warning(
                "generation %s does not serve: %s%s",
                action.generation,
                action.reason,
                "" if said_later else shown,
            )

    # What people want.

    def _reload(self, pools: Sequence[str] = ()) -> None:
        """Read the configuration, open what it needs, and roll it out, all of it or these pools.

        Raises PreforkError, with nothing changed.
        """
        self._begin_rollout(lambda: self._roll_out(frozenset(pools) or None))

    def _restart(self, pool: str) -> None:
        """Replace a pool's workers without reading anything anew. Raises PreforkError, with nothing changed."""
        only = frozenset({pool})
        self._begin_rollout(
            lambda: self._feed(events.Reload(self._server.prepare_again(), only=only, forced=only))
        )

    def _begin_rollout(self, roll_out: Callable[[], None]) -> None:
        if self._supervisor.phase is Phase.STOPPING:
            # Opening listeners now would let clients in for a reset.
            raise CommandError("the server is stopping")
        self._notices.begin_reload()
        self._restore_control()
        try:
            roll_out()
        finally:
            self._notices.show()

    def _restore_control(self) -> None:
        """Listen at the control socket's path again if somebody has deleted it, or a link on the way was switched."""
        if self._control is None:
            return
        try:
            if self._control.restore():
                logger.info("control socket %s was gone; listening there again", self._control.path)
        except ListenError as error:
            logger.error("%s", error.sentence)

    def _roll_out(self, only: frozenset[str] | None) -> None:
        config = self._read() if only is None else self._read_part(only)
        change = compare(self._server.config, config)
        fixed = [
            f"{key} has changed: that takes a new start, the running server keeps the old one"
            for key in change.fixed
        ]
        for text in [*fixed, *self._server.origin.doubts(config)]:
            self._warn(text)
        config = self._server.prepare(config, only)
        self._lifeline.follow()
        self._renew_record()
        for line in change.lines():
            logger.info("%s", line)
        self._feed(events.Reload(config, only))

    def _read_part(self, pools: frozenset[str]) -> Config:
        """Read the configuration of these pools; what else has changed is told."""
        part = take_over(self._server.latest, pin(self._read()), pools)
        if part.pending:
            self._warn(f"not reloaded, and changed: {'; '.join(part.pending)}")
        return part.config

    def _warn(self, text: str) -> None:
        logger.warning("%s", text)
        self._requests.tell(actions.Tell("warning", text))

    def _reload_or_stop(self) -> None:
        """Reload; but a terminal that the log goes to sends SIGHUP when it is closed, and nobody is left to serve for."""
        if self._server.config.log.file == "-" and process.has_hung_up(STDERR):
            logger.warning("the terminal that the log goes to is closed; stopping")
            self._stop(events.Stop())
        else:
            self._reload_by_signal()

    def _reload_by_signal(self) -> None:
        try:
            self._reload()
        except PreforkError as error:
            self._log_refusal(error)

    @staticmethod
    def _log_refusal(error: PreforkError) -> None:
        if not isinstance(error, ConfigError):
            logger.error("%s; the reload is refused", error.message)
            return
        for problem in error.problems:
            logger.error("%s%s", problem.message, f"\nhint: {problem.hint}" if problem.hint else "")
        logger.error("the reload is refused; the server goes on as before")

    def _reload_by_change(self) -> None:
        if self._supervisor.phase is not Phase.STOPPING:
            self._reload_by_signal()

    def _reopen_log(self) -> None:
        try:
            self._server.reopen_logs()
        except PreforkError as error:
            logger.error("%s; it stays as it was", error.message)
        else:
            logger.info("log reopened")

    def _stop(self, stop: events.Stop) -> None:
        """Stop; and wait for no hook once nothing else is left to be waited for."""
        if self._end is None:
            self._feed(stop)
        else:
            self._farewells.end_all()

    def _rest(self) -> None:
        """Drain all workers, unless the signal is only a terminal's way to say that it has another size."""
        if process.has_terminal():
            logger.debug("SIGWINCH is ignored: this server has a terminal, which has been resized")
        else:
            self._feed(events.Rest())

    # What workers do.

    def _register(self, charge: Charge) -> None:
        life = self._supervisor.life(charge.birth)
        if life is None or not life.lost:
            self._selector.register(charge.channel, selectors.EVENT_READ, lambda _mask: self._hear(charge))
        self._selector.register(
            charge.stacks_read, selectors.EVENT_READ, lambda _mask: self._take_stacks(charge)
        )
        if charge.child.pidfd is not None:
            self._selector.register(charge.child.pidfd, selectors.EVENT_READ, lambda _mask: self._reap())

    def _unregister(self, descriptor: object) -> None:
        if descriptor is not None and descriptor in self._selector.get_map():
            self._selector.unregister(descriptor)  # type: ignore[arg-type]

    def _hear(self, charge: Charge) -> None:
        """Take one message of a worker, if it has not sent too many of late."""
        if self._is_allowed(charge, charge.channel, lambda _mask: self._hear(charge)):
            self._take_message(charge)

    def _take_message(self, charge: Charge) -> bool:
        """Take one message of a worker; return whether there may be more."""
        try:
            message = channel.receive_from_worker(charge.channel)
        except BlockingIOError:
            return False
        except ProtocolError as error:
            self._stop_hearing(charge)
            self._feed(events.Invalid(charge.birth, f"it sent an invalid message: {error}"))
            return False
        if message is None:
            self._stop_hearing(charge)
            self._feed(events.ChannelLost(charge.birth))
            return False
        match message:
            case channel.Detached(pid, began):
                charge.detach(pid, began)
                self._server.guard.detach(charge, pid, began)
            case channel.HasEnded():
                charge.farewell = charge.farewell or self._server.farewell_of(charge)
            case _:
                self._feed(self._event(charge, message))
        return True

    def _is_allowed(self, charge: Charge, source: Source, take: Callable[[int], None]) -> bool:
        """Return whether one more thing may be read of a worker; if not, ``source`` is left alone for a while."""
        allowance = self._allowances.setdefault(charge.birth, Allowance())
        if allowance.take(time.monotonic()):
            return True
        if allowance.note_excess():
            text = "sends more than %d messages a second to the master; the rest of them waits"
            logger.warning(text, MOST, extra={"identity": charge.identity})
        self._unregister(source)
        self._paused.add(source)
        self._later(SPAN, lambda: self._go_on(source, take))
        return False

    def _go_on(self, source: Source, take: Callable[[int], None]) -> None:
        if source in self._paused:
            self._paused.discard(source)
            self._selector.register(source, selectors.EVENT_READ, take)

    def _stop_hearing(self, charge: Charge) -> None:
        self._unregister(charge.channel)
        self._paused.discard(charge.channel)

    def _event(self, charge: Charge, message: channel.FromWorker) -> Event:
        match message:
            case channel.Ready():
                life = self._supervisor.life(charge.birth)
                if life is not None and life.state is State.STARTING:  # it may say so as often as it likes
                    # Work that is done once is not ready before its end.
                    text = "at work after %.2f s" if charge.pool.restart == "once" else "ready in %.2f s"
                    logger.info(text, charge.age, extra={"identity": charge.identity})
                return events.Ready(charge.birth, charge.memory() if charge.pool.max_memory else 0)
            case channel.BootFailed(reason, traceback):
                return events.BootFailed(charge.birth, reason, traceback)
            case channel.Failed(reason, traceback):
                return events.Failed(charge.birth, reason, traceback)
            case channel.Draining():
                return events.LeftQueue(charge.birth)
            case channel.Spent(limit):
                return events.Spent(charge.birth, f"max_requests {limit:,}")
            case _:
                return events.Busy()

    def _take_stacks(self, charge: Charge) -> None:
        if not self._is_allowed(charge, charge.stacks_read, lambda _mask: self._take_stacks(charge)):
            return
        if charge.read_stacks():
            self._feed(events.StacksRead(charge.birth))
        else:
            self._unregister(charge.stacks_read)

    def _see_to_children(self) -> None:
        births = {charge.child.pid: charge.birth for charge in self._server.charges.values()}
        for number, (pid, halted) in enumerate(process.halts(), 1):
            if pid in births:
                self._feed(events.Halted(births[pid]) if halted else events.Continued(births[pid]))
            if number == MOST:  # children of workers may halt one another without end
                self._later(0.0, self._see_to_children)
                break
        self._reap()

    def _reap(self) -> None:
        for number, (pid, ended) in enumerate(process.reap(self._hear_unborn), 1):
            charge = self._charge_of(pid)
            if charge is not None:
                self._mourn(charge, ended)
            elif self._watcher.mourn(pid) or self._farewells.take(pid, ended):
                continue
            elif pid == self._server.guard.pid:
                self._server.guard.forget()
                self._server.post_guard()
            else:
                self._upgrade.take(pid)
            if number == MOST:
                self._later(0.0, self._reap)
                break
        self._server.remove_cgroups()

    def _hear_unborn(self, pid: int) -> None:
        """Hear who is born by now, before a child is reaped: it may be a template's worker, which said so when it lived."""
        if self._charge_of(pid) is None:
            self._delivery.hear()

    def _charge_of(self, pid: int) -> Charge | None:
        return next((found for found in self._server.charges.values() if found.child.pid == pid), None)

    def _mourn(self, charge: Charge, ended: Ended) -> None:
        """Take a worker's last words, then report its death."""
        is_heard = charge.channel in self._selector.get_map() or charge.channel in self._paused
        if is_heard:  # its children may go on talking by the same channel
            all(self._take_message(charge) for _ in range(MOST))
        for descriptor in (charge.channel, charge.stacks_read, charge.child.pidfd):
            self._unregister(descriptor)
        self._paused -= {charge.channel, charge.stacks_read}
        self._allowances.pop(charge.birth, None)
        if charge.pool.kind == "command":
            self._server.end_remains(charge)
        elif ended.signal is not None:
            self._server.end_orphans(charge)
        charge.peak_memory = max(charge.peak_memory, ended.peak_memory)
        oom = ended.signal == "SIGKILL" and self._server.oom_killer_struck()
        self._farewells.begin(charge, ended, (self._server.config.log, self._server.log.descriptor))
        self._feed(events.Exited(charge.birth, events.Exit(ended.code, ended.signal, oom, ended.status)))
