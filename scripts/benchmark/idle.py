"""What an idle kept-alive connection costs one worker."""

from __future__ import annotations

import time
from contextlib import ExitStack

from .measure import cpu_seconds, idle_connections, memory, started
from .scenarios import Scenario
from .servers import HTTP

WARM_UP = 50  # connections before the first look, so that buffers common to all are not counted
WATCHED = 2  # seconds for which all are idle


def cost(count: int) -> str:
    """Measure so many connections and return a sentence about them. Raises Failure if one is not served."""
    with started(HTTP.servers[0], "http") as running, ExitStack() as held:
        held.enter_context(idle_connections(running, Scenario("warm-up", idle=WARM_UP)))
        before = memory(running.pid)
        held.enter_context(idle_connections(running, Scenario("idle", idle=count)))
        grown = memory(running.pid) - before
        used = cpu_seconds(running.pid)
        time.sleep(WATCHED)
        used = cpu_seconds(running.pid) - used
    return f"{count} idle kept-alive connections: {grown / count:.0f} bytes each, {used:.2f} s of CPU in {WATCHED} s"
