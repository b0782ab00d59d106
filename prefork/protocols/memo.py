"""A table of what was made of something that came before, which is found again under it. Bounded in bytes.

Clients repeat much of what they send, but not all of it. A table that keeps whatever comes fills itself with what never
comes again: that costs memory, throws out what would have been found, and is the dearer the less repeats. So a value is
kept when its key comes a second time; until then only the key's hash is, in a slot that other keys use as well.
Measured (CPython 3.11, a block of twelve fields): a key that is not found costs 0.4 us in all, most of it the hash, and a
block that is found saves 8 us: the table pays as soon as one block in twenty is a known one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

# Keys that are remembered for their second time. 20,000 different ones in turn overwrite each other and keep nothing;
# some hundred that are in use at the same time are kept after a few rounds.
SLOTS: Final = 1024
# The share of the room that one value may have.
SHARE: Final = 64

K = TypeVar("K")
V = TypeVar("V")


class Memo(dict[K, V]):
    """Values by what they were made of. To look up is a dictionary's ``get``.

    A full one starts again from nothing, which costs less than keeping count of what was used last.

    Args:
        room: how many bytes all keys and values may have.
        measure: tells how many bytes a key and its value have, with all that they hold.

    """

    __slots__ = ("_hashes", "_left", "_measure", "_room")

    def __init__(self, room: int, measure: Callable[[K, V], int]) -> None:
        super().__init__()
        self._measure = measure
        self._room = self._left = room
        self._hashes = [0] * SLOTS

    def offer(self, key: K, value: V) -> None:
        """Keep what was made of a key that was not found, if it is not the first time."""
        found = hash(key)
        slot = found % SLOTS
        if self._hashes[slot] != found:
            self._hashes[slot] = found
            return
        size = self._measure(key, value)
        if size * SHARE > self._room:
            return
        self._left -= size
        if self._left < 0:
            self.clear()
            self._left = self._room - size
        self[key] = value
