"""Tasks: a function of its worker, plain or async, that runs until its work is done or the worker drains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefork.errors import BootError
from prefork.handlers.context import Worker
from prefork.handlers.load import check_signature

Run = Callable[[Worker], Any]


def adapt(target: Any) -> Run:
    """Return the function to be called with the worker.

    Raises BootError for what is neither ``def run(worker)`` nor ``async def run(worker)``.
    """
    if not callable(target):
        raise BootError(f"expected def run(worker), found {target!r}")
    check_signature(target, "def run(worker)", 1)
    return target  # type: ignore[no-any-return]
