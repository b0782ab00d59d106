"""Old and new configuration -> what a reload changes, apart from the listeners, which are known by what is open."""

from __future__ import annotations

import msgspec

from prefork.config.schema import Config

# They name the running server: who talks to it under the old name must still find it.
FIXED = ("name", "control", "pid_file")


class Change(msgspec.Struct, frozen=True):
    """What differs between two configurations.

    Attributes:
        added: names of pools that are new.
        removed: names of pools that are gone.
        counts: the new number of workers of each pool where it differs.
        fixed: dotted keys that a reload cannot change, and that differ.

    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    counts: dict[str, int] = msgspec.field(default_factory=dict)
    fixed: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return in words what will be different once the reload is done."""
        return [
            *(f"pool {name} is added" for name in self.added),
            *(f"pool {name} is removed" for name in self.removed),
            *(f"pool {name} gets {count} workers" for name, count in self.counts.items()),
        ]


def compare(old: Config, new: Config) -> Change:
    """Return what has to be done to get from ``old`` to ``new``."""
    common = [name for name in new.pools if name in old.pools]
    return Change(
        added=tuple(name for name in new.pools if name not in old.pools),
        removed=tuple(name for name in old.pools if name not in new.pools),
        counts={
            name: new.pools[name].workers
            for name in common
            if old.pools[name].workers != new.pools[name].workers and new.pools[name].scale is None
        },
        fixed=tuple(f"master.{key}" for key in FIXED if getattr(old.master, key) != getattr(new.master, key)),
    )
