"""What the master wants of this worker, heard by a thread of its own so that a busy handler does not delay it."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from setproctitle import setproctitle

from prefork.handlers.context import Worker
from prefork.handlers.hooks import NO_HOOKS
from prefork.log import logger
from prefork.scoreboard import Row, State
from prefork.system import signals
from prefork.worker import channel
from prefork.worker.channel import (
    Busy,
    Detached,
    Drain,
    Draining,
    Leave,
    LookAgain,
    Message,
    Ready,
    ReopenLogs,
    Spent,
)
from prefork.worker.leaving import detach, leave
from prefork.worker.logs import Logs
from prefork.worker.post import Post
from prefork.worker.threads import start_vital

# After the master's death a worker whose handler is stuck has this long to empty the queue before it is shut.
ORPHANS_QUEUE = 0.5
# How long the last worker waits for clients that take themselves for connected and have said nothing yet: the kernel lets
# them in after a second (see tcp.await_first_bytes).
QUEUE_TIME = 1.2
# How long after its deadline a worker ends itself. A living master has done so by then.
OVERTIME = 1.0
READ_SIZE = 4096
# What a shell would say of a process that a TERM has ended.
TERMINATED = 128 + signal.SIGTERM


class Orders:
    """The worker's end of the channel.

    Attributes:
        wake_fd: readable, and so for good, from the moment the worker has to drain; for the loop's epoll.
        look_fd: readable when the loop is to look at its listeners again, until it calls ``hear_look``.
        drain_by: when the drain must be over, in seconds of the monotonic clock; None while there is none.
        queue_time: None, or the drain has to accept all that waits in the listeners' queues first, and waits so many
            seconds for clients that are just connecting.
        is_orphan: whether the master is gone, so that nobody keeps new clients away.
        exit_code: what the process is to end with.
        hooks: what is called right before Ready, and when the drain begins.
        max_requests: how many requests the worker is to serve; 0 if that is no matter, or was reported.

    """

    def __init__(self, post: Post, worker: Worker, row: Row, logs: Logs) -> None:
        self.wake_fd, self._wake = os.pipe()
        self.look_fd, self._look = os.pipe()
        os.set_blocking(self.look_fd, False)
        self.drain_by: float | None = None
        self.is_orphan = False
        self.queue_time: float | None = None
        self.exit_code = 0
        self.hooks = NO_HOOKS
        self._drain_hook: threading.Thread | None = None
        worker.detach_by(self._detach)
        self.max_requests = post.max_requests
        self._post = post
        self._worker = worker
        self._row = row
        self._logs = logs
        self._is_ready = False
        self._is_draining = False
        self._drain_begun = threading.Event()
        # Becoming ready and leaving because one is not exclude each other: the first client may come at once.
        self._readiness = threading.Lock()
        self._left_queue = threading.Event()
        self._signals, self._signalled = os.pipe()
        os.set_blocking(self._signalled, False)
        # The descriptor is written by the C part of the signal handler, so even a handler that never
        # returns to the interpreter's main loop does not delay a TERM.
        signal.set_wakeup_fd(self._signalled, warn_on_full_buffer=False)
        self._then: Callable[[], object] | None = None
        # The application may lose the descriptor, as asyncio does with its last signal handler.
        self.hear_by_handler()

    def listen(self) -> None:
        """Begin to hear the master and this process's signals."""
        start_vital(self._hear, "prefork-orders")

    def hear_by_handler(self, then: Callable[[], object] | None = None) -> None:
        """Hear TERM by a handler in Python too, for as long as an asyncio loop has the wake-up descriptor for itself.

        uvloop takes it whenever it runs in the main thread, for ``add_signal_handler``, and then runs the handlers.
        ``then`` is what the application has for TERM in such a loop, called as well.
        """
        signals.handle_term(self._take_term)
        self._then = then

    def keep_hearing(self) -> None:
        """Hear TERM again if the application has given it up; for loops in the main thread, before they wait.

        So does asyncio.run() where its coroutines had a handler of their own: at its end TERM would kill.
        """
        if signals.is_default(signal.SIGTERM):
            signal.set_wakeup_fd(self._signalled, warn_on_full_buffer=False)
            self.hear_by_handler()

    def survive_handler(self, error: BaseException) -> None:
        """Drain if a handler that the application has for a signal has raised an exception between two requests.

        It may have struck anywhere in the loop, so this worker is replaced. Raises what is no such exception.
        """
        if not signals.is_of_handler(error):
            raise error
        logger.error("a signal handler of the application failed; the worker is replaced", exc_info=error)
        self.drain()

    def say(self, message: Message) -> None:
        """Tell the master something; it may be gone, which this end hears of by itself."""
        channel.send(self._post.channel, message)

    def say_ready(self) -> None:
        """Show, and tell the master, that the handler is loaded and accepting begins.

        Raises BootError, with nothing said, if the hook for this moment fails.
        """
        self.hooks.run("ready", self._worker)
        with self._readiness:
            self._is_ready = True
        self._row.set_state(State.READY)
        setproctitle(self._post.title("ready"))
        self.say(Ready())

    def leave_queue(self) -> None:
        """Tell the master that this worker accepts no more: its listeners are closed."""
        self._left_queue.set()
        self.say(Draining())

    def hear_look(self) -> None:
        """Take note that the loop is about to look at its listeners; another thread may have done so."""
        with suppress(BlockingIOError):
            os.read(self.look_fd, READ_SIZE)

    def wake_master(self) -> None:
        """Tell the master that a deadline is armed; only needed while the board is not watched."""
        self.say(Busy())

    def count_requests(self) -> None:
        """Tell the master, once, when the worker has served ``max_requests``; for loops to call while there is one."""
        limit = self.max_requests
        if limit and self._row.requests >= limit:
            self.max_requests = 0
            self.say(Spent(limit))

    def drain(self, grace: float | None = None, queue_time: float | None = None) -> None:
        """Begin to drain. Later orders can only make it stricter; ``grace`` is the pool's unless given.

        A worker that is not ready yet has nothing in flight, and leaves at once.
        """
        with self._readiness:
            if not self._is_ready:
                leave(self.exit_code)
            is_first, self._is_draining = not self._is_draining, True
        by = time.monotonic() + (self._post.pool.graceful_timeout if grace is None else grace)
        if self.queue_time is None:
            self.queue_time = queue_time
        self.drain_by = by if self.drain_by is None else min(by, self.drain_by)
        self._row.set_state(State.DRAINING)
        setproctitle(self._post.title("draining"))
        self._worker.drain()
        if is_first and self.hooks.has("drain"):
            self._start_drain_hook()
        self._drain_begun.set()
        os.write(self._wake, b"!")
        if (
            not self._post.listeners
        ):  # a task: nobody waits for it, and from now on only this drain has a clock
            self._row.rest()
            self.leave_queue()

    def resign(self, code: int) -> None:
        """Drain because the handler called ``sys.exit(code)``."""
        self.exit_code = code
        self.drain()

    def wait_for_hook(self) -> None:
        """Return once the hook that the drain has started, if any, is done; its time is the drain's."""
        if self.drain_by is not None:
            self._drain_begun.wait()  # whoever has seen drain_by may be ahead of the thread that has set it
        if self._drain_hook is not None:
            self._drain_hook.join()

    def _detach(self, pid: int) -> None:
        self.say(Detached(pid, detach(pid)))

    def _start_drain_hook(self) -> None:
        """Let the user's code take as long as it likes: neither the drain nor further orders wait for it."""
        hook = threading.Thread(
            target=self.hooks.try_run, args=("drain", self._worker), name="prefork-drain", daemon=True
        )
        try:
            hook.start()
        except RuntimeError as error:  # no room for a thread
            logger.error("hook drain is left out: %s", error)
        else:
            self._drain_hook = hook

    def _take_term(self, number: int, _frame: FrameType | None) -> None:
        with suppress(BlockingIOError):  # full of signals: they will be heard anyway
            os.write(self._signalled, bytes([number]))
        if self._then is not None:
            self._then()

    def _hear(self) -> None:
        poll = select.poll()
        poll.register(self._post.channel.fileno(), select.POLLIN)
        poll.register(self._signals, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self._signals in ready and signal.SIGTERM in os.read(self._signals, READ_SIZE):
                self._hear_term()
            if ready != [self._signals] and not self._hear_master():
                break
        self._survive_master()

    def _hear_term(self) -> None:
        """Drain, as somebody else than the master wants it; work that had to be done once has not ended well then.

        So it is with systemd: TERM is a clean end except of a service of type oneshot (systemd.service(5)).
        """
        if self._post.pool.restart == "once":
            self.exit_code = TERMINATED
        self.drain()

    def _hear_master(self) -> bool:
        received = channel.receive_from_master(self._post.channel)
        if received is None:
            return False
        message, descriptors = received
        if isinstance(message, Drain):
            self.drain(message.grace, QUEUE_TIME if message.empty_queue else None)
        elif isinstance(message, LookAgain):
            os.write(self._look, b"!")
        elif isinstance(message, Leave):
            self._logs.write()
            leave(0)
        elif isinstance(message, ReopenLogs):
            self._logs.reopen(descriptors)
        else:
            self._logs.write()
        return True

    def _survive_master(self) -> None:
        """Finish what is in flight, on time, without anybody who would enforce it."""
        # Nobody keeps new clients away any more, so there may be no end of them.
        self.is_orphan = True
        self.drain(queue_time=ORPHANS_QUEUE / 2)
        # The end of file may as well mean that the handler has closed descriptors that are not its own: then the
        # listeners are its siblings' and stay open. The parent changes a moment after the end of file, not before.
        if not self._left_queue.wait(ORPHANS_QUEUE) and os.getppid() != self._post.parent:
            for listener in self._post.listeners:
                if listener.fileno() not in self._post.inherited:
                    _shut(listener)
        assert self.drain_by is not None
        time.sleep(max(0.0, self.drain_by - time.monotonic()) + OVERTIME)
        self._logs.write()
        leave(1)


def _shut(listener: socket.socket) -> None:
    """Stop a listener for every process that shares it, so that clients are refused and the port is free."""
    try:
        listener.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # closed meanwhile by the loop, or shut by a sibling
