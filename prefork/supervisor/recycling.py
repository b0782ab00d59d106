"""When a worker has had enough, by requests, age or memory, and who is replaced next.

A spent worker goes on serving until somebody is ready in its place (see pool.py). Requests are counted by the worker
itself, which says when it has reached the number that it was born with; its age and its size are judged here. The same
share of the jitter lengthens requests and age, so that workers born together do not leave together.
"""

from __future__ import annotations

from collections.abc import Iterable

from prefork.supervisor.worker import Input, Life, State
from prefork.units import format_duration, format_size

# One look may fall on a moment's peak: a large answer, a collection of garbage that is about to come.
TOO_LARGE = 3
# A worker that has been above max_memory since it was fresh leaks if it has grown so many times larger.
GROWTH = 2


def max_requests(life: Life) -> int:
    """Return how many requests a worker is to serve; 0: any number."""
    return round(_lengthened(life.pool.max_requests, life))


def next_expiry(workers: Iterable[Life]) -> float | None:
    """Return when the first of these workers is too old."""
    return min((due for life in workers if (due := _expiry(life)) is not None), default=None)


def note_expired(workers: Iterable[Life], now: float) -> None:
    """Let workers that are too old be spent."""
    for life in workers:
        due = _expiry(life)
        if due is not None and now >= due:
            life.handle(Input.SPENT, f"max_age {format_duration(_max_age(life))}", now)


def weigh(life: Life, memory: int) -> str | None:
    """Take notice of a worker's resident size in bytes; return why it has to go, if it has to."""
    limit = life.pool.max_memory
    life.too_large = life.too_large + 1 if limit and memory > _memory_limit(life) else 0
    if life.too_large < TOO_LARGE:
        return None
    return f"max_memory {format_size(limit)}, it has {format_size(memory)}"


def _memory_limit(life: Life) -> int:
    """Return above which size a worker is too large: one that is so from the start would be replaced for ever, for nothing."""
    limit = life.pool.max_memory
    return limit if life.fresh_memory <= limit else GROWTH * life.fresh_memory


def is_suspect(life: Life) -> bool:
    """Tell whether a worker was found too large, but not often enough to be sure."""
    return life.state is State.READY and 0 < life.too_large < TOO_LARGE


def next_spent(workers: Iterable[Life]) -> Life | None:
    """Return who is to be replaced next: of those that are spent the oldest one."""
    spent = [life for life in workers if life.spent is not None and life.state is State.READY]
    return min(spent, key=lambda life: life.birth, default=None)


def _expiry(life: Life) -> float | None:
    """Return when a worker will be too old; None if it never is, is already, or does not serve."""
    if not life.pool.max_age or life.spent is not None or life.state is not State.READY:
        return None
    assert life.ready_at is not None
    return life.ready_at + _max_age(life)


def _max_age(life: Life) -> float:
    return _lengthened(life.pool.max_age, life)


def _lengthened(limit: float, life: Life) -> float:
    """Return a limit with this worker's jitter; none stays none."""
    return limit + life.jitter * life.pool.max_requests_jitter.part_of(limit) if limit else 0.0
