"""The program of workers that run as another user: from what the master has left for them to the worker's own list.

See master/anew.py for why. It runs as the master's user until the worker settles in, as a forked one does: what it imports
need not be readable by the user that the worker then runs as.
"""

from __future__ import annotations

import importlib
import pickle
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from prefork.config.schema import TEMPLATE, Tls
from prefork.scoreboard import Board
from prefork.system import process
from prefork.worker import main as worker
from prefork.worker import template
from prefork.worker.post import Post

if TYPE_CHECKING:
    import ssl


def main(memory: int) -> NoReturn:
    """Be a worker, or a template. Never returns.

    Args:
        memory: the descriptor of what the master has left.

    """
    post = _read(memory)
    (template.run if post.slot == TEMPLATE else worker.run)(post)


def _read(memory: int) -> Post:
    with open(memory, "rb") as file:  # which closes it: nobody needs the keys again
        file.seek(0)
        given, files, modules = pickle.load(file)  # noqa: S301 - the master has written it, and nobody else can
    for name in modules:  # as a forked worker would have them
        with suppress(ImportError):
            importlib.import_module(name)
    listeners = tuple(socket.socket(fileno=number) for number in given["listeners"])
    post = Post(
        **{
            **given,
            "board": Board(*given["board"]),
            "listeners": listeners,
            "channel": socket.socket(fileno=given["channel"]),
            "contexts": _contexts(listeners, given["contexts"], given["pool"].kind, files),
        }
    )
    process.close_on_exec(_shared(post))
    return post


def _shared(post: Post) -> list[int]:
    assert post.board.descriptor is not None
    own = [post.board.descriptor, post.channel.fileno(), post.stacks, *post.outlets.descriptors()]
    return [*own, *(listener.fileno() for listener in post.listeners)]


def _contexts(
    listeners: Sequence[socket.socket], used: Sequence[Tls | None], kind: str, files: Mapping[str, bytes]
) -> dict[int, ssl.SSLContext]:
    """Return what the listeners speak TLS by, those that do, by their descriptors."""
    if not any(used):
        return {}
    from prefork.master.certificates import context_from  # only where it is spoken

    made: dict[Tls, Any] = {tls: context_from(tls, kind, files) for tls in used if tls is not None}
    return {
        listener.fileno(): made[tls] for listener, tls in zip(listeners, used, strict=True) if tls is not None
    }
