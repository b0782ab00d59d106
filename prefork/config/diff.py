"""Old and new configuration -> what a reload has to do."""

from __future__ import annotations

from dataclasses import dataclass, field

from prefork.config.listeners import all_keyed
from prefork.config.schema import Config, Listen

# They name the running server: who talks to it under the old name must still find it.
FIXED = ("name", "control", "pid_file")


@dataclass(frozen=True, slots=True)
class Change:
    """What differs between two configurations.

    Attributes:
        opened: listeners at addresses that are new.
        closed: listeners at addresses that are gone.
        altered: listeners, as they are now, at a known address but with other options.
        added: names of pools that are new.
        removed: names of pools that are gone.
        counts: the new number of workers of each pool where it differs.
        fixed: dotted keys that a reload cannot change, and that differ.

    """

    opened: tuple[Listen, ...] = ()
    closed: tuple[Listen, ...] = ()
    altered: tuple[Listen, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()


def compare(old: Config, new: Config) -> Change:
    """Return what has to be done to get from ``old`` to ``new``; a listener may move between pools and stay open."""
    before, after = all_keyed(old), all_keyed(new)
    common = [name for name in new.pools if name in old.pools]
    return Change(
        opened=tuple(listener for key, listener in after.items() if key not in before),
        closed=tuple(listener for key, listener in before.items() if key not in after),
        altered=tuple(listener for key, listener in after.items() if before.get(key, listener) != listener),
        added=tuple(name for name in new.pools if name not in old.pools),
        removed=tuple(name for name in old.pools if name not in new.pools),
        counts={
            name: new.pools[name].workers for name in common if _workers(old, name) != _workers(new, name)
        },
        fixed=tuple(f"master.{key}" for key in FIXED if getattr(old.master, key) != getattr(new.master, key)),
    )


def _workers(config: Config, name: str) -> int:
    return config.pools[name].workers
