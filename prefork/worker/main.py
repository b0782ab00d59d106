"""A worker from the fork to its exit: one list from top to bottom, in the order that matters."""

from __future__ import annotations

import atexit
import faulthandler
import os
import threading
from typing import Any, NamedTuple, NoReturn

from setproctitle import setproctitle

from prefork import log
from prefork.config.schema import TEMPLATE, Pool
from prefork.errors import BootError
from prefork.handlers import application as wsgi
from prefork.handlers import command, context, task
from prefork.handlers.body import MEMORY, choose_storage
from prefork.handlers.command import MARK
from prefork.handlers.context import Worker
from prefork.handlers.hooks import Hooks, load_hooks
from prefork.handlers.load import is_async, is_given, load
from prefork.handlers.patching import check_unpatched
from prefork.handlers.socket import adapt
from prefork.log import Destination, Identity, logger
from prefork.scoreboard import Row
from prefork.system import activation, forks, notify, process, signals, stdio
from prefork.worker import blocking, evented
from prefork.worker import task as tasks
from prefork.worker.access import AccessLog
from prefork.worker.channel import HasEnded, boot_failed
from prefork.worker.leaving import leave
from prefork.worker.logs import Logs, open_access_log
from prefork.worker.orders import Orders
from prefork.worker.post import Post
from prefork.worker.settle import OTHER_DESCRIPTORS, settle_in


def run(post: Post) -> NoReturn:
    """Be a worker that the master has forked, with all signals blocked. Never returns."""
    leave_master(post)
    work(post)


class Loaded(NamedTuple):
    """What a template has loaded for its workers."""

    application: Any
    hooks: Hooks


def work(post: Post, loaded: Loaded | None = None) -> NoReturn:
    """Be a worker in a process that holds nothing of its parent's any more, with all signals blocked. Never returns.

    Args:
        post: the worker's.
        loaded: what a template gives to a worker that it has forked, settled in as it is itself.

    """
    destination = begin(post)
    row = post.board.row(post.row)
    worker = Worker(post.pool.name, post.slot, post.generation, row, os.getpid())
    context.become(worker)
    mind_forks(post)
    logs = Logs(destination, open_access_log(post))
    orders = Orders(post, worker, row, logs)
    signals.unblock_all()
    try:
        if loaded is None:
            settle_in(post.pool, post.master, post.account, post.path)
        if post.listeners:
            process.reserve_descriptors(post.pool.max_connections + OTHER_DESCRIPTORS)
        orders.listen()
        orders.hooks = loaded.hooks if loaded else take_hooks(post)
        if orders.hooks.has("ended"):
            orders.say(HasEnded())
        orders.hooks.run("after_fork", worker)
        application = loaded.application if loaded else prepare(post.pool)
        _serve(post, worker, row, orders, application, logs.access)
    except BootError as error:
        orders.say(boot_failed(error.sentence, error.traceback))
        leave(error.exit_code)
    orders.wait_for_hook()
    if not orders.hooks.try_run("exit", worker):
        orders.exit_code = orders.exit_code or 1
    _exit(orders.exit_code)


def _serve(
    post: Post, worker: Worker, row: Row, orders: Orders, application: Any, access: AccessLog | None
) -> None:
    """Accept and serve until the drain is over. Raises BootError if the hook before Ready fails."""
    pool, listeners = post.pool, post.listeners
    if post.contexts:
        from prefork.worker import tls  # only where it is spoken

        tls.report_odd_names()
    if pool.kind == "wsgi":
        doubt = _choose_storage(pool)
        if doubt is not None and post.slot == 0:  # the others have nothing to add
            logger.warning("%s", doubt)
        evented.serve(worker, row, orders, listeners, application, pool, access, post.contexts)
    elif pool.kind == "task":
        tasks.serve(worker, row, orders, application, pool)
    elif is_async(application):
        from prefork.worker import aio  # loaded by _prepare_loop

        aio.serve(worker, row, orders, listeners, application, pool, post.contexts)
    else:
        blocking.serve(worker, row, orders, listeners, application, pool, post.contexts)


def take_hooks(post: Post) -> Hooks:
    """Return the hooks of the configuration. Raises BootError."""
    hooks = load_hooks(post.hooks)
    if post.slot in (0, TEMPLATE):  # the others have nothing to add
        for doubt in hooks.doubts:
            logger.warning("%s", doubt)
    return hooks


