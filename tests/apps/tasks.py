"""Tasks that do what their environment says, a word at a time: TASK="tick 0.1 raise"."""

import asyncio
import ctypes
import os
import signal
import sys
import time

import prefork


def run(worker):
    """Do what TASK says, word by word; a number is how many seconds to wait, or less if the worker drains."""
    for word in os.environ["TASK"].split():
        if word[0].isdigit():
            worker.stopping.wait(float(word))
        else:
            VERBS[word](worker)


async def run_async(worker):
    """Do the same in a coroutine, as far as it makes a difference."""
    assert prefork.current() is worker
    stopped = asyncio.ensure_future(worker.stopped())
    for word in os.environ["TASK"].split():
        if word[0].isdigit():
            await asyncio.wait({stopped}, timeout=float(word))
        else:
            VERBS[word](worker)


def wait(worker):
    """Wait as long as it takes, and say for how long it took to be told."""
    assert worker.stopping.wait(60)
    print("told", flush=True)


def hold(worker):
    """Hold the interpreter in C for long."""
    ctypes.PyDLL(None).sleep(60)


def fork(worker):
    """Leave a copy behind that goes on as if it were the worker."""
    if os.fork() == 0:
        return
    os.wait()


def fail(worker):
    raise RuntimeError("the task's own mistake")


VERBS = {
    "wait": wait,
    "hold": hold,
    "fork": fork,
    "raise": fail,
    "beat": lambda worker: worker.beat(),
    "leave": lambda _: sys.exit(7),
    "message": lambda _: sys.exit("a message"),
    "crash": lambda _: os.kill(os.getpid(), signal.SIGSEGV),
    "spin": lambda _: time.sleep(60),
    "say": lambda worker: print("here", worker.pool, worker.slot, worker.generation, flush=True),
}
