"""The worker of a task: calls its function once, in the main thread, and ends with what came of it."""

from __future__ import annotations

import time

from prefork.config.schema import Pool
from prefork.handlers.context import Worker, end_copy, exit_code
from prefork.handlers.load import is_async, reason_of, traceback_of
from prefork.handlers.task import Run
from prefork.log import logger
from prefork.scoreboard import Row
from prefork.worker.channel import failed
from prefork.worker.orders import Orders

# As the interpreter ends after an exception that nobody has caught.
UNCAUGHT = 1


def serve(worker: Worker, row: Row, orders: Orders, run: Run, pool: Pool) -> None:
    """Run a task to its end; ``orders.exit_code`` is what the process is to end with."""
    worker.beat_by(lambda: _beat(worker, row, orders, pool.stall_timeout))
    orders.say_ready()
    try:
        _call(run, worker, orders)
    except SystemExit as error:
        orders.exit_code = exit_code(error)
        end_copy(orders.exit_code)
        logger.info("the task called sys.exit(%s)", "" if error.code is None else repr(error.code))
    except BaseException as error:  # noqa: BLE001 - whatever a task raises, it is told of, and its worker ends
        logger.exception("task failed")
        end_copy(UNCAUGHT)
        orders.exit_code = UNCAUGHT
        orders.say(failed(reason_of(error), traceback_of(error)))
    end_copy()
    row.rest()
    # What is left are the functions of atexit, and threads: from here on the clock of the drain is theirs.
    orders.leave_queue()


def _call(run: Run, worker: Worker, orders: Orders) -> None:
    if not is_async(run):
        run(worker)
        return
    # Their import takes time and memory that plain tasks do not need.
    import asyncio

    from prefork.worker.hearing import HearingLoop

    with asyncio.Runner(loop_factory=lambda: HearingLoop(orders.hear_by_handler)) as runner:
        runner.run(run(worker))


def _beat(worker: Worker, row: Row, orders: Orders, timeout: float) -> None:
    """Arm the stall clock anew; a drain has a clock of its own, and its beginning disarms this one."""
    row.turn(time.monotonic(), timeout)
    if worker.stopping.is_set():
        row.rest()
    elif timeout and not row.is_watched():
        orders.wake_master()