def leave_master(post: Post) -> None:
    """Drop what is the master's and was inherited: descriptors, and what it does about signals."""
    for name in (*activation.VARIABLES, *notify.VARIABLES):
        os.environ.pop(name, None)
    post.board.confine(post.row)
    stdio.settle()
    shared = [post.channel.fileno(), post.stacks, *post.outlets.descriptors()]
    if post.slot == TEMPLATE and post.board.descriptor is not None:
        shared.append(post.board.descriptor)  # its workers are confined to rows of their own
    process.close_all_but([*shared, *(listener.fileno() for listener in post.listeners)])
    signals.reset_for_worker()


def begin(post: Post) -> Destination:
    """Be a process of one's own, worker or template: its stacks, its title, its log, which is returned, and its row."""
    _show_stacks_on_demand(post.stacks)
    setproctitle(post.title("starting"))
    identity = Identity(post.pool.place(post.slot), os.getpid(), post.generation)
    os.environ[MARK] = str(identity)  # what it starts can be told from others by that, once it is dead
    post.board.row(post.row).set_pid(os.getpid())
    return log.start(post.log.level, post.log.format, post.outlets.log, identity)


def mind_forks(post: Post) -> None:
    """Let no process that the application forks hold what master and worker talk by, or a listener."""
    forks.watch()
    for held in (post.channel, *post.listeners):
        forks.close_in_copies(held.close)


def _show_stacks_on_demand(descriptor: int) -> None:
    """Have C code write the stacks of all threads, on a signal and on a crash: it needs no working interpreter."""
    faulthandler.enable(descriptor, all_threads=True)
    faulthandler.register(signals.STACKS_SIGNAL, descriptor, all_threads=True, chain=False)
    signals.enlarge_stack()


def prepare(pool: Pool) -> Any:
    """Load the handler of a pool, in a process that has settled in, and return it; of a program the path.

    Raises BootError.
    """
    if pool.command is not None:
        return command.find(command.in_release(pool.command[0], pool.release))
    application = load(pool.application)
    check_unpatched()
    if pool.kind == "handler":
        handle = adapt(application)
        if is_async(handle):
            _prepare_loop(pool)
        return handle
    if pool.kind == "task":
        return task.adapt(application)
    return wsgi.adapt(application, pool.application)


def has_name(pool: Pool) -> bool:
    """Tell whether another program can load a pool's application, too: it is no object that this program was given."""
    return not is_given(pool.application)


def rehearse(pool: Pool, hooks: str | None) -> tuple[str, ...]:
    """Load all that a worker loads, and return what may be a mistake in it, in words. Raises BootError.

    Args:
        pool: whose handler is loaded.
        hooks: the name of the module with the hooks, if there is one; none of them is called.

    """
    doubts = load_hooks(None if pool.kind == "command" else hooks).doubts
    prepare(pool)
    doubt = _choose_storage(pool) if pool.kind == "wsgi" else None
    return doubts if doubt is None else (*doubts, f"[pool.{pool.name}] {doubt}")


def _choose_storage(pool: Pool) -> str | None:
    """Find a place for large bodies, if they are allowed; return a warning if there is no good one."""
    return choose_storage() if pool.http.max_body > MEMORY else None


def _prepare_loop(pool: Pool) -> None:
    """Load what runs coroutines, which takes its time: only who needs it does so. Raises BootError."""
    if pool.threads > 1:
        raise BootError(
            f"expected threads = 1 for async def handle, found threads = {pool.threads}",
            "one event loop holds all connections of a worker; more workers use more CPUs",
        )
    import prefork.worker.aio  # noqa: F401


def _exit(code: int) -> NoReturn:
    """Leave as a program of the user's would, but without unwinding into the master's frames below."""
    # As at the interpreter's own end: threads that are no daemons, and executors' jobs; then what is registered.
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - as multiprocessing does
    except Exception:  # noqa: BLE001 - as the interpreter does, which goes on with its end
        logger.exception("the end of the application's threads failed")
    atexit._run_exitfuncs()  # noqa: SLF001 - likewise; there is no public name
    if (error := stdio.flush()) is not None:
        logger.warning("what was printed last is lost: %s", error)
    os._exit(code)
