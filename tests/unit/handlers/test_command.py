"""Where a program is found, and the environment that it finds."""

from __future__ import annotations

import os

import pytest

from prefork.config.schema import Listen, Pool
from prefork.errors import BootError
from prefork.handlers.command import environment, find
from prefork.units import TcpAddress


def listens(count: int) -> tuple[Listen, ...]:
    return tuple(Listen(address=TcpAddress("127.0.0.1", port)) for port in range(1, count + 1))


def described(inherited=(), notify=None, **options) -> dict[str, str]:
    pool = Pool(name="files", command=("x",), **options)
    return environment(dict(inherited), pool, 3, 7, notify, "files/3 gen=7 pid=1")


def test_a_program_is_told_its_place_and_its_listeners():
    assert described(listen=listens(2)) == {
        "PREFORK_POOL": "files",
        "PREFORK_SLOT": "3",
        "PREFORK_GENERATION": "7",
        "PREFORK_WORKER": "files/3 gen=7 pid=1",
        "LISTEN_FDS": "2",
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDNAMES": "files:files",
    }


def test_without_listeners_nothing_is_said_of_them():
    assert not any(name.startswith("LISTEN_") for name in described([("LISTEN_FDS", "1")]))


def test_what_is_meant_for_prefork_itself_is_not_handed_on_but_what_the_pool_says_is():
    inherited = {
        "NOTIFY_SOCKET": "/run/x",
        "WATCHDOG_USEC": "1",
        "PREFORK_POOL__WEB__WORKERS": "1",
        "PATH": "/bin",
    }
    own = described(inherited.items(), env={"PATH": "/opt", "WATCHDOG_USEC": "2"})
    assert "NOTIFY_SOCKET" not in own
    assert "PREFORK_POOL__WEB__WORKERS" not in own
    assert (own["PATH"], own["WATCHDOG_USEC"]) == ("/opt", "2")
    assert described(inherited.items(), notify="@1")["NOTIFY_SOCKET"] == "@1"


def test_a_program_is_found_as_a_shell_finds_it(tmp_path, monkeypatch):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tool").write_text("")
    (tmp_path / "two" / "tool").chmod(0o755)
    (tmp_path / "one" / "plain").write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path}/none:{tmp_path}/one:{tmp_path}/two")
    assert find("tool") == f"{tmp_path}/two/tool"
    with pytest.raises(BootError, match=r"cannot run '.*/one/plain': permission denied"):
        find("plain")
    with pytest.raises(BootError, match="cannot run 'absent': no such program in PATH"):
        find("absent")
    with pytest.raises(BootError, match=f"cannot run '{tmp_path}': permission denied"):
        find(str(tmp_path))
