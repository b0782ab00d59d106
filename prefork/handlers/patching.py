"""Monkey patching of the standard library, as gevent and eventlet do it: told by name before it stops a worker."""

from __future__ import annotations

import _thread
import select
import sys
from collections.abc import Iterator
from typing import Any, Final

from prefork.errors import BootError

# What a worker's loop and threads are built on. Patched sockets alone are left alone: some libraries replace
# socket.socket (PySocks), and an application may have its reasons.
VITAL: Final = (("select", "epoll"), ("select", "poll"), ("_thread", "start_new_thread"))
_REAL: Final[dict[str, Any]] = {"select": select, "_thread": _thread}
_ORIGINALS: Final = {(module, name): getattr(_REAL[module], name, None) for module, name in VITAL}
# The module that does it, by the library's name.
PATCHERS: Final = {"gevent": "gevent.monkey", "eventlet": "eventlet.patcher"}


def check_unpatched() -> None:
    """Raise BootError if what has been loaded took away what prefork runs by."""
    if changed := list(_changed()):
        library = next(
            (name for name, module in PATCHERS.items() if module in sys.modules), "something that it imports"
        )
        raise BootError(
            f"the application has monkey patched the standard library, by {library}: {', '.join(changed)}",
            "remove it (threads = 16 serves as many requests at once), or run a server made for it in a pool with command",
        )


def _changed() -> Iterator[str]:
    for (module, name), original in _ORIGINALS.items():
        found = getattr(_REAL[module], name, None)
        if found is not original:
            yield f"{module}.{name} is {'gone' if found is None else 'replaced'}"
