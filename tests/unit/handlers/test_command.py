"""Where a program is found, and the environment that it finds."""

from __future__ import annotations

import os

import pytest

from prefork.config.schema import Folder, Listen, Pool, Release
from prefork.errors import BootError
from prefork.handlers.command import environment, find, in_release
from prefork.units import TcpAddress


def listens(count: int) -> tuple[Listen, ...]:
    return tuple(Listen(address=TcpAddress("127.0.0.1", port)) for port in range(1, count + 1))


def described(inherited=(), notify=None, **options) -> dict[str, str]:
    pool = Pool(name="files", command=("x",), **options)
    return environment(dict(inherited), pool, 3, 7, notify, "files/3 gen=7 pid=1")


def test_a_program_is_told_its_place_and_its_listeners():
    assert described(listen=listens(2)) == {
        "PYTHONUNBUFFERED": "1",
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


def test_a_program_in_python_prints_at_once_unless_somebody_wants_otherwise():
    assert described()["PYTHONUNBUFFERED"] == "1"
    assert described([("PYTHONUNBUFFERED", "")])["PYTHONUNBUFFERED"] == ""
    assert described(env={"PYTHONUNBUFFERED": "0"})["PYTHONUNBUFFERED"] == "0"


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


@pytest.mark.parametrize(
    ("program", "hint"),
    [
        ("~/bin/serve", 'write the whole path, or command = ["sh", "-c", "exec ~/bin/serve"]'),
        ("$HOME/bin/serve", 'write the whole path, or command = ["sh", "-c", "exec $HOME/bin/serve"]'),
        ("local.sh", 'a program in this folder is written with it: command = ["./local.sh", …]'),
        ("sleep 100", 'each word is a text of its own: command = ["sleep", "100"]'),
        ("./serve --port 'a b'", 'command = ["./serve", "--port", "a b"]'),
        ("PORT=1 serve", 'command = ["sh", "-c", "PORT=1 serve"]'),
        ("cd x && ./serve", 'command = ["sh", "-c", "cd x && ./serve"]'),
        ("serve 'a", 'command = ["sh", "-c", "serve \'a"]'),
        ("absent", None),
    ],
)
def test_a_program_that_is_not_there_is_refused_with_what_to_write(tmp_path, monkeypatch, program, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local.sh").write_text("#!/bin/sh\n")
    with pytest.raises(BootError, match="cannot run ") as caught:
        find(program)
    assert hint in caught.value.hint if hint else caught.value.hint is None


@pytest.mark.parametrize(
    ("content", "reason", "hint"),
    [
        (
            b"echo hi\n",
            "exec format error: it is a text without a first line that",
            'command = ["sh", "./it"]',
        ),
        (
            b"#!/bin/sh\r\necho\r\n",
            r"for the interpreter that its first line names: '/bin/sh\r'",
            "sed -i 's/",
        ),
        (b"#!/usr/bin/env sh\r\n", "for the interpreter that its first line names", "as on Windows"),
        (b"#! /no/such -x\n", "for the interpreter that its first line names: '/no/such'", None),
        (b"#!\n", "for the interpreter that its first line names: ''", None),
    ],
)
def test_a_script_that_the_kernel_cannot_execute_is_refused_before(
    tmp_path, monkeypatch, content, reason, hint
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "it").write_bytes(content)
    (tmp_path / "it").chmod(0o755)
    with pytest.raises(BootError) as caught:
        find("./it")
    assert reason in caught.value.message
    assert hint in caught.value.hint if hint else caught.value.hint is None


@pytest.mark.parametrize(
    "content", [b"#!/bin/sh\n", b"#! /bin/sh -e\n", b"\x7fELF\0\0", b"MZ\0\n", b"", b"#!/usr/bin/env sh"]
)
def test_what_the_kernel_may_execute_is_left_to_it(tmp_path, content):
    (tmp_path / "it").write_bytes(content)
    (tmp_path / "it").chmod(0o755)
    assert find(str(tmp_path / "it")) == str(tmp_path / "it")


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("/srv/current/bin/work", "/srv/releases/1/bin/work"),
        ("/srv/currently/work", "/srv/currently/work"),
        ("/usr/bin/work", "/usr/bin/work"),
        ("./work", "./work"),
        ("work", "work"),
    ],
)
def test_a_program_that_is_named_by_the_link_is_that_of_the_release(program, found):
    release = Release(Folder("/srv/current", "/srv/releases/1"), (Folder("/srv/current", "/srv/releases/1"),))
    assert in_release(program, release) == found
