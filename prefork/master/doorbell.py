"""Rings when a client waits at a listener of a pool that has no workers at present; it does not accept."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from prefork.config.listeners import Key
from prefork.master.listeners import Listeners


class Doorbell:
    """Watches listeners.

    Args:
        selector: the loop's.
        listeners: those that are open.
        ring: called with a listener's key for as long as somebody waits there and it is watched.

    """

    def __init__(
        self, selector: selectors.BaseSelector, listeners: Listeners, ring: Callable[[Key], None]
    ) -> None:
        self._selector = selector
        self._listeners = listeners
        self._ring = ring
        self._keys: Collection[Key] = ()
        self._watched: list[socket.socket] = []

    def watch(self, keys: Collection[Key]) -> None:
        """Watch these listeners and no others; it has to be told before one of them is closed."""
        for watched in self._watched:
            self._selector.unregister(watched)
        self._keys = keys
        self._watched = [listener.socket for key in keys for listener in self._listeners.of(key)]
        for key in keys:
            for listener in self._listeners.of(key):
                self._selector.register(listener.socket, selectors.EVENT_READ, self._ringer(key))

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """Watch nothing while listeners are closed and others put in their places."""
        keys = self._keys
        self.watch(())
        yield
        self.watch(keys)

    def _ringer(self, key: Key) -> Callable[[int], None]:
        return lambda _mask: self._ring(key)
