"""Mode and owner of a Unix socket whose folder somebody else can write to."""

from __future__ import annotations

import socket
import stat

import pytest

from prefork.config.listeners import all_keyed
from prefork.errors import ListenError
from prefork.master.listeners import Listeners, _alter
from tests.unit.config.reading import read


def wanted(path, mode: str):
    listen = f'[{{ address = "unix:{path}", mode = "{mode}" }}]'
    return all_keyed(read(f'[pool.web]\nlisten = {listen}\nwsgi = "a:b"\n'))


def change(listeners, wanted) -> None:
    """Have a reload change the mode, also if the socket's path is seen to mean another file at the last moment only."""
    listeners.alter(wanted)
    ((key, listen),) = wanted.items()
    with pytest.raises(ListenError, match="another file has taken the place of its socket"):
        _alter(listeners.of(key)[0], listen)


@pytest.fixture
def listeners(tmp_path):
    found = Listeners()
    found.open(wanted(tmp_path / "web.sock", "0660"))
    yield found
    found.keep(())


def test_the_mode_is_that_of_the_configuration_from_the_first_moment_on(listeners, tmp_path):
    assert stat.S_IMODE((tmp_path / "web.sock").stat().st_mode) == 0o660


def test_a_reload_changes_the_mode(listeners, tmp_path):
    listeners.alter(wanted(tmp_path / "web.sock", "0666"))
    assert stat.S_IMODE((tmp_path / "web.sock").stat().st_mode) == 0o666


def test_a_link_in_the_sockets_place_is_not_followed(listeners, tmp_path):
    precious = tmp_path / "precious"
    precious.touch(0o600)
    (tmp_path / "web.sock").unlink()
    (tmp_path / "web.sock").symlink_to(precious)
    change(listeners, wanted(tmp_path / "web.sock", "0666"))
    assert stat.S_IMODE(precious.stat().st_mode) == 0o600


def test_another_socket_in_its_place_is_left_as_it_is(listeners, tmp_path):
    (tmp_path / "web.sock").unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "web.sock"))
        before = (tmp_path / "web.sock").stat().st_mode
        change(listeners, wanted(tmp_path / "web.sock", "0666"))
        assert (tmp_path / "web.sock").stat().st_mode == before
