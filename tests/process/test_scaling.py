"""Pools that grow and shrink with their load, down to none, without a lost request (issue 3, point 6)."""

from __future__ import annotations

import re
import signal
import socket
import time
from pathlib import Path

import pytest

from prefork.errors import CommandError
from tests.clients import Load
from tests.faulty import pool
from tests.harness import PATIENCE, Server, body_of, fetch, read_to_end, wait_until

QUICK = {"stall_timeout": 0.4}  # so that the scoreboard is looked at ten times a second


def scaled(application: str = "web:routes", kind: str = "wsgi", scale: str = "", **options: object) -> str:
    """Return a pool's table with a table scale."""
    table = pool(application, kind=kind, **QUICK | options).replace("workers = 1\n", "")
    return f"{table}[pool.work.scale]\n{scale}\n"


def sizes(server: Server) -> list[int]:
    """Return the numbers of workers that were wanted, as logged."""
    return [
        int(found[1]) for line in server.lines if (found := re.search(r"work: (\d+) workers wanted", line))
    ]


def wait_size(server: Server, workers: int) -> None:
    """Wait until a pool has so many workers, all of them ready, and no others."""

    def has_size() -> bool:
        found = server.pool()
        return len(found["workers"]) == found["ready"] == found["wanted"] == workers

    wait_until(has_size, f"{workers} workers")


def test_it_grows_by_doubling_under_load_and_shrinks_one_by_one_when_idle(start):
    server = start(scaled(scale='max = 4\nidle_for = "400ms"')).wait_serving()
    assert server.pool()["ready"] == 1
    with Load(server.address(), path="/sleep/0.05", pause=0.001) as load:
        server.wait_for("4 workers wanted")
        wait_size(server, 4)
    wait_size(server, 1)
    load_sizes = sizes(server)
    assert load_sizes == [2, 4, 3, 2, 1]
    assert load.lost == {}, load.examples


@pytest.mark.parametrize("threads", [1, 2])
def test_only_idle_workers_of_a_handler_go(start, threads):
    config = scaled("sockets:hold", "handler", 'min = 1\nmax = 3\nidle_for = "300ms"', threads=threads)
    server = start(config).wait_serving()
    held = [server.connect() for _ in range(2 * threads)]
    pids = {int(client.recv(100)) for client in held[:threads]}
    wait_until(lambda: server.pool()["wanted"] >= 2, "it grows")
    pids |= {int(client.recv(100)) for client in held[threads:]}
    wait_size(server, 3)
    assert len(pids) == 2
    for client in held[1:]:
        client.close()
    server.wait_for(r"work: 2 workers wanted", 2)
    wait_until(lambda: server.pool()["ready"] <= 2, "one has gone")
    held[0].sendall(b"still here")
    held[0].shutdown(socket.SHUT_WR)
    assert read_to_end(held[0]) == b""
    wait_size(server, 1)


def test_clients_that_wait_to_be_accepted_make_it_grow_where_no_spare_is_kept(start):
    server = start(scaled("sockets:hold", "handler", "max = 3\nspare = 0")).wait_serving()
    held = [server.connect()]
    held[0].recv(100)
    time.sleep(0.5)  # several looks: a worker that is busy is no reason
    assert server.pool()["wanted"] == 1
    held.append(server.connect())
    held[1].recv(100)
    assert server.pool()["ready"] == 2
    for client in held:
        client.close()


def test_with_none_as_the_fewest_the_first_client_starts_a_worker(start):
    server = start(scaled("web:app", scale='min = 0\nmax = 2\nidle_for = "200ms"')).wait_serving()
    address = server.address()
    for generation in (1, 2):
        wait_size(server, 0)
        before = body_of(fetch(address))
        wait_size(server, 0)
        assert body_of(fetch(address)) != before
        assert server.ask("reload")["generation"] == generation + 1
    wait_size(server, 0)
    assert " 0 of 0 (0..2) " in server.run("status").stdout
    assert server.stop() == 0


def test_first_clients_are_answered_again_and_again(start):
    server = start(scaled("web:app", scale='min = 0\nmax = 2\nidle_for = "100ms"')).wait_serving()
    wait_size(server, 0)
    with Load(server.address(), pause=0.4, closing=2, keepalive=0, posting=1) as load:
        server.wait_for("ended: clean: scaled down", 3)
        load.wait_answered(4)
    assert load.lost == {}, load.examples


