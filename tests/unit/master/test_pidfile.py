"""The pid file, in a folder in which somebody else may have put something."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time

import pytest

from prefork.errors import ListenError
from prefork.master.pidfile import PidFile


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "shop.pid"


def written(path) -> int:
    file = PidFile(str(path))
    pid = int(path.read_text())
    file.close()
    return pid


def test_it_is_written_and_removed(path):
    assert written(path) == os.getpid()
    assert not path.exists()


def test_a_stale_one_is_no_obstacle(path):
    path.parent.mkdir()
    path.write_text("1234567\nand more\n")
    assert written(path) == os.getpid()


def test_a_link_is_not_followed(path, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    path.parent.mkdir()
    path.symlink_to(precious)
    with pytest.raises(ListenError, match="symbolic link"):
        PidFile(str(path))
    assert precious.read_text() == "precious"


def test_a_file_with_another_name_is_not_written_to(path, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    path.parent.mkdir()
    path.hardlink_to(precious)
    with pytest.raises(ListenError, match="expected a file with one name, found one with 2"):
        PidFile(str(path))
    assert precious.read_text() == "precious"


def test_a_fifo_does_not_hang_the_start(path):
    path.parent.mkdir()
    os.mkfifo(path)
    with pytest.raises(ListenError, match="expected a regular file"):
        PidFile(str(path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_somebody_elses_file_is_not_written_to(path):
    path.parent.mkdir()
    path.write_text("1\n")
    os.chown(path, 65534, 65534)
    with pytest.raises(ListenError, match="expected a file of user 0, found one of user 65534"):
        PidFile(str(path))


def test_a_running_server_keeps_it(path):
    path.parent.mkdir()
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{os.getppid()}\n")
        file.flush()
        if os.stat(f"/proc/{os.getppid()}").st_uid != os.geteuid():
            pytest.skip("the process above this one is another user's")
        with pytest.raises(ListenError, match=f"held by a running server, pid {os.getppid()}"):
            PidFile(str(path))
        assert path.exists()


def test_a_lock_of_somebody_who_is_no_server_says_nothing(path):
    path.parent.mkdir()
    dead = subprocess.Popen(["true"])
    dead.wait()
    path.write_text(f"{dead.pid}\n")
    with path.open() as file:  # as anybody may who can read it
        fcntl.flock(file, fcntl.LOCK_SH)
        began = time.monotonic()
        assert written(path) == os.getpid()
        assert time.monotonic() - began < 20


def test_what_somebody_has_put_in_its_place_is_left_alone_at_the_end(path):
    file = PidFile(str(path))
    path.unlink()
    path.write_text("another one's")
    file.close()
    assert path.read_text() == "another one's"
