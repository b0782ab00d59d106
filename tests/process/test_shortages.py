"""Shortages with the real program: of descriptors, processes, memory. It goes on, says so, and recovers (faults 6, 7)."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faulty import ask, pool, say, wait_replaced
from tests.harness import Server, descriptors_of, read_to_end, session_of, wait_until

Groups = Callable[[str, str, str, str], Path]
CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture
def groups() -> Iterator[Groups]:
    """Give a function that makes a cgroup with a limit; it skips the test where this machine permits none."""
    made: list[Path] = []

    def make(controller: str, v1: str, v2: str, limit: str) -> Path:
        group = place_of(controller) / f"prefork-test-{os.getpid()}"
        try:
            group.mkdir()
            made.append(group)
            key = group / (v1 if (CGROUPS / controller).is_dir() else v2)
            key.write_text(limit)
        except OSError as error:
            pytest.skip(f"this machine permits no cgroup for {controller}: {error}")
        return group

    yield make
    for group in made:
        wait_until(lambda: removed(group), "the cgroup is empty")  # noqa: B023 - it is called at once


def place_of(controller: str) -> Path:
    """Return the folder of this process's own cgroup, of version 1 or 2."""
    is_v1 = (CGROUPS / controller).is_dir()
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers.split(",") == [""] and not is_v1:
            return CGROUPS / path.lstrip("/")
        if is_v1 and controller in controllers.split(","):
            return CGROUPS / controller / path.lstrip("/")
    return CGROUPS


@pytest.mark.parametrize("threads", [1, 4])
def test_a_worker_without_free_descriptors_waits_and_says_so_once(start, threads):
    server = start(pool(threads=threads)).wait_serving()
    pid, address = min(server.pids()), server.address()
    with Limited(pid, resource.RLIMIT_NOFILE, 3):
        clients = [socket.create_connection(address) for _ in range(4)]
        server.wait_for("cannot accept: Too many open files; connections wait in the queue")
        assert share_of_cpu(pid, 1.0) < 0.2
        assert server.log.count("cannot accept") == 1
    for client in clients:
        client.sendall(b"pid\n")
        assert read_to_end(client) == str(pid).encode()


def test_an_evented_worker_without_free_descriptors_waits_and_says_so_once(start):
    server = start(pool("web:app", kind="wsgi")).wait_serving()
    pid, address = min(server.pids()), server.address()
    with Limited(pid, resource.RLIMIT_NOFILE, 3):
        clients = [socket.create_connection(address) for _ in range(4)]
        server.wait_for("cannot accept: Too many open files; connections wait in the queue")
        assert share_of_cpu(pid, 1.0) < 0.2
        assert server.log.count("cannot accept") == 1
    for client in clients:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert read_to_end(client).endswith(f"{pid} 0".encode())


def test_a_master_without_free_descriptors_keeps_what_it_has_and_recovers(start):
    server = start(pool(workers=2)).wait_serving()
    victim, survivor = server.pids()
    address, master = server.address(), server.process.pid
    held = len(descriptors_of(master))
    with Limited(master, resource.RLIMIT_NOFILE, 3):
        os.kill(victim, signal.SIGKILL)
        server.wait_for("Too many open files; the next try is in", 2)
        assert share_of_cpu(master, 1.0) < 0.2
        with socket.socket(socket.AF_UNIX) as person:
            person.connect(str(server.control))
        with socket.create_connection(address) as client:
            client.sendall(b"pid\n")
            assert read_to_end(client) == str(survivor).encode()
    wait_until(lambda: server.pool()["ready"] == 2, "the worker is replaced")
    assert server.pool()["degraded"] is None
    assert ask(server, "who").split()[1] in ("0", "1")
    wait_until(lambda: len(descriptors_of(master)) <= held, "nothing has leaked")


def test_a_master_that_cannot_fork_keeps_what_it_has_and_recovers(groups, start):
    server = start(pool(workers=2)).wait_serving()
    victim, survivor = server.pids()
    allow = forbid_forks(server, groups)
    os.kill(victim, signal.SIGKILL)
    server.wait_for("cannot fork: Resource temporarily unavailable; the next try is in", 2)
    assert "cannot fork" in server.pool()["degraded"]
    assert int(ask(server, "pid")) == survivor
    allow()
    wait_until(lambda: server.pool()["ready"] == 2, "the worker is replaced")
    assert server.pool()["degraded"] is None


