"""Which server a TARGET means: a TOML file, a name that ``prefork list`` shows, or the path of a control socket."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Sequence
from typing import NamedTuple

from prefork.cli.run import Source, source
from prefork.control import registry
from prefork.control.client import PATIENCE, Client, NoServerError
from prefork.control.messages import Identity
from prefork.control.registry import Entry
from prefork.errors import CommandError, UsageError

HOW_TO_START = "prefork run CONF starts one; prefork list shows those that run"


class Place(NamedTuple):
    """Where a server is asked.

    Attributes:
        path: its control socket's.
        owner: the user who has to answer there, None if that is not known.
        paths: the file that it has to run, by its two paths; nothing for any server.
        described: what people call it, for messages.

    """

    path: str
    owner: int | None
    paths: tuple[str, ...]
    described: str


def connect(target: str, settings: Sequence[str], timeout: float = PATIENCE) -> Client:
    """Return a connection to the server that a target means, and to no other one.

    Raises UsageError where several are meant, ConfigError for a wrong file, CommandError if there is none.
    """
    place = find(target, settings)
    client = Client(place.path, timeout, place.owner)
    if place.paths:
        try:
            _check_identity(client, place)
        except BaseException:
            client.close()
            raise
    return client


def find(target: str, settings: Sequence[str]) -> Place:
    """Return where the server that a target means is asked; raises what ``connect`` does, if nobody needs to be asked."""
    kind = _kind_of(target)
    if kind == "file":
        _check_settings(settings)
        return _by_file(target, settings)
    if settings:
        raise UsageError(f"--set changes a TOML file's values, and {target} is not a TOML file")
    return _by_name(target) if kind == "name" else Place(target, None, (), target)


def _kind_of(target: str) -> str:
    """Tell files, sockets and names apart. What exists is what it is; what does not is told by its spelling."""
    try:
        return "socket" if stat.S_ISSOCK(os.stat(target).st_mode) else "file"
    except OSError:
        if target.endswith(".toml"):
            return "file"
        return "socket" if "/" in target or target.endswith(".sock") else "name"


def _check_settings(settings: Sequence[str]) -> None:
    for setting in settings:
        if not setting.startswith("master."):
            hint = "write it into the file and reload, or give it to prefork run"
            raise UsageError(
                f"--set {setting}: a running server is only found by master.*, it is not changed", hint
            )


def _by_name(name: str) -> Place:
    found = _alive([entry for entry in registry.entries() if entry.record.name == name])
    if not found:
        raise CommandError(f"no server of the name {name} runs", "prefork list shows those that run")
    return _place(_only(found, name))


def _by_file(target: str, settings: Sequence[str]) -> Place:
    asked = source(target, settings)
    given, real = asked.file, os.path.realpath(asked.file)
    known = registry.entries()
    found = _alive([entry for entry in known if entry.record.file == given])
    found = found or _alive([entry for entry in known if entry.record.runs(given, real)])
    if settings:
        control = asked.control()
        found = [entry for entry in found if entry.record.control == control]
    if found:
        return _place(_only(found, target), given, real)
    return Place(_control_of(asked), None, (given, real), target)


def _control_of(asked: Source) -> str:
    """Return the socket that a file names: that of a server which could leave no record."""
    control = asked.control()
    if os.path.dirname(control) == registry.home(os.geteuid()) and not os.path.lexists(control):
        raise NoServerError(f"no server runs {asked.conf}", HOW_TO_START)
    return control


def _place(entry: Entry, *paths: str) -> Place:
    record = entry.record
    if not entry.listens:
        raise CommandError(
            f"the control socket {record.control} of {record.name} is gone",
            f"kill -HUP {record.pid} reloads that server and brings the socket back",
        )
    return Place(record.bound, entry.uid, paths or (record.file, record.real), record.name)


def _alive(found: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in found if entry.has_process or entry.listens]


def _only(found: Sequence[Entry], target: str) -> Entry:
    if len(found) == 1:
        return found[0]
    servers = " and ".join(described(entry) for entry in found)
    raise UsageError(
        f"{target} may mean several servers: {servers}", "name one by the path of its control socket"
    )


def described(entry: Entry) -> str:
    """Return what tells one server from another, for people."""
    record = entry.record
    whose = "" if entry.uid == os.geteuid() else f" of {user_name(entry.uid)}"
    return f"{record.name}{whose} (pid {record.pid}, {record.file}, control socket {record.control})"


def user_name(uid: int) -> str:
    """Return the name of a user, its number if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _check_identity(client: Client, place: Place) -> None:
    found: Identity = client.identify()
    if found.file not in place.paths and found.real not in place.paths:
        raise CommandError(
            f"no server runs {place.described}: the server on {place.path} runs {found.file}, not this file",
            HOW_TO_START,
        )
