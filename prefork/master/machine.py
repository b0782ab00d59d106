"""What a configuration needs of this machine: accounts, directories, a package. Found wrong before anything changes."""

from __future__ import annotations

import os
import stat

from prefork.config.patterns import folder_of
from prefork.config.schema import Config, Pool
from prefork.errors import ConfigError, Problem
from prefork.master.listeners import check_accounts
from prefork.system import process
from prefork.system.privileges import Account, find_account

Accounts = dict[str, Account | None]


def examine(config: Config) -> Accounts:
    """Return whom the workers of each pool run as, by its name; None stands for whom the master runs as.

    Raises ConfigError with all that this machine lacks: directories, users, groups.
    """
    accounts: Accounts = {}
    problems = [*_missing_directories(config), *_unwatchable(config)]
    for pool in config.pools.values():
        try:
            accounts[pool.name] = _account(config, pool)
        except ConfigError as error:
            problems += error.problems
    problems += templates_without_subreapers(config, process.has_subreapers())
    try:
        check_accounts(config)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))  # what is wrong in [master] is wrong in many pools
    return accounts


def _missing_directories(config: Config) -> list[Problem]:
    wanted = {}
    if config.master.directory is not None:
        wanted[config.place("master", "directory")] = config.master.directory
    for pool in config.pools.values():
        if pool.directory is not None:
            wanted[config.place("pool", pool.name, "directory")] = pool.directory
        elif config.master.directory is None:
            wanted["the folder that prefork was started in"] = pool.release.start.name
    faults = ((place, path, _fault(path)) for place, path in wanted.items())
    return [
        Problem(f"{place}: expected a directory, found {path}: {fault}")
        for place, path, fault in faults
        if fault
    ]


def _unwatchable(config: Config) -> list[Problem]:
    """Return why files cannot be watched, for those pools that want it."""
    problems = []
    for pool in config.pools.values():
        place = config.place("pool", pool.name, "reload_on_change")
        if pool.reload_on_change and _is_missing("watchfiles"):
            text = f"{place}: expected the package watchfiles, which does that, found none"
            problems.append(Problem(text, "pip install 'prefork[watch]'"))
        for folder in sorted(set(map(folder_of, pool.reload_on_change))):
            if fault := _fault(folder):
                text = f"{place}: expected patterns in a directory, found {folder}: {fault}"
                problems.append(Problem(text))
    return problems


def templates_without_subreapers(config: Config, can_adopt: bool) -> list[Problem]:
    """Return where ``preload`` is asked for though a template's workers could not become the master's children."""
    return [
        Problem(
            f"{config.place('pool', name, 'preload')}: expected Linux: elsewhere a template's workers would not be the master's children",
            "write preload = false: each worker then loads the application by itself",
        )
        for name, pool in config.pools.items()
        if pool.preload and not can_adopt
    ]


def _is_missing(package: str) -> bool:
    from importlib.util import (
        find_spec,
    )  # needed for development only: no start without it has to wait for it

    return find_spec(package) is None


def _fault(path: str) -> str | None:
    try:
        mode = os.stat(path).st_mode
    except PermissionError:
        return None  # the workers' user may see what the master's may not; if not, they say so
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None if stat.S_ISDIR(mode) else "it is none"


def _account(config: Config, pool: Pool) -> Account | None:
    """Return whom a pool's workers run as. A user of its own comes with a group of its own: not the master's."""
    master = config.master
    own_user = pool.user is not None
    own_group = own_user or pool.group is not None
    table = ("pool", pool.name)
    return find_account(
        pool.user if own_user else master.user,
        pool.group if own_group else master.group,
        (
            config.place(*(table if own_user else ("master",)), "user"),
            config.place(*(table if own_group else ("master",)), "group"),
        ),
    )
