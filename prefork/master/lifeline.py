"""Listeners that a worker has shut down: they are shared, so that one shutdown(2) keeps clients from all workers.

A closed listener reports a hang-up to whoever waits for it, and nothing else wakes this wait: clients do not. A TCP listener
listens again by listen(2), for all processes that share it; a Unix socket that was shut stays so, and a reload binds another.
"""

from __future__ import annotations

import errno
import select
import selectors
from collections.abc import Callable
from typing import Any

from prefork.log import logger
from prefork.master.listeners import Listener, Listeners
from prefork.units import Address, TcpAddress, UnixAddress

# How soon a listener is looked at again, in seconds: whoever has shut it once may do so without end.
PAUSE = 1.0


class Lifeline:
    """Watches the listeners of a server, and brings back what can be brought back.

    Args:
        selector: the master's.
        listeners: what is watched.
        later: calls a function after so many seconds.

    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        listeners: Listeners,
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._selector = selector
        self._listeners = listeners
        self._later = later
        self._epoll: select.epoll | None = None
        self._watched: dict[int, tuple[Listener, Any]] = {}
        self._rests = False

    def follow(self) -> None:
        """Watch the listeners that are open now."""
        if self._rests or not hasattr(select, "epoll"):
            return
        found = {each.socket.fileno(): each for each in self._listeners.all() if not each.is_dead}
        if found.keys() == self._watched.keys() and all(
            each is self._watched[number][0] for number, each in found.items()
        ):
            return
        # Made anew: a closed listener that workers still hold cannot be taken out, and would report its end for ever.
        self._let_go()
        self._watched = {number: (each, each.socket.getsockname()) for number, each in found.items()}
        if found:
            self._epoll = select.epoll()
            for number in found:
                self._epoll.register(number, 0)  # EPOLLHUP is always reported (epoll_ctl(2))
            self._selector.register(self._epoll, selectors.EVENT_READ, lambda _mask: self._look())

    def close(self) -> None:
        """Watch nothing any more."""
        self._let_go()

    def _let_go(self) -> None:
        if self._epoll is not None:
            self._selector.unregister(self._epoll)
            self._epoll.close()
            self._epoll = None
        self._watched = {}

    def _look(self) -> None:
        """See to every listener that was shut; then watch again, but not at once."""
        assert self._epoll is not None
        numbers = [number for number, _ in self._epoll.poll(0)]
        shut = [
            self._watched[number] for number in numbers if self._watched[number][0] in self._listeners.all()
        ]
        self._let_go()
        for listener, name in shut:
            self._revive(listener, name)
        self._rests = True
        self._later(PAUSE, self._go_on)

    def _go_on(self) -> None:
        self._rests = False
        self.follow()

    def _revive(self, listener: Listener, name: Any) -> None:
        """Have a listener listen again, where that is possible; ``name`` is what it was bound to."""
        fault = (
            "a Unix socket cannot listen again" if isinstance(name, str) else _listen_again(listener, name)
        )
        what = f"{_address(listener, name)} was shut down by a worker (shutdown(2)), for all workers"
        if fault is None:
            logger.error("%s; it listens again, and clients that waited there are lost", what)
        else:
            listener.is_dead = True
            logger.error("%s; no client can connect: %s; a reload binds it anew", what, fault)


def _address(listener: Listener, name: Any) -> Address:
    """Return where a listener listened; a Unix socket is bound beside its path, and moved there."""
    if isinstance(listener.listen.address, UnixAddress):
        return listener.listen.address
    return UnixAddress(name) if isinstance(name, str) else TcpAddress(*name[:2])


def _listen_again(listener: Listener, name: Any) -> str | None:
    """Return why a TCP socket cannot listen again, None if it does."""
    try:
        listener.socket.bind(name)
    except OSError as error:
        if error.errno != errno.EINVAL:  # it is still bound, as it is unless the kernel has chosen its port
            return error.strerror
    try:
        listener.socket.listen(listener.listen.backlog)
    except OSError as error:
        return error.strerror
    return None
