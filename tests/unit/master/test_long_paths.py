"""A Unix socket is bound beside its path first: also where the path is as long as it may be."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator

import pytest

from prefork.config.schema import Listen
from prefork.master.listeners import Listeners
from prefork.units import UNIX_PATH_LIMIT, UnixAddress


@pytest.fixture
def folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="prefork-") as path:
        yield path


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels have shorter limits and no /proc/self/fd")
@pytest.mark.parametrize("name", ["s", "web.sock", "é" * 20, "w" * 70])
def test_a_path_of_all_the_bytes_that_are_allowed_is_bound(folder: str, name: str) -> None:
    left = UNIX_PATH_LIMIT - len(os.fsencode(f"{folder}//{name}"))
    path = f"{folder}/{'d' * left}/{name}"
    assert len(os.fsencode(path)) == UNIX_PATH_LIMIT
    listen = Listen(address=UnixAddress(path))
    listeners = Listeners()
    listeners.open({listen.address: listen})
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    assert os.listdir(os.path.dirname(path)) == [name]
    listeners.keep(())
    assert os.listdir(os.path.dirname(path)) == []
