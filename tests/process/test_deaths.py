"""How workers end with the real program: the record says who did it, and crash loops stay cool (promises 3, 9; fault 8)."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from datetime import datetime
from itertools import pairwise

import pytest

from tests.faulty import ask, begin, pool, wait_replaced
from tests.harness import Server, wait_until

RECORD = re.compile(
    r"error work/0 gen=1 pid=(\d+) ended: (.*?); lived .*, served (\d+) requests?.*, peak memory [\d.]+ MiB"
)


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (signal.SIGKILL, "killed by somebody else: SIGKILL"),
        (signal.SIGALRM, "killed by somebody else: SIGALRM"),
        (signal.SIGBUS, "crashed: SIGBUS"),
    ],
)
def test_a_worker_that_a_signal_ends_says_which_and_whose(start, number, cause):
    server = start(pool()).wait_serving()
    for _ in range(2):
        ask(server, "pid")
    pid = min(server.pids())
    with begin(server, "sleep 60"):
        os.kill(pid, number)
        (line,) = server.wait_for(" ended: ")
    assert RECORD.search(line).groups() == (str(pid), cause, "2")
    assert re.search(r"in flight: 127.0.0.1:\d+ \(", line)
    wait_replaced(server, {pid})
    death = server.pool()["last_death"]
    assert (death["worker"], death["pid"], death["cause"]) == ("work/0", pid, cause)
    assert server.pool()["restarts"] == 1


def test_a_worker_that_is_told_to_leave_by_a_signal_finishes_first(start):
    server = start(pool(workers=2)).wait_serving()
    with begin(server, "stop") as client:
        pid = next(worker["pid"] for worker in server.workers() if worker["current"])
        os.kill(pid, signal.SIGTERM)
        assert client.recv(100) == b"stopping"
    server.wait_for(rf"pid={pid} ended: clean: it left by itself; .*, served 1 request, peak")
    wait_replaced(server, {pid})


def test_the_record_in_json_has_every_figure(start):
    server = start('[log]\nformat = "json"\n' + pool(request_timeout=0.5))
    server.wait_for("generation 1 serves")
    pid = min(server.pids())
    assert ask(server, "pid") == str(pid)
    with begin(server, "sleep 60"):
        server.wait_for("ended: ")
    records = [json.loads(line) for line in server.lines]
    struck = next(record for record in records if "clock" in record)
    ended = next(record for record in records if "cause" in record)
    assert struck["clock"] == "request_timeout"
    assert 0.5 <= struck["seconds"] < 10
    assert 'faults.py", line' in struck["stacks"]
    assert (ended["name"], ended["pid"], ended["generation"]) == ("work/0", pid, 1)
    assert (ended["cause"], ended["expected"]) == ("killed by prefork: request_timeout of 0.5 s", False)
    assert ended["requests"] == 1
    assert ended["age"] >= 0.5
    assert ended["peak_memory"] > 2**20
    assert ended["in_flight"][0].startswith("127.0.0.1:")


def test_workers_that_end_as_told_are_no_errors(start):
    server = start(pool(workers=2)).wait_serving()
    server.ask("reload")
    server.ask("scale", pool="work", workers=1)
    wait_until(lambda: len(server.pids()) == 1, "one is left")
    assert server.stop() == 0
    assert len(server.wait_for("info  work/. gen=1 .* ended: clean: replaced by generation 2; ", 2)) == 2
    assert len(server.wait_for("info  work/. gen=2 .* ended: clean: scaled down; ")) == 1
    assert len(server.wait_for("info  work/. gen=2 .* ended: clean: stopped; ")) == 1
    assert " error " not in server.log


def test_a_crash_loop_gets_slower_by_the_known_factor_and_ends_with_the_first_success(start, tmp_path):
    own = tmp_path / "own.py"
    own.write_text("from faults import act\n")
    server = start(pool("own:act", workers=2) + pool(name="sound")).wait_serving()
    before = server.pids("sound")
    own.write_text("raise RuntimeError('not today')\n")
    for pid in server.pids("work"):
        os.kill(pid, signal.SIGKILL)
    tries = 3
    server.wait_for("work/. gen=1 .*did not boot: RuntimeError: not today", tries)
    began = time.monotonic()
    status = server.status()
    assert time.monotonic() - began < 1
    assert status["pools"][0]["ready"] == 0
    assert "RuntimeError: not today" in status["pools"][0]["degraded"]
    assert status["pools"][1]["degraded"] is None
    assert int(ask(server, "pid", "sound")) in before
    own.write_text("from faults import act\n")
    wait_until(lambda: server.pool("work")["ready"] == 2, "the pool recovers")
    assert server.pool("work")["degraded"] is None
    assert server.pids("sound") == before
    check_backoff(server)


def check_backoff(server: Server) -> None:
    """Compare the tries' distances with base * 1.5**n and its jitter of a quarter."""
    delays = [
        float(re.search(r"next try is in ([\d.]+) s", line)[1]) for line in server.wait_for("next try is in")
    ]
    for number, delay in enumerate(delays):
        assert 0.75 * 0.5 * 1.5**number - 0.051 <= delay <= 1.25 * 0.5 * 1.5**number + 0.051
    deaths = [moment(line) for line in server.wait_for("did not boot")]
    distances = [late - early for early, late in pairwise(sorted(deaths))]
    waited = [distance for distance in distances if distance > 0.3]
    for delay, distance in zip(delays, waited, strict=False):
        assert delay - 0.06 <= distance <= delay + 2


def moment(line: str) -> float:
    return datetime.fromisoformat(line.split()[0]).timestamp()


def test_a_worker_that_dies_right_after_it_was_ready_is_no_hot_loop(start, tmp_path):
    own = tmp_path / "own.py"
    own.write_text("from faults import act\n")
    server = start(pool("own:act")).wait_serving()
    own.write_text(
        "import os, threading\nfrom faults import act\nthreading.Timer(0.05, os._exit, (5,)).start()\n"
    )
    os.kill(min(server.pids()), signal.SIGKILL)
    server.wait_for("work/0 died right after it was ready: exit code 5; the next try is in", 2)
    assert len(server.wait_for("ended: exit code 5")) <= 3


def test_a_first_start_that_fails_ends_the_healthy_pools_too(start, tmp_path):
    (tmp_path / "own.py").write_text("1 / 0\n")
    server = start(pool(name="sound") + pool("own:act", workers=3))
    assert server.wait_exit() == 4
    server.wait_all_gone()
    errors = [line for line in server.lines if line.startswith("error: ")]
    assert errors == ["error: [pool.work] ZeroDivisionError: division by zero"]
