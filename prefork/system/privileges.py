"""User and group: looked up once in the master, dropped to in the worker."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable

import msgspec

from prefork.errors import ConfigError, Problem


class Account(msgspec.Struct, frozen=True):
    """Whom a process runs as."""

    name: str | None
    uid: int
    gid: int


def find_user(user: str) -> int:
    """Return the number of a user given by name or number; raises ConfigError if there is no such name."""
    return _find(user, lambda: pwd.getpwnam(user).pw_uid, "user")


def find_group(group: str) -> int:
    """Return the number of a group given by name or number; raises ConfigError if there is no such name."""
    return _find(group, lambda: grp.getgrnam(group).gr_gid, "group")


def find_account(user: str | None, group: str | None) -> Account | None:
    """Return whom workers run as, or None if that is whom the master runs as.

    Raises ConfigError for unknown names, and where the master may not change its identity.
    """
    if user is None and group is None:
        return None
    uid = os.getuid() if user is None else find_user(user)
    gid = _primary_group(uid) if group is None else find_group(group)
    if (uid, gid) == (os.getuid(), os.getgid()):
        return None
    if os.geteuid() != 0:
        problem = Problem(
            f"[master] user, group: expected to be run by root, found user number {os.geteuid()}",
            "leave user and group out, or start prefork as root",
        )
        raise ConfigError([problem])
    return Account(_name_of(uid), uid, gid)


def drop_to(account: Account) -> None:
    """Become another user for good: groups first, while that is still allowed (setgroups(2), setresuid(2))."""
    if account.name is not None:
        os.initgroups(account.name, account.gid)
    else:
        os.setgroups([account.gid])
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)


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
