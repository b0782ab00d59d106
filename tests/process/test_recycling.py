"""Workers are replaced after so many requests, above a size and at an age, and nobody notices (promises 2, 14)."""

from __future__ import annotations

import re

import pytest

from tests.clients import Load, read_answer
from tests.faulty import pool
from tests.harness import Server, body_of, fetch, wait_until

ENDED = r"ended: recycled: max_requests ([\d,]+); .* served (\d+) requests?"


def limits(server: Server) -> list[int]:
    """Return the numbers of requests that workers were recycled by, so far."""
    return [int(found[1].replace(",", "")) for line in server.lines if (found := re.search(ENDED, line))]


@pytest.mark.parametrize("threads", [1, 4])
def test_recycling_under_load_loses_no_request_and_goes_one_by_one(start, threads):
    config = pool("web:app", kind="wsgi", workers=2, threads=threads, max_requests=40)
    server = start(config).wait_serving()
    with Load(server.address(), pause=0.005) as load:
        server.wait_for(ENDED, 6)
        load.wait_answered(20)
        assert server.pool()["ready"] == 2
    assert load.lost == {}, load.examples
    assert {worker["slot"] for worker in server.workers() if worker["state"] == "ready"} == {0, 1}
    assert server.pool()["restarts"] == 0
    assert server.stop() == 0


def test_each_worker_has_its_own_number(start):
    config = pool("web:app", kind="wsgi", workers=2, max_requests=20, max_requests_jitter="100%")
    server = start(config).wait_serving()
    with Load(server.address(), pause=0.005):
        server.wait_for(ENDED, 8)
    found = limits(server)
    assert all(20 <= limit <= 40 for limit in found)
    assert len(set(found)) > 2, found


@pytest.mark.parametrize("threads", [1, 3])
def test_a_socket_handlers_connections_are_counted(start, threads):
    server = start(pool("sockets:pid", workers=1, threads=threads, max_requests=5, max_requests_jitter=0))
    address = server.wait_serving().address()
    first = fetch(address)
    assert [fetch(address) for _ in range(4)] == [first] * 4
    (line,) = server.wait_for(ENDED)
    assert "max_requests 5; " in line
    assert fetch(address) != first


def test_a_worker_that_leaks_is_replaced(start):
    config = pool("leaks:app", kind="wsgi", workers=2, max_memory="100MiB", stall_timeout=0.4)
    server = start(config).wait_serving()
    with Load(server.address(), path="/leak", keepalive=4, closing=0, posting=0) as load:
        server.wait_for(r"info .* ended: recycled: max_memory 100\.0 MiB, it has \d+\.\d MiB")
    assert load.lost == {}, load.examples


def test_a_leak_that_is_followed_by_silence_is_found_all_the_same(start):
    config = pool("leaks:app", kind="wsgi", workers=1, max_memory="60MiB", stall_timeout=0.4)
    server = start(config + "request_timeout = 0\n").wait_serving()
    with server.connect() as client:
        for _ in range(20):
            client.sendall(b"GET /leak HTTP/1.1\r\nHost: test\r\n\r\n")
            read_answer(client)
    server.wait_for("recycled: max_memory")


def test_shared_memory_does_not_count(start, tmp_path):
    (tmp_path / "large.py").write_text("from leaks import app\nkept = b'x' * 2**27\n")
    config = pool("large:app", kind="wsgi", workers=2, max_memory="64MiB", stall_timeout=0.4, preload=True)
    server = start(config).wait_serving()
    assert server.stop() == 0
    assert not any("raise max_memory" in line for line in server.lines)  # as there would be of 128 MiB


def test_an_old_worker_is_replaced_although_nothing_happens(start):
    server = start(pool("web:app", kind="wsgi", workers=2, max_age="500ms", max_requests_jitter="20%"))
    server.wait_serving()
    before = server.pids()
    lines = server.wait_for(r"ended: recycled: max_age \d+ ms", 2)
    assert all("served 0 requests" in line for line in lines)
    wait_until(lambda: server.pids().isdisjoint(before), "both are replaced")
    assert server.pool()["ready"] == 2


def test_a_spent_worker_serves_until_a_replacement_boots(start, tmp_path):
    (tmp_path / "own.py").write_text(
        "import os, web\n"
        "if os.path.exists('broken'):\n"
        "    raise RuntimeError('broken on purpose')\n"
        "app = web.app\n"
    )
    server = start(pool("own:app", kind="wsgi", workers=1, max_requests=5, max_requests_jitter=0))
    address = server.wait_serving().address()
    (tmp_path / "broken").touch()
    first = {body_of(fetch(address)) for _ in range(5)}
    server.wait_for("broken on purpose; the next try is in")
    assert {body_of(fetch(address)) for _ in range(3)} == first
    assert "broken on purpose" in server.pool()["degraded"]
    (tmp_path / "broken").unlink()
    server.wait_for("ended: recycled: max_requests 5; ")
    assert body_of(fetch(address)) not in first
    assert server.pool()["degraded"] is None
