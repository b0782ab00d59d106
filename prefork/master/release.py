"""Where the code of a generation lies: links are followed once, at the start and at each reload.

Deployments often switch a link: /srv/current leads to /srv/releases/1, then to /srv/releases/2. Whatever a generation's
workers import has to come from one of the two, also when a worker is replaced after the switch. Hence each folder has a
name, which a reload looks up again, and a real path, which the workers of a generation start in and import from.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import islice

import msgspec

import prefork
from prefork.config.schema import Config, Folder, Pool
from prefork.errors import UsageError

# More than this of a folder is not searched for links, which costs about a millisecond.
MANY_ENTRIES = 1000


def start_folder() -> str:
    """Return the folder that this process was started in, with the links that its user went through.

    The kernel knows a folder by its real path only. A shell keeps the path that was given to cd in PWD (POSIX, cd):
    after ``cd /srv/current`` the next release is found by that one, as gunicorn does. A PWD that means another folder
    was left by some other process and is not believed.

    Of a folder that has been deleted the name is returned, as absolute paths do not need it, and there may be a new one.
    Raises UsageError if that is not known either.
    """
    named = os.environ.get("PWD", "")
    try:
        here = os.getcwd()
    except FileNotFoundError:
        if os.path.isabs(named):
            return named
        raise UsageError(
            "the current folder has been deleted", "cd to a folder that exists, and try again"
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
        self._script = _script_of(sys.orig_argv, sys.argv[0])
        self._links = _links_to(name) if name == self.started.real else []
        self._installed = self._what_is_installed()

    def enter(self) -> None:
        """Go to the folder that the name of the start folder means now, if there is one."""
        with suppress(OSError):
            os.chdir(self.started.name)

    def program(self) -> tuple[str, ...]:
        """Return how this program was started, for the present meaning of the paths in it.

        A script is executed itself: its first line names the interpreter, often that of a virtual environment beside it.
        """
        if self._script is not None:
            script = os.path.join(self.started.name, sys.orig_argv[self._script])
            return (self._renamed(script), *sys.orig_argv[self._script + 1 :])
        return (self._renamed(sys.executable), *sys.orig_argv[1:])

    def doubts(self, config: Config) -> list[str]:
        """Return what a reload does not take although it may be meant to, in words."""
        return [*self._switched_links(config), *self._new_installations()]

    def _switched_links(self, config: Config) -> Iterator[str]:
        """Yield the links that led to the start folder and lead elsewhere now, if its release counts."""
        if all(pool.release.start.name != self.started.name for pool in config.pools.values()):
            return
        for link in self._links:
            now = os.path.realpath(link)
            if now != self.started.real:
                yield (
                    f"this server runs in {self.started.real}, {link} is {now} by now: to follow that link,"
                    f' write directory = "{link}" under [master]'
                )

    def _new_installations(self) -> Iterator[str]:
        now = self._what_is_installed()
        changed = [what for what in now if now[what] != self._installed.get(what)]
        changed += [what for what in self._installed if what not in now]
        if changed:
            what = " and ".join(changed)
            yield f"changed since this server started: {what}; prefork upgrade takes that, a reload does not"

    def _what_is_installed(self) -> dict[str, object]:
        """Return what only a new interpreter takes: the interpreter, prefork itself, files that extend sys.path (site)."""
        program = self.program()[0]
        found: dict[str, object] = {"prefork": _stamp(prefork.__file__)}
        # Of a script the text tells which interpreter it is for; python in a virtual environment is a link out of it.
        found[f"the interpreter of {program}"] = (
            os.path.realpath(os.path.dirname(program)) if self._script is None else _first_lines(program)
        )
        for folder in dict.fromkeys(map(os.path.realpath, filter(_is_site, sys.path))):
            with suppress(OSError):
                names = sorted(name for name in os.listdir(folder) if name.endswith(".pth"))
                found |= {path: _stamp(path) for path in (os.path.join(folder, name) for name in names)}
        return found

    def pinned_path(self) -> tuple[Folder, ...]:
        """Return the interpreter's own sys.path, with the folders that its entries mean now."""
        return tuple(_pinned(name) for name in self._path)

    def _renamed(self, path: str) -> str:
        """Return a path by the name of the start folder if it leads there: python -m puts the real path first."""
        name, real = self.started.name, self.started.real
        if name != real and path and (path == real or path.startswith(real + os.sep)):
            return name + path[len(real) :]
        return path


def _script_of(command: list[str], program: str) -> int | None:
    """Return the place of the script in a command line, if the script was executed and not given to an interpreter.

    The kernel puts the interpreter, and at most one option, before the script's path (execve(2)). That it was so is told
    by the script's first two lines: those name the interpreter, also where pip had to let /bin/sh execute a long path.
    """
    if program not in command[1:3] or not os.access(program, os.X_OK):
        return None
    named = re.split(r"""[\s"'!]+""", _first_lines(program))
    return command.index(program, 1) if command[0] in named else None


def _first_lines(path: str) -> str:
    """Return the first two lines of a script, nothing if the file is none."""
    try:
        with open(path, "rb") as file:
            lines = file.read(1024).splitlines()[:2]
    except OSError:
        return ""
    return os.fsdecode(b"\n".join(lines)) if lines and lines[0].startswith(b"#!") else ""


def _links_to(folder: str) -> list[str]:
    """Return the links that lead to a folder, of those beside it or beside the folder that it is in."""
    above = os.path.dirname(folder)
    found = []
    for place in dict.fromkeys((above, os.path.dirname(above))):
        with suppress(OSError), os.scandir(place) as entries:
            links = (entry.path for entry in islice(entries, MANY_ENTRIES) if entry.is_symlink())
            found += [link for link in links if os.path.realpath(link) == folder]
    return found


def _is_site(path: str) -> bool:
    return os.path.basename(path) in ("site-packages", "dist-packages")


def _stamp(path: str) -> tuple[int, int, int] | None:
    """Return what is another one once a file was written or replaced; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def pin(config: Config, only: Collection[str] | None = None) -> Config:
    """Return a configuration whose pools know the real paths of their releases; ``only`` some look them up anew."""
    pools = {
        name: _pin_pool(pool) if only is None or name in only else pool for name, pool in config.pools.items()
    }
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
