"""The command line where its output goes: a terminal, a file, a reader that leaves."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.harness import APPS, PATIENCE, PREFORK
from tests.unit.cli.test_render import BUSY
from tests.unit.room import Room, folder, room

__all__ = ["folder", "room"]

ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}


@pytest.fixture
def command(room: Room) -> Iterator[list[str]]:
    room.answer = lambda _request, reply: reply.result(msgspec.to_builtins(BUSY))
    room.start()
    return [sys.executable, "-m", "prefork", "status", room.path]


def shown(command: list[str], columns: int, **environment: str) -> str:
    """What a terminal of that width is sent."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 30, columns, 0, 0))
    with subprocess.Popen(
        command, stdout=slave, env=ENVIRONMENT | {"TERM": "xterm"} | environment
    ) as process:
        os.close(slave)
        data = b""
        try:
            while chunk := os.read(master, 65536):
                data += chunk
        except OSError:
            pass  # EIO: the other side is closed (pty(7))
        assert process.wait() == 0
    os.close(master)
    return data.decode()


def test_a_terminal_gets_colours_and_its_own_width(command: list[str]) -> None:
    wide, narrow = (shown(command, columns) for columns in (160, 80))
    assert "\x1b[32mready" in wide
    assert "…" in narrow
    assert len(wide) > len(narrow)


def test_no_color_is_respected(command: list[str]) -> None:
    text = shown(command, 90, NO_COLOR="1")
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 90


def test_a_terminal_that_does_not_know_its_width_counts_as_80_columns(command: list[str]) -> None:
    assert max(map(len, shown(command, 0, NO_COLOR="1").splitlines())) <= 80


@pytest.mark.parametrize("closes", [True, False])
def test_a_hang_up_stops_the_server_only_if_its_terminal_is_closed(tmp_path: Path, closes: bool) -> None:
    (tmp_path / "server.toml").write_text(
        f'[master]\ncontrol = "{tmp_path}/c.sock"\n[pool.web]\nlisten = ["127.0.0.1:0"]\nwsgi = "web:app"\n'
    )
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*PREFORK, "run", "server.toml"],
        cwd=tmp_path,
        env=ENVIRONMENT | {"PYTHONPATH": str(APPS)},
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    ) as process:
        os.close(slave)
        said = b""
        while b"generation 1 serves" not in said:
            said += os.read(master, 65536)
        if closes:
            os.close(master)
        process.send_signal(signal.SIGHUP)
        if not closes:
            while b"generation 2 serves" not in said:
                said += os.read(master, 65536)
            process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    if not closes:
        os.close(master)


def test_a_reader_that_left_is_no_reason_to_complain(command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    finished = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert finished.stderr == b""
    assert finished.returncode == 1
