"""Which pools have to be ready, or done, before another one starts: ``after``, and those that run once."""

from __future__ import annotations

from collections.abc import Mapping

from prefork.config.schema import Pool

Order = Mapping[str, frozenset[str]]
# What a pool may take beside its clocks at a stop: handshakes under way settle, stacks are written, a worker is killed.
LAST = 1.5


def predecessors(pools: Mapping[str, Pool]) -> Order:
    """Return for each pool the names of those that come right before it.

    Pools that run once come before all others, except before those that they come after themselves, directly or not.
    Names in ``after`` that no other pool has count for nothing.
    """
    named = {name: (frozenset(pool.after) & pools.keys()) - {name} for name, pool in pools.items()}
    once = [name for name, pool in pools.items() if pool.restart == "once"]
    needs = {name: all_before(name, named) for name in once}
    return {
        name: named[name]
        | frozenset(first for first in once if name not in once and name not in needs[first])
        for name in pools
    }


def circle(order: Order) -> list[str]:
    """Return the pools of a circle, each followed by one that comes before it; empty if there is none."""
    left = dict(order)
    while free := [name for name in left if not left.keys() & left[name]]:
        for name in free:
            del left[name]
    if not left:
        return []
    trail = [next(iter(left))]
    while (before := min(left.keys() & left[trail[-1]])) not in trail:
        trail.append(before)
    return trail[trail.index(before) :]


def longest_stop(pools: Mapping[str, Pool]) -> float:
    """Return how many seconds a graceful stop takes at most.

    A pool is told to leave once all that named it in ``after`` have ended; its ``graceful_timeout`` counts from then.
    """
    ends: dict[str, float] = {}
    left = dict(pools)
    while free := [
        pool for pool in left.values() if not any(pool.name in other.after for other in left.values())
    ]:
        for pool in free:
            del left[pool.name]
            told = max(
                [pool.drain_delay, *(ends[other] for other in ends if pool.name in pools[other].after)]
            )
            ends[pool.name] = told + pool.graceful_timeout + LAST
    return max(ends.values(), default=0.0)


def all_before(name: str, order: Order) -> set[str]:
    """Return the names of all pools that come before one, directly or not."""
    found: set[str] = set()
    ahead = [name]
    while ahead:
        new = order[ahead.pop()] - found
        found |= new
        ahead += new
    return found
