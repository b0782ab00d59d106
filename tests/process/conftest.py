"""What all tests of real processes share."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.harness import Server

Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Give a function that starts servers: ``start(config, *options, env=None, folder=None, inherit=())``."""
    servers: list[Server] = []

    def start_server(
        config: str,
        *options: str,
        env: dict[str, str] | None = None,
        folder: Path | None = None,
        inherit: Sequence[tuple[str, socket.socket]] = (),
    ) -> Server:
        folder = folder or tmp_path
        folder.mkdir(exist_ok=True)
        servers.append(Server(folder, config, *options, env=env, inherit=inherit))
        return servers[-1]

    yield start_server
    for server in servers:
        server.close()
