"""Where the code of a generation lies: links are followed once, at the start and at each reload.

Deployments often switch a link: /srv/current leads to /srv/releases/1, then to /srv/releases/2. Whatever a generation's
workers import has to come from one of the two, also when a worker is replaced after the switch. Hence each folder has a
name, which a reload looks up again, and a real path, which the workers of a generation start in and import from.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import msgspec

from prefork.config.schema import Config, Folder, Pool
from prefork.errors import UsageError


def start_folder() -> str:
    """Return the folder that this process was started in, with the links that its user went through.

    The kernel knows a folder by its real path only. A shell keeps the path that was given to cd in PWD (POSIX, cd):
    after ``cd /srv/current`` the next release is found by that one, as gunicorn does. A PWD that means another folder
    was left by some other process and is not believed.

    Raises UsageError if the folder has been deleted, and PWD does not say where there is one of its name.
    """
    named = os.environ.get("PWD", "")
    try:
        here = os.getcwd()
    except FileNotFoundError:
        if os.path.isabs(named) and os.path.isdir(named):
            return named
        where = f", {named}," if named else ""
        raise UsageError(
            f"the current folder{where} has been deleted", "cd to a folder that exists, and try again"
        ) from None
    return named if os.path.isabs(named) and _is_same(named, here) else here


def _is_same(first: str, second: str) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False


class Origin:
    """Where and by what this program was started, as it was then.

    Attributes:
        started: the folder that it was started in.

    """

    def __init__(self) -> None:
        name = start_folder()
        self.started = Folder(name, os.path.realpath(name))
        self._path = tuple(self._renamed(entry) for entry in sys.path)

    def pinned_path(self) -> tuple[Folder, ...]:
        """Return the interpreter's own sys.path, with the folders that its entries mean now."""
        return tuple(_pinned(name) for name in self._path)

    def _renamed(self, path: str) -> str:
        """Return a path by the name of the start folder if it leads there: python -m puts the real path first."""
        name, real = self.started.name, self.started.real
        if name != real and path and (path == real or path.startswith(real + os.sep)):
            return name + path[len(real) :]
        return path


def pin(config: Config) -> Config:
    """Return a configuration whose pools know the real paths of their releases."""
    pools = {name: _pin_pool(pool) for name, pool in config.pools.items()}
    return msgspec.structs.replace(config, pools=pools)


def _pin_pool(pool: Pool) -> Pool:
    release = msgspec.structs.replace(
        pool.release,
        start=_pinned(pool.release.start.name),
        imports=tuple(_pinned(folder.name) for folder in pool.release.imports),
    )
    return msgspec.structs.replace(pool, release=release)


def _pinned(name: str) -> Folder:
    # "" is the current folder, wherever that is: in sys.path of a program that was not started from a file.
    return Folder(name, os.path.realpath(name) if name else "")


def releases(config: Config) -> Iterator[str]:
    """Yield the folders that the workers of a configuration start in, each once."""
    yield from dict.fromkeys(pool.release.start.real for pool in config.pools.values())
