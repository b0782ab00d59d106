"""The hook ``ended``: called once for each worker that has ended, in a process of its own that ends with it."""

from __future__ import annotations

import os
from typing import NoReturn

import msgspec
from setproctitle import setproctitle

from prefork import log
from prefork.config.schema import Folder, Log, Master, Pool
from prefork.errors import BootError
from prefork.handlers.command import MARK
from prefork.handlers.context import EndedWorker
from prefork.handlers.hooks import load_hooks
from prefork.log import Identity, logger
from prefork.system import activation, notify, process, signals, stdio, tree
from prefork.system.privileges import Account
from prefork.worker.settle import settle_in


class Farewell(msgspec.Struct, frozen=True):
    """What the hook of a worker is called by: what the worker itself was started with.

    Attributes:
        hooks: the name of the module.
        master: the configuration.
        path: what comes on sys.path behind the folders of the pool.
        account: whom it runs as, None for whom the master runs as.

    """

    hooks: str
    master: Master
    path: tuple[Folder, ...]
    account: Account | None


def run(
    farewell: Farewell,
    pool: Pool,
    slot: int,
    worker: Identity,
    status: int,
    log_as: tuple[Log, int],
    parent: int,
) -> NoReturn:
    """Call the hook, in a process that was just forked, with all signals blocked. Never returns.

    Args:
        farewell: see there.
        pool: the worker's.
        slot: its place.
        worker: which one it was.
        status: how it has ended, as a shell would tell it.
        log_as: what is configured of the log, and its descriptor.
        parent: the master's pid: without it nobody would end a hook that hangs.

    """
    for name in (*activation.VARIABLES, *notify.VARIABLES):
        os.environ.pop(name, None)
    settings, output = log_as
    process.close_all_but([output])
    signals.reset_for_program()
    stdio.settle()
    os.environ[MARK] = str(worker)
    setproctitle(f"prefork: hook ended {worker}")
    log.start(settings.level, settings.format, output, worker)
    ended = EndedWorker(pool.name, slot, worker.generation or 0, worker.pid, status)
    code = BootError.exit_code
    try:
        settle_in(pool, farewell.master, farewell.account, farewell.path)
        tree.die_with(parent)
        code = 0 if load_hooks(farewell.hooks).try_run("ended", ended) else 1
    except BootError as error:
        logger.error("hook ended cannot be called: %s\n%s", error.message, error.traceback.rstrip())
    stdio.flush()
    os._exit(code)
