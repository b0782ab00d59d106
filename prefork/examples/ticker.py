"""A task: says every few seconds that it is still there, until the worker is to leave."""

from __future__ import annotations

import logging

import prefork

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("ticker")


def run(worker: prefork.Worker) -> None:
    """Tick until the worker drains."""
    ticks = 0
    while not worker.stopping.wait(5):  # returns at once, and True, when it has to stop
        worker.beat()  # from the first one on, stall_timeout is how late the next may be
        ticks += 1
        logger.info("tick %s", ticks)
    logger.info("stopped after %s ticks", ticks)


async def run_async(worker: prefork.Worker) -> None:
    """Do the same in a coroutine."""
    import asyncio

    stopped, ticks = asyncio.ensure_future(worker.stopped()), 0
    while not (await asyncio.wait({stopped}, timeout=5))[0]:
        worker.beat()
        ticks += 1
        logger.info("tick %s", ticks)
    logger.info("stopped after %s ticks", ticks)


def prepare(worker: prefork.Worker) -> None:
    """Do something once, before the others start; an exception would give up the start, or the reload."""
    logger.info("prepared for generation %s", worker.generation)
