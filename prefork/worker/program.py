"""A worker whose work is an external program: it starts it, hands on what it prints, and ends all that it has started.

This process stands between the master and the program for four reasons. It hears the master's orders and its death, as
every worker does. It is a subreaper, so whatever the program starts stays below it, in whichever session: nobody of the
tree is missed, and no signal meets a stranger. A program that floods its output occupies this process and not the
master. And to the supervisor it is a worker like any other: the program's end becomes its own, by code or by signal.

    not ready --a time, its port accepts, or READY=1--> ready --an order, TERM, STOPPING=1, or the program's end--> leaving

It ends when nobody is left below it. Who is still there at ``_kill_at`` is killed.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from setproctitle import setproctitle

from prefork import log
from prefork.errors import BootError
from prefork.handlers.command import MARK
from prefork.log import Destination, Identity, logger
from prefork.scoreboard import Row, State
from prefork.system import cgroup, ports, process, signals, tree
from prefork.system.process import Child, Ended
from prefork.system.tree import Process
from prefork.worker import channel
from prefork.worker.channel import (
    Drain,
    Draining,
    Leave,
    Message,
    Ready,
    ReopenLogs,
    Signal,
    boot_failed,
    failed,
)
from prefork.worker.launch import cgroup_of, launch
from prefork.worker.notices import Notices
from prefork.worker.orders import TERMINATED
from prefork.worker.output import Output
from prefork.worker.post import Post

# How often a program's port is tried until it accepts.
TRY_AGAIN = 0.1
# A program that is to exit at once has this long after SIGTERM: half of what the master gives to its worker.
AT_ONCE = 0.5
# Who outlives the program is killed this much before graceful_timeout is over, so that the record tells of its end.
MARGIN = 0.5
# How often those who should be dead are looked for again: they may have forked meanwhile.
AGAIN = 0.05
MAX_STACKS = 16384
READ_SIZE = 4096
# What a program that was told to leave may end with, as shells and the JVM tell of their end by a signal.
SHELLS = 128


def end_remains(program: int, identity: Identity, above: str | None) -> str | None:
    """Kill what a program has started whose worker is dead, if that could not do so itself: the master has it by now.

    ``program`` is the program's pid (0 if that is not known), ``identity`` its worker's, and ``above`` the cgroup that
    holds those of all programs. Without one, who has left its session and wiped its environment is not found.
    Returns the program's cgroup, which can be removed once all are dead.
    """
    tree.kill_marked(os.getpid(), program, f"{MARK}={identity}")
    own = cgroup_of(above, identity)
    if own is not None:
        cgroup.kill(own)
    return own


def run(post: Post) -> NoReturn:
    """Be a worker. Runs in the process that was just forked, with all signals blocked, and never returns."""
    post.board.confine(post.row)
    shared = [post.channel.fileno(), post.stacks, *post.outlets.descriptors()]
    process.close_all_but([*shared, *(listener.fileno() for listener in post.listeners)])
    signals.reset_for_worker()
    setproctitle(post.title("starting"))
    identity = Identity(f"{post.pool.name}/{post.slot}", os.getpid(), post.generation)
    destination = log.start(post.log.level, post.log.format, post.outlets.log, identity)
    tree.become_subreaper()
    Program(post, post.board.row(post.row), destination, identity).serve()


class Program:
    """The program of one worker, from its start to the end of all that it has started.

    Args:
        post: the worker's.
        row: its row of the scoreboard.
        destination: the log.
        identity: the worker's.

    """

    def __init__(self, post: Post, row: Row, destination: Destination, identity: Identity) -> None:
        self._post = post
        self._pool = post.pool
        self._row = row
        self._destination = destination
        self._identity = identity
        self._cgroup = cgroup_of(post.cgroup, identity)
        self._signals = signals.report_to((signal.SIGTERM, signal.SIGCHLD, signals.STACKS_SIGNAL))
        self._output = Output(destination, post.account)
        self._poll = select.poll()
        self._heard: dict[int, Callable[[], None]] = {}
        self._main: Child | None = None
        self._ended: Ended | None = None
        self._ready_at: float | None = None
        self._is_ready = False
        self._is_leaving = False
        self._was_told = False
        self._was_termed = False
        self._must_leave_now = False
        self._kill_at: float | None = None
        self._has_killed = False
        self._doubt = ""

    def serve(self) -> NoReturn:
        """Run the program, and end this process as the program ends."""
        signals.unblock_all()
        try:
            self._start()
        except BootError as error:
            self._fail(error.message, "")
        while process.has_children():
            self._turn()
        self._output.finish()
        self._end()

    def _start(self) -> None:
        self._check_port()
        notices = self._open_notices()
        address = notices.address if notices else None
        self._main = launch(self._post, self._output.writer, address, self._identity)
        for listener in self._post.listeners:
            listener.close()
        os.close(self._output.writer)
        self._row.set_pid(self._main.pid)
        logger.info("runs pid %s: %s", self._main.pid, self._pool.application)
        self._hear(self._signals, self._take_signals)
        self._hear(self._post.channel.fileno(), self._hear_master)
        self._hear(self._output.descriptor, self._take_output)
        if notices is not None:
            self._hear(notices.fileno(), lambda: self._take_notices(notices))
        elif self._pool.ready.port is not None:
            self._ready_at = time.monotonic()
        else:
            self._ready_at = time.monotonic() + self._pool.ready.seconds

    def _check_port(self) -> None:
        """Refuse to start a program whose port is in use: it would seem to be ready while another one answers there."""
        port = self._pool.ready.port
        if port is not None and ports.accepts(port):
            raise BootError(
                f"port {port} accepts connections before the program has started: another one is there"
            )

    def _open_notices(self) -> Notices | None:
        if not self._pool.ready.notify:
            return None
        account = self._post.account
        return Notices({0, os.getuid(), *([account.uid] if account else [])})

    # The one wait.

    def _hear(self, descriptor: int, take: Callable[[], None]) -> None:
        self._heard[descriptor] = take
        self._poll.register(descriptor, select.POLLIN)

    def _unhear(self, descriptor: int) -> None:
        del self._heard[descriptor]
        self._poll.unregister(descriptor)

    def _turn(self) -> None:
        dues = [due for due in (self._ready_at, self._kill_at, self._output.due) if due is not None]
        wait = max(0.0, min(dues) - time.monotonic()) * 1000 if dues else None
        for descriptor, _ in self._poll.poll(wait):
            self._heard[descriptor]()
        now = time.monotonic()
        if self._output.due is not None and now >= self._output.due:
            self._output.show_unfinished()
        if self._ready_at is not None and now >= self._ready_at:
            self._judge_readiness(now)
        if self._kill_at is not None and now >= self._kill_at:
            self._kill()

    # What is heard.

    def _take_output(self) -> None:
        if not self._output.hand_on():
            self._unhear(self._output.descriptor)

    def _take_notices(self, notices: Notices) -> None:
        for assignment in notices.take():
            if assignment == "READY=1":
                self._say_ready()
            elif assignment == "STOPPING=1":
                self._leave_unasked()
            elif assignment.startswith("STATUS="):
                logger.debug("its status: %s", assignment.removeprefix("STATUS="))

    def _take_signals(self) -> None:
        found = set(os.read(self._signals, READ_SIZE))
        if signals.STACKS_SIGNAL in found:
            self._show_processes()
        if signal.SIGCHLD in found:
            self._reap()
        if signal.SIGTERM in found:
            self._was_termed = True
            self._leave_unasked(self._pool.stop_signal)

    def _hear_master(self) -> None:
        received = channel.receive_from_master(self._post.channel)
        if received is None:
            self._unhear(self._post.channel.fileno())
            self._drain(self._pool.graceful_timeout)
            return
        message, descriptors = received
        if isinstance(message, Drain):
            self._drain(message.grace)
        elif isinstance(message, Leave):
            self._leave_now()
        elif isinstance(message, Signal):
            self._pass_on(message.name)
        elif isinstance(message, ReopenLogs):
            for descriptor in descriptors[:1]:
                self._destination.reopen(descriptor)

    def _reap(self) -> None:
        for pid, ended in process.reap():
            if self._main is not None and pid == self._main.pid:
                self._main_ended(self._main, ended)

    # What is to be done about it.

    def _say(self, message: Message) -> None:
        channel.send(self._post.channel, message)

    def _show(self, state: State) -> None:
        self._row.set_state(state)
        setproctitle(self._post.title(state.name.lower()))

    def _judge_readiness(self, now: float) -> None:
        """Say that the program is ready, unless it has a port that does not accept yet."""
        port = self._pool.ready.port
        if port is None or ports.accepts(port):
            self._say_ready()
        else:
            self._ready_at = now + TRY_AGAIN

    def _say_ready(self) -> None:
        self._ready_at = None
        if not self._is_ready and not self._is_leaving:
            self._is_ready = True
            self._output.last.clear()
            self._show(State.READY)
            self._say(Ready())

    def _drain(self, grace: float) -> None:
        """Tell the program to finish and leave, as somebody wants it."""
        self._was_told = True
        self._begin_leaving(grace)
        self._signal(self._pool.stop_signal)

    def _leave_unasked(self, number: str | None = None) -> None:
        """Have another worker take this one's place, since the program leaves, or is to; sending a signal if given."""
        if not self._is_leaving and self._is_ready:
            self._say(Draining())
        self._was_told = True
        self._begin_leaving(self._pool.graceful_timeout)
        if number is not None:
            self._signal(number)

    def _begin_leaving(self, grace: float) -> None:
        self._is_leaving = True
        self._ready_at = None
        by = time.monotonic() + grace
        self._kill_at = by if self._kill_at is None else min(by, self._kill_at)
        self._show(State.DRAINING)

    def _leave_now(self) -> None:
        self._must_leave_now = True
        self._begin_leaving(AT_ONCE)
        self._signal("TERM")

    def _main_ended(self, main: Child, ended: Ended) -> None:
        """Take notice of the program's end; whom it leaves behind is to leave as well."""
        self._ended = ended
        self._main = None
        main.close()
        if not process.has_children():
            return
        left = [found for found in tree.below(os.getpid()) if found.state != "Z"]
        if left:  # the others are dead, and about to be reaped
            self._tell_of_left(ended, left)
        if self._is_ready and not self._is_leaving:
            self._say(Draining())
        self._begin_leaving(max(0.0, self._pool.graceful_timeout - MARGIN) if self._is_ready else 0.0)
        tree.signal_below(os.getpid(), _number(self._pool.stop_signal), main.pid)

    def _tell_of_left(self, ended: Ended, left: Sequence[Process]) -> None:
        names = "; ".join(found.description for found in left)
        logger.info("its program has ended, %s, and left: %s", _words(ended), names)
        if ended.code == 0 and not self._is_ready:  # as daemons do; without -g 'daemon off;' so does nginx
            self._doubt = ", and what it has started went on: a program has to stay in the foreground"

    def _signal(self, name: str) -> None:
        """Send a signal to the program; if it is gone, to all that it has left."""
        if self._main is not None:
            self._main.send_signal(_number(name))
        else:
            tree.signal_below(os.getpid(), _number(name), os.getpid())

    def _pass_on(self, name: str) -> None:
        """Send a signal that somebody wants to send to the program itself, if it is still there."""
        if self._main is not None:
            logger.info("its program gets SIG%s, on request", name)
            self._main.send_signal(_number(name))

    def _kill(self) -> None:
        self._has_killed = self._has_killed or self._main is not None
        self._kill_at = time.monotonic() + AGAIN
        if self._cgroup is not None:
            cgroup.kill(self._cgroup)
        tree.kill_below(os.getpid())

    def _show_processes(self) -> None:
        """Say who is there, in the place of stacks."""
        lines = "\n".join(found.description for found in tree.below(os.getpid()))
        os.write(self._post.stacks, lines.encode("utf-8", "replace")[:MAX_STACKS])

    # How it ends.

    def _end(self) -> NoReturn:
        """End as the program has ended; but well, if it has left as it was told."""
        ended = self._ended
        assert ended is not None
        is_done = ended.code == 0 and self._pool.restart != "always"  # not every program is there to stay
        if not is_done and not self._is_ready and not self._was_told and not self._must_leave_now:
            reason = f"it ended before it was ready: {_words(ended)}{self._doubt}"
            self._fail(reason, "\n".join(self._output.last))
        if self._was_termed and self._pool.restart == "once":
            os._exit(TERMINATED)
        if self._pool.restart == "once" and not is_done:
            self._say(failed("", "\n".join(self._output.last)))
        if self._must_leave_now or (self._was_told and _left_as_told(ended, self._pool.stop_signal)):
            os._exit(0)
        if self._has_killed and ended.signal == "SIGKILL":
            logger.error("killed: it did not leave in time")
            os._exit(1)
        if ended.signal is not None:
            process.end_by(ended.signal)
        os._exit(ended.code or 0)

    def _fail(self, reason: str, traceback: str) -> NoReturn:
        self._say(boot_failed(reason, traceback))
        os._exit(BootError.exit_code)


def _number(name: str) -> int:
    return signal.Signals[f"SIG{name}"]


def _words(ended: Ended) -> str:
    return f"exit code {ended.code}" if ended.signal is None else ended.signal


def _left_as_told(ended: Ended, stop_signal: str) -> bool:
    return ended.signal == f"SIG{stop_signal}" or ended.code in (0, SHELLS + _number(stop_signal))
