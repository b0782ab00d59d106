"""How a worker, or a template, leaves in the middle of whatever it does."""

from __future__ import annotations

import os
from typing import NoReturn

from prefork.system import stdio

# A quick stop gives a worker a second (QUICK in supervisor/worker.py).
FLUSH_TIME = 0.25


def leave(code: int) -> NoReturn:
    """End this process at once, from any of its threads: nothing of the application's is called any more."""
    stdio.flush_within(FLUSH_TIME)
    os._exit(code)
