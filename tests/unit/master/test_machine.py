"""What a configuration needs of the machine is looked up before anything changes, all mistakes at once."""

from __future__ import annotations

import os
import pwd

import pytest

from prefork.errors import ConfigError
from prefork.master.machine import examine
from prefork.system.privileges import Account
from tests.unit.config.reading import WEB, read

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may run workers as somebody else")
DAEMON, GAMES = pwd.getpwnam("daemon"), pwd.getpwnam("games")


def config(master="", web="", folder="/"):
    return read(f'[master]\ndirectory = "{folder}"\n{master}{WEB}{web}')


def faults(*arguments, **more):
    with pytest.raises(ConfigError) as caught:
        examine(config(*arguments, **more))
    return [problem.message for problem in caught.value.problems]


def test_without_a_user_workers_run_as_the_master():
    assert examine(config()) == {"web": None}


@ROOT
@pytest.mark.parametrize(
    ("master", "web", "uid", "gid"),
    [
        ('user = "games"\n', "", GAMES.pw_uid, GAMES.pw_gid),
        ('user = "games"\ngroup = "daemon"\n', "", GAMES.pw_uid, DAEMON.pw_gid),
        ('user = "games"\n', 'user = "daemon"\n', DAEMON.pw_uid, DAEMON.pw_gid),
        ('user = "games"\ngroup = "games"\n', 'user = "daemon"\n', DAEMON.pw_uid, DAEMON.pw_gid),
        ('user = "games"\ngroup = "games"\n', 'group = "daemon"\n', GAMES.pw_uid, DAEMON.pw_gid),
        ("", 'group = "daemon"\n', 0, DAEMON.pw_gid),
    ],
)
def test_a_pools_own_user_comes_with_its_own_group(master, web, uid, gid):
    account = examine(config(master, web))["web"]
    assert isinstance(account, Account)
    assert (account.uid, account.gid) == (uid, gid)


def test_all_that_is_missing_is_told_at_once_with_its_line(tmp_path):
    (tmp_path / "file").touch()
    web = 'directory = "file"\nuser = "nobody-at-all"\ngroup = "no-group"\n'
    assert faults('group = "none-such"\n', web, folder=tmp_path) == [
        f"conf/server.toml:7: [pool.web] directory: expected a directory, found {tmp_path}/file: it is none",
        "conf/server.toml:8: [pool.web] user: expected a user of this machine, found 'nobody-at-all'",
    ]
    assert faults(folder=tmp_path / "gone") == [
        f"conf/server.toml:2: [master] directory: expected a directory, found {tmp_path}/gone: no such file or directory"
    ]


@ROOT
def test_a_mistake_of_the_master_is_told_once_for_all_pools():
    text = f'[master]\nuser = "nobody-at-all"\n{WEB}{WEB.replace("web", "more").replace("8000", "8001")}'
    with pytest.raises(ConfigError) as caught:
        examine(read(text.replace("[master]", '[master]\ndirectory = "/"')))
    assert [problem.message for problem in caught.value.problems] == [
        "conf/server.toml:3: [master] user: expected a user of this machine, found 'nobody-at-all'"
    ]
