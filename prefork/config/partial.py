"""A reload of some pools only: the file's settings of these, and what counts already of all the others."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import msgspec

from prefork.config.listeners import keyed
from prefork.config.order import circle, predecessors
from prefork.config.schema import Config, Pool, Release
from prefork.errors import CommandError

WHOLE = "reload the whole file"


class Part(msgspec.Struct, frozen=True):
    """A configuration with some pools of a new file, and what else of that file is not in it, in words."""

    config: Config
    pending: tuple[str, ...]


def take_over(base: Config, new: Config, names: Collection[str]) -> Part:
    """Return ``base`` with the pools of these names as ``new`` has them; one that it has no longer is removed.

    Raises CommandError for names of no pool, and where old and new pools do not go together.
    """
    known = {**base.pools, **new.pools}
    if unknown := [name for name in names if name not in known]:
        raise CommandError(f"there is no pool {unknown[0]!r}", f"pools are: {', '.join(known)}")
    pools = {
        name: (new if name in names else base).pools.get(name)
        for name in known
        if name in base.pools or name in names
    }
    kept = {name: pool for name, pool in pools.items() if pool is not None}
    _check(kept)
    config = msgspec.structs.replace(base, pools=kept, origins={**base.origins, **new.origins})
    return Part(config, tuple(_pending(config, new)))


def _check(pools: dict[str, Pool]) -> None:
    """Refuse what is right in either file, but not in a mixture of both."""
    if not pools:
        raise CommandError("no pool would be left", "prefork stop ends the server")
    homes: dict[object, str] = {}
    for name, pool in pools.items():
        for key, listen in keyed(pool).items():
            if key in homes:
                raise CommandError(
                    f"pools {homes[key]} and {name} would both listen on {listen.address}", WHOLE
                )
            homes[key] = name
        for before in pool.after:
            if before not in pools:
                raise CommandError(f"pool {name} comes after {before}, which is not there yet", WHOLE)
    if found := circle(predecessors(pools)):
        raise CommandError(f"pools would wait for each other: {', '.join(found)}", WHOLE)


def _pending(config: Config, new: Config) -> Iterator[str]:
    """Yield the tables in which a configuration differs from the file."""
    for table in ("master", "log", "hooks"):
        if getattr(config, table) != getattr(new, table):
            yield f"[{table}]"
    for name in dict.fromkeys([*config.pools, *new.pools]):
        ours, theirs = config.pools.get(name), new.pools.get(name)
        if ours is None:
            yield f"[pool.{name}], which is new"
        elif theirs is None:
            yield f"[pool.{name}], which is gone"
        elif ours != theirs:
            same = _without_release(ours) == _without_release(theirs)
            yield f"[pool.{name}], its release" if same else f"[pool.{name}]"


def _without_release(pool: Pool) -> Pool:
    return msgspec.structs.replace(pool, release=Release())
