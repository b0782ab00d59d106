"""User and group: looked up once in the master, dropped to in the worker."""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import pwd
import sys
from collections.abc import Callable

import msgspec

from prefork.errors import ConfigError, Problem

# Of linux/prctl.h.
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38


class Account(msgspec.Struct, frozen=True):
    """Whom a process runs as."""

    name: str | None
    uid: int
    gid: int

    def __str__(self) -> str:
        return f"{self.name or self.uid} ({self.uid}:{self.gid})"


def find_user(user: str) -> int:
    """Return the number of a user given by name or number; raises ConfigError if there is no such name."""
    return _find(user, lambda: pwd.getpwnam(user).pw_uid, "user")


def find_group(group: str) -> int:
    """Return the number of a group given by name or number; raises ConfigError if there is no such name."""
    return _find(group, lambda: grp.getgrnam(group).gr_gid, "group")


def find_account(user: str | None, group: str | None, places: tuple[str, str]) -> Account | None:
    """Return whom workers run as, or None if that is whom the master runs as.

    Args:
        user: its name or number; None for the master's own.
        group: its name or number; None for the user's own.
        places: where user and group were written, for messages.

    Raises ConfigError for unknown names, and where the master may not change its identity.

    """
    if user is None and group is None:
        return None
    uid = os.getuid() if user is None else _at(places[0], find_user, user)
    gid = _primary_group(uid) if group is None else _at(places[1], find_group, group)
    if (uid, gid) == (os.getuid(), os.getgid()):
        return None
    if os.geteuid() != 0:
        problem = Problem(
            f"{places[user is None]}: expected to be run by root, found user number {os.geteuid()}",
            "leave user and group out, or start prefork as root",
        )
        raise ConfigError([problem])
    return Account(_name_of(uid), uid, gid)


def drop_to(account: Account) -> None:
    """Become another user for good: groups first, while that is still allowed (setgroups(2), setresuid(2)).

    With a user that this machine knows come its HOME, USER and LOGNAME, as systemd.exec(5) sets them: those of who has
    started the master are not for this user to read.
    """
    if account.name is not None:
        home = pwd.getpwnam(account.name).pw_dir
        os.environ.update(HOME=home, USER=account.name, LOGNAME=account.name)
        os.initgroups(account.name, account.gid)
    else:
        os.setgroups([account.gid])
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)


def gain_no_more() -> None:
    """Have this process, and all that it starts, gain no rights by executing a program. Raises OSError."""
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def allow_core_dumps() -> None:
    """Let this process leave core dumps again: the kernel takes that away with a change of user. Raises OSError."""
    _prctl(PR_SET_DUMPABLE, 1)


def _prctl(option: int, value: int) -> None:
    """Call prctl(2), which the standard library does not know."""
    if not sys.platform.startswith("linux"):
        raise OSError(errno.ENOSYS, "that takes Linux")
    # Variadic in C: what is not given as a long may leave rubbish in the upper half.
    arguments = [ctypes.c_ulong(number) for number in (value, 0, 0, 0)]
    if ctypes.CDLL(None, use_errno=True).prctl(option, *arguments):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _at(place: str, find: Callable[[str], int], name: str) -> int:
    try:
        return find(name)
    except ConfigError as error:
        problems = [Problem(f"{place}: {problem.message}", problem.hint) for problem in error.problems]
        raise ConfigError(problems) from error


def _find(text: str, by_name: Callable[[], int], what: str) -> int:
    if text.isdigit():
        return int(text)
    try:
        return by_name()
    except KeyError:
        raise ConfigError([Problem(f"expected a {what} of this machine, found {text!r}")]) from None


def _primary_group(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return os.getgid()


def _name_of(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None