def test_a_reload_that_cannot_fork_changes_nothing(groups, start):
    server = start(pool(workers=2)).wait_serving()
    before = server.pids()
    allow = forbid_forks(server, groups)
    with pytest.raises(Exception, match="cannot fork"):
        server.ask("reload")
    assert server.pids() == before
    allow()
    assert server.ask("reload")["generation"] == 3


def test_the_oom_killer_is_told_from_others(groups, start):
    group = groups("memory", "memory.limit_in_bytes", "memory.max", str(100 * 2**20))
    with Inside(group):
        server = start(pool(workers=2))
    server.wait_serving()
    before = server.pids()
    with say(server, "eat"):
        server.wait_for(r"ended: killed by the kernel's OOM killer; .*, in flight: 127.0.0.1:")
    os.kill(min(server.pids() & before), signal.SIGKILL)
    server.wait_for("ended: killed by somebody else: SIGKILL")
    wait_replaced(server, before)


class Limited:
    """Limits a process for the time of a block."""

    def __init__(self, pid: int, what: int, limit: int) -> None:
        self._pid, self._what = pid, what
        self._before = resource.prlimit(pid, what)
        self._limit = (limit, self._before[1])

    def __enter__(self) -> None:
        resource.prlimit(self._pid, self._what, self._limit)

    def __exit__(self, *_error: object) -> None:
        resource.prlimit(self._pid, self._what, self._before)


def share_of_cpu(pid: int, seconds: float) -> float:
    """Watch a process for some time and return which share of a processor it has used (proc(5), stat)."""

    def used() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = used()
    time.sleep(seconds)
    return (used() - before) / seconds


def forbid_forks(server: Server, groups: Groups) -> Callable[[], None]:
    """Let a server have no more processes, and return what undoes that. Root may pass RLIMIT_NPROC (getrlimit(2))."""
    master = server.process.pid
    if os.geteuid() != 0:
        before = resource.prlimit(master, resource.RLIMIT_NPROC)
        resource.prlimit(master, resource.RLIMIT_NPROC, (1, before[1]))
        return lambda: resource.prlimit(master, resource.RLIMIT_NPROC, before) and None
    group = groups("pids", "pids.max", "pids.max", "max")
    for pid in session_of(master):
        (group / "cgroup.procs").write_text(str(pid))
    (group / "pids.max").write_text("1")
    return lambda: (group / "pids.max").write_text("max") and None


def removed(group: Path) -> bool:
    with suppress(OSError):
        group.rmdir()
    return not group.exists()


class Inside:
    """Puts this process into a cgroup for the time of a block, so that whoever it starts is born there."""

    def __init__(self, group: Path) -> None:
        self._group = group

    def __enter__(self) -> None:
        (self._group / "cgroup.procs").write_text(str(os.getpid()))

    def __exit__(self, *_error: object) -> None:
        (self._group.parent / "cgroup.procs").write_text(str(os.getpid()))


UPLOADS = """
import tempfile

tempfile._candidate_tempdir_list = lambda: []  # as where all is read-only


def app(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("200 OK", [])
    return [b"%d of one sort: %s" % (len(body), str(len(set(body)) == 1).encode())]
"""


@pytest.mark.parametrize("preload", ["false", "true"])
def test_without_a_folder_for_files_uploads_are_kept_in_memory_and_that_is_said(start, tmp_path, preload):
    (tmp_path / "uploads.py").write_text(UPLOADS)
    config = '[pool.web]\nlisten = ["127.0.0.1:0"]\nwsgi = "uploads:app"\nworkers = 2\n'
    server = start(f"{config}preload = {preload}\n").wait_serving()
    told = "No usable temporary directory found"
    assert len(server.wait_for(told)) == 1
    for _ in range(3):
        with server.connect() as client:
            client.sendall(
                b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 200000\r\n\r\n"
            )
            client.sendall(b"a" * 200_000)
            assert read_to_end(client).endswith(b"\r\n\r\n200000 of one sort: True")
    check = server.run("check")
    assert (check.returncode, told in check.stdout + check.stderr) == (0, True)


def test_a_worker_has_room_for_a_file_beside_each_connection(start):
    limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 2 * 900 + 256)
    config = '[pool.web]\nlisten = ["127.0.0.1:0"]\nwsgi = "web:app"\nmax_connections = 900\n'
    (pid,) = start(config).wait_serving().pids()
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] >= limit
