"""A worker from the fork to its exit: one list from top to bottom, in the order that matters."""

from __future__ import annotations

import atexit
import faulthandler
import os
import random
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from setproctitle import setproctitle

from prefork import log
from prefork.config.schema import Master, Pool
from prefork.errors import BootError
from prefork.handlers import command, context
from prefork.handlers.context import Worker
from prefork.handlers.load import load
from prefork.handlers.socket import adapt
from prefork.log import Destination, Identity, logger
from prefork.system import activation, notify, privileges, process, signals
from prefork.system.privileges import Account
from prefork.worker import blocking, evented
from prefork.worker.channel import boot_failed
from prefork.worker.logs import Logs, open_access_log
from prefork.worker.orders import Orders
from prefork.worker.post import Post

# Descriptors that a worker needs beside its connections: listeners, channel, log, files of the application.
OTHER_DESCRIPTORS = 256


def run(post: Post) -> NoReturn:
    """Be a worker that the master has forked, with all signals blocked. Never returns."""
    leave_master(post)
    work(post, lambda: prepare(post.pool, post.master, post.account))


def work(post: Post, load: Callable[[], Any]) -> NoReturn:
    """Be a worker in a process that holds nothing of its parent's any more, with all signals blocked. Never returns.

    Args:
        post: the worker's.
        load: gives the application, whoever has loaded it. Raises BootError.

    """
    destination = begin(post)
    row = post.board.row(post.row)
    worker = Worker(post.pool.name, post.slot, post.generation, row)
    context.become(worker)
    logs = Logs(destination, open_access_log(post))
    orders = Orders(post, worker, row, logs)
    signals.unblock_all()
    orders.listen()
    try:
        application = load()
    except BootError as error:
        orders.say(boot_failed(error.message, error.traceback))
        os._exit(error.exit_code)
    if post.pool.kind == "wsgi":
        evented.serve(worker, row, orders, post.listeners, application, post.pool, logs.access, post.contexts)
    else:
        blocking.serve(worker, row, orders, post.listeners, application, post.pool, post.contexts)
    _exit(orders.exit_code)


def leave_master(post: Post) -> None:
    """Drop what is the master's and was inherited: descriptors, and what it does about signals."""
    for name in (*activation.VARIABLES, *notify.VARIABLES):
        os.environ.pop(name, None)
    shared = [post.channel.fileno(), post.stacks, *post.outlets.descriptors()]
    process.close_all_but([*shared, *(listener.fileno() for listener in post.listeners)])
    signals.reset_for_worker()


def begin(post: Post) -> Destination:
    """Be a process of one's own, worker or template: its stacks, its title, its log, which is returned, and its row."""
    _show_stacks_on_demand(post.stacks)
    setproctitle(post.title("starting"))
    identity = Identity(post.pool.place(post.slot), os.getpid(), post.generation)
    post.board.row(post.row).set_pid(os.getpid())
    return log.start(post.log.level, post.log.format, post.outlets.log, identity)


def _show_stacks_on_demand(descriptor: int) -> None:
    """Have C code write the stacks of all threads, on a signal and on a crash: it needs no working interpreter."""
    faulthandler.enable(descriptor, all_threads=True)
    faulthandler.register(signals.STACKS_SIGNAL, descriptor, all_threads=True, chain=False)
    signals.enlarge_stack()


def prepare(pool: Pool, master: Master, account: Account | None) -> Any:
    """Become what the handler's code expects to run in, load it, and return it; of a program the path. Raises BootError."""
    try:
        _settle_in(pool, master, account)
    except OSError as error:
        what = "changing to the directory" if error.filename else "setting up the process"
        raise BootError(f"{what} failed: {error}") from error
    if pool.command is not None:
        return command.find(pool.command[0])
    application = load(pool.application)
    if pool.kind == "handler":
        return adapt(application)
    if not callable(application):
        raise BootError(f"expected a WSGI application, found {application!r}")
    return application


def _settle_in(pool: Pool, master: Master, account: Account | None) -> None:
    if master.umask is not None:
        os.umask(master.umask)
    if pool.kind != "command":  # whose connections are its own affair
        process.raise_descriptor_limit(pool.max_connections + OTHER_DESCRIPTORS)
    if account is not None:
        privileges.drop_to(account)
    os.chdir(master.directory)
    sys.path[:] = [master.directory, *(entry for entry in sys.path if entry != master.directory)]
    os.environ.update(pool.env)
    # Forked from one master all workers would draw the same numbers.
    random.seed()


def _exit(code: int) -> NoReturn:
    """Leave as a program of the user's would, but without unwinding into the master's frames below."""
    atexit._run_exitfuncs()  # noqa: SLF001 - as multiprocessing does; there is no public name
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed when the server was started
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            logger.warning("what was printed last is lost: %s", error)
    os._exit(code)