def test_a_broken_application_is_refused_although_nobody_runs(start, tmp_path):
    (tmp_path / "own.py").write_text("from web import app\n")
    server = start(scaled("own:app", scale='min = 0\nmax = 2\nidle_for = "200ms"')).wait_serving()
    wait_size(server, 0)
    (tmp_path / "own.py").write_text("raise RuntimeError('broken on purpose')\n")
    with pytest.raises(CommandError, match="broken on purpose"):
        server.ask("reload")
    (tmp_path / "own.py").write_text("from web import app\n")
    assert fetch(server.address()).startswith(b"HTTP/1.1 200")


def test_scaling_by_hand_stays_within_its_bounds_and_goes_on_from_there(start):
    server = start(scaled(scale='min = 1\nmax = 3\nidle_for = "1s"')).wait_serving()
    with pytest.raises(CommandError, match="expected a number of workers from 1 to 3, found 4"):
        server.ask("scale", pool="work", workers=4)
    server.ask("scale", pool="work", workers=0)
    assert (server.pool()["stopped"], server.workers()) == (True, [])
    assert server.run("scale", "work", "3").stdout == ""
    wait_size(server, 3)
    server.signal(signal.SIGTTIN)
    server.wait_for("stays at 3 workers, 4 is out of range")
    server.signal(signal.SIGTTOU)
    server.wait_for("work: 2 workers wanted")
    wait_size(server, 1)


def test_a_reload_keeps_the_size_within_the_new_bounds(start):
    server = start(scaled(scale="min = 1\nmax = 4")).wait_serving()
    server.ask("scale", pool="work", workers=3)
    wait_size(server, 3)
    server.ask("reload")
    assert (server.pool()["wanted"], server.pool()["size_range"]) == (3, [1, 4])
    server.write(scaled(scale="min = 1\nmax = 2"))
    server.ask("reload")
    assert (server.pool()["wanted"], server.pool()["ready"]) == (2, 2)
    server.write(pool("web:app", kind="wsgi", workers=3))
    server.ask("reload")
    assert (server.pool()["wanted"], server.pool()["size_range"]) == (3, None)


def test_a_memory_budget_stops_growth(start):
    config = scaled(scale="max = 4\nidle_for = 1")
    server = start(config).wait_serving()
    with Load(server.address(), path="/sleep/0.05", pause=0.001) as load:
        server.wait_for("4 workers wanted")
        wait_size(server, 4)
        # Now that they have served, they are as large as they get.
        largest = max(worker["memory"] for worker in server.workers())
        server.write(config + f"max_memory = {int(largest * 2.5)}\n")
        server.ask("reload")
        since = server.mark()
        server.ask("scale", pool="work", workers=1)
        server.wait_for("work: [23] workers wanted", since=since)  # three, if fresh ones are much smaller
        load.wait_answered(100)
        assert server.pool()["wanted"] < 4
    assert load.lost == {}, load.examples


@pytest.mark.parametrize("least", [0, 2])
def test_an_idle_server_is_never_woken(start, least):
    server = start(scaled(scale=f'min = {least}\nmax = 3\nidle_for = "100ms"')).wait_serving()
    fetch(server.address())
    wait_size(server, least)
    # The looks that follow a request come to an end; on a busy machine they come late.
    wait_until(lambda: is_quiet_for(server, 0.5), "nothing wakes it")


def test_the_queue_of_a_unix_socket_is_seen(start, tmp_path):
    server = start(pool("sockets:hold", listen=["unix:web.sock"])).wait_serving()
    clients = []
    for _ in range(3):
        clients.append(socket.socket(socket.AF_UNIX))
        clients[-1].settimeout(PATIENCE)
        clients[-1].connect(str(tmp_path / "web.sock"))
    clients[0].recv(100)
    assert server.pool()["listeners"][0]["queue"] == 2
    for client in clients:
        client.close()


def is_quiet_for(server: Server, seconds: float) -> bool:
    before = context_switches(server)
    time.sleep(seconds)
    return context_switches(server) == before


def context_switches(server: Server) -> int:
    """Return how often the master has gone to sleep."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.MULTILINE)[1])
