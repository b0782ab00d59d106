"""What tells one listener from another: its address; but each port 0 is a port of its own."""

from __future__ import annotations

from collections.abc import Iterator

from prefork.config.schema import Config, Listen, Pool
from prefork.units import Address, TcpAddress

Key = Address | tuple[str, Address, int]


def keyed(pool: Pool) -> dict[Key, Listen]:
    """Return a pool's listeners by their keys, in the file's order."""
    return dict(_keyed(pool))


def all_keyed(config: Config) -> dict[Key, Listen]:
    """Return the listeners of all pools by their keys."""
    return {key: listen for pool in config.pools.values() for key, listen in _keyed(pool)}


def _keyed(pool: Pool) -> Iterator[tuple[Key, Listen]]:
    chosen = 0
    for listen in pool.listen:
        if isinstance(listen.address, TcpAddress) and listen.address.port == 0:
            yield (pool.name, listen.address, chosen), listen
            chosen += 1
        else:
            yield listen.address, listen
