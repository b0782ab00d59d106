"""What all tests of real processes share."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.harness import RUN, Server, children_of

Start = Callable[..., Server]
PR_SET_CHILD_SUBREAPER = 36
# What a server has open beside its clients' connections.
SPARE = 200


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Give a function that starts servers: ``start(config, *options, env=None, folder=None, …)`` as ``Server`` has it."""
    servers: list[Server] = []

    def start_server(
        config: str,
        *options: str,
        env: dict[str, str] | None = None,
        folder: Path | None = None,
        inherit: Sequence[tuple[str, socket.socket]] = (),
        command: Sequence[str] = RUN,
    ) -> Server:
        folder = folder or tmp_path
        folder.mkdir(exist_ok=True)
        servers.append(Server(folder, config, *options, env=env, inherit=inherit, command=command))
        return servers[-1]

    yield start_server
    for server in servers:
        server.close()


@pytest.fixture
def make_room() -> Iterator[Callable[[int], None]]:
    """Give a function that lets this process, and the servers it starts, have so many descriptors more; for one test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def allow(count: int) -> None:
        wanted = count + len(os.listdir("/proc/self/fd")) + SPARE
        if hard != resource.RLIM_INFINITY and hard < wanted:
            pytest.skip(f"a process may have {hard} descriptors here, {wanted} are needed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))

    yield allow
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Give a folder that everybody can use; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.fixture
def inherited():
    """Make this process the one that inherits orphans, and give a function that tells whom it has inherited."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    before = set(children_of(os.getpid()))

    def reaped_all(server: Server) -> bool:
        """Reap whoever has ended; tell whether nobody of the server is left."""
        for pid in set(children_of(os.getpid())) - before - {server.process.pid}:
            os.waitpid(pid, os.WNOHANG)
        return set(children_of(os.getpid())) <= before | {server.process.pid}

    yield reaped_all
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
