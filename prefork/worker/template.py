"""A template from its fork to its exit: it loads the application once, and forks the workers that the master orders.

Nothing serves here. What is loaded is collected and frozen, so that the garbage collectors of the workers leave its
memory alone and go on sharing it; and the process has a single thread whenever it forks, unless the application has
started others, of which a warning tells.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import threading
from collections.abc import Iterable
from typing import NamedTuple, NoReturn

import msgspec
from setproctitle import setproctitle

from prefork.errors import BootError
from prefork.handlers.context import Worker
from prefork.log import STDERR, Destination, Outlets, close_file, logger
from prefork.system import leftovers, process, signals
from prefork.worker import channel, main
from prefork.worker.channel import (
    Born,
    Draining,
    Fork,
    Ready,
    ReopenLogs,
    WriteLogs,
    boot_failed,
    not_born,
)
from prefork.worker.leaving import leave
from prefork.worker.main import Loaded
from prefork.worker.post import Post
from prefork.worker.settle import settle_in
from prefork.worker.threads import start_vital

READ_SIZE = 4096


def run(post: Post) -> NoReturn:
    """Be a template. Runs in the process that was just forked, with all signals blocked, and never returns."""
    main.leave_master(post)
    destination = main.begin(post)
    # Each worker is given its own: this one would only keep a renamed file alive.
    if post.outlets.access is not None:
        close_file(post.outlets.access)
    orders = Orders(post, destination)
    main.mind_forks(post)
    signals.unblock_all()
    try:
        settle_in(post.pool, post.master, post.account, post.path)
        hearing = orders.listen()
        hooks = main.take_hooks(post)
        loaded = Loaded(main.prepare(post.pool), hooks)
    except BootError as error:
        channel.send(post.channel, boot_failed(error.sentence, error.traceback))
        leave(error.exit_code)
    orders.stop_listening(hearing)
    _warn_of_leftovers(post, orders.descriptors(), hearing.native_id)
    gc.collect()
    gc.freeze()
    setproctitle(post.title("ready"))
    channel.send(post.channel, Ready())
    while True:
        order = orders.wait()
        assert order is not None, "nobody listens any more"
        _fork(post, order, loaded, orders)


class Order(NamedTuple):
    """A worker that is wanted, and the descriptors for it."""

    fork: Fork
    descriptors: list[int]


class Orders:
    """The template's end of the channel.

    It is heard by a thread while the application is being loaded, which may take as long as it likes, and without
    one from then on. To leave is to end: nothing is in flight here.
    """

    def __init__(self, post: Post, destination: Destination) -> None:
        self._post = post
        self._destination = destination
        self._loaded, self._end_of_loading = os.pipe()
        self._signals, self._signalled = os.pipe()
        os.set_blocking(self._signalled, False)
        signal.set_wakeup_fd(self._signalled, warn_on_full_buffer=False)
        self._poll = select.poll()
        for descriptor in (post.channel.fileno(), self._signals, self._loaded):
            self._poll.register(descriptor, select.POLLIN)

    def descriptors(self) -> list[int]:
        """Return the descriptors that are this process's own affair, and no worker's."""
        log = self._destination.descriptor
        own = [self._post.channel.fileno(), self._post.stacks, self._signals, self._signalled]
        return own if log <= STDERR else [*own, log]

    def listen(self) -> threading.Thread:
        """Begin to hear the master while something else goes on."""
        return start_vital(self.wait, "prefork-orders")

    def stop_listening(self, hearing: threading.Thread) -> None:
        """Return once the thread has ended: what is to be forked must not have it."""
        os.write(self._end_of_loading, b"!")
        hearing.join()
        self._poll.unregister(self._loaded)
        os.close(self._loaded)
        os.close(self._end_of_loading)

    def wait(self) -> Order | None:
        """Return when a worker is wanted, None when the application is loaded; end when the template has to leave."""
        while True:
            ready = {descriptor for descriptor, _ in self._poll.poll()}
            if self._signals in ready and signal.SIGTERM in os.read(self._signals, READ_SIZE):
                channel.send(self._post.channel, Draining())
                leave(0)
            if self._post.channel.fileno() in ready and (order := self._take()) is not None:
                return order
            if self._loaded in ready:
                return None

    def _take(self) -> Order | None:
        received = channel.receive_from_master(self._post.channel)
        if received is None:
            leave(0)
        message, descriptors = received
        if isinstance(message, Fork):
            return Order(message, descriptors)
        if isinstance(message, ReopenLogs):
            self._reopen(descriptors)
        elif not isinstance(message, WriteLogs):  # there is no access log here
            leave(0)
        return None

    def _reopen(self, descriptors: list[int]) -> None:
        for descriptor in descriptors[1:]:  # those are for workers, which are told by themselves
            close_file(descriptor)
        if descriptors:
            self._destination.reopen(descriptors[0])


def _warn_of_leftovers(post: Post, own: Iterable[int], own_thread: int | None) -> None:
    if threads := leftovers.other_threads({own_thread}):
        logger.warning(
            "the application has started threads, which workers do not have, as only the main one is forked: %s",
            ", ".join(threads),
        )
    known = {*own, *(listener.fileno() for listener in post.listeners)}
    if sockets := leftovers.open_sockets(known):
        logger.warning(
            "the application has opened sockets, which all workers share unless they open their own: %s",
            ", ".join(sockets),
        )


def _fork(post: Post, order: Order, loaded: Loaded, orders: Orders) -> None:
    """Fork a worker, or tell the master why there is none."""
    try:
        workers = _worker_post(post, order)
    except IndexError:
        # recvmsg(2) leaves out descriptors that the process has no room for; the master sees that nobody holds them.
        logger.error("a worker is not forked: expected more descriptors, found %s", len(order.descriptors))
    else:
        try:
            loaded.hooks.run("before_fork", _worker_of(workers))
            _fork_adopted(workers, loaded, orders)
        except BootError as error:
            logger.error("%s\n%s", error.message, error.traceback.rstrip())
            channel.send(workers.channel, not_born(error.message, error.traceback))
        except OSError as error:
            channel.send(workers.channel, not_born(f"cannot fork: {error.strerror}"))
        workers.channel.detach()
    for descriptor in order.descriptors:
        os.close(descriptor)


def _fork_adopted(workers: Post, loaded: Loaded, orders: Orders) -> None:
    """Fork a worker, which goes on once it is the master's child. Raises OSError."""
    adopted, adopting = os.pipe()

    def run() -> NoReturn:
        os.close(adopting)
        os.read(adopted, 1)  # the process in between, whose child this was, is reaped by then
        os.close(adopted)
        _be_worker(workers, loaded, orders)

    try:
        process.fork_for_subreaper(run)
        os.write(adopting, b"!")
    finally:
        os.close(adopting)
        os.close(adopted)


def _worker_post(post: Post, order: Order) -> Post:
    """Return a worker's post. Raises IndexError where a descriptor is missing."""
    fork, left = order.fork, [*order.descriptors]

    def outlet(number: int) -> int:
        return number if number <= STDERR else left.pop(0)

    channel_at, stacks = left.pop(0), left.pop(0)
    outlets = Outlets(outlet(fork.log), None if fork.access is None else outlet(fork.access))
    theirs = socket.socket(fileno=channel_at)
    return msgspec.structs.replace(
        post,
        slot=fork.slot,
        row=fork.row,
        channel=theirs,
        stacks=stacks,
        outlets=outlets,
        max_requests=fork.max_requests,
    )


def _worker_of(post: Post) -> Worker:
    return Worker(post.pool.name, post.slot, post.generation, post.board.row(post.row))


def _be_worker(post: Post, loaded: Loaded, orders: Orders) -> NoReturn:
    for descriptor in orders.descriptors():
        os.close(descriptor)
    if not channel.send(post.channel, Born()):
        os._exit(0)  # it has taken too long: nobody waits for this worker any more
    post.board.confine(post.row)
    post.board.forget_descriptor()
    main.work(post, loaded)
