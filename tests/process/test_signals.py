"""Signals to the master, one by one and in storms (promises 1, 3, 27; fault 3)."""

from __future__ import annotations

import os
import random
import re
import signal
import threading

import pytest

from tests.clients import Load
from tests.harness import Server, body_of, children_of, wait_until

WEB = """
[pool.web]
listen = ["127.0.0.1:0"]
wsgi = "web:app"
workers = 2

[pool.other]
listen = ["127.0.0.1:0"]
handler = "sockets:pid"
"""
SLOW = "import time\ntime.sleep(0.15)\nfrom web import app\n"
GATED = "import os, time\nwhile not os.path.exists('{}'): time.sleep(0.01)\nfrom web import app\n"
STORM = [signal.SIGHUP, signal.SIGUSR1, signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH, signal.SIGUSR2]


def send_storm(server: Server, signals: list[signal.Signals], intervals: list[float]) -> None:
    """Send one signal after each interval."""
    pause = threading.Event()  # never set: waiting for it lets time pass, which is what this test is about
    for number, interval in zip(signals, intervals, strict=True):
        if server.process.poll() is not None:
            return
        server.signal(number)
        pause.wait(interval)


def settled(server: Server, wanted: int) -> bool:
    """Tell whether there are exactly the wanted workers, ready, of one generation."""
    status = server.status()
    workers = [worker for pool in status["pools"] for worker in pool["workers"]]
    return (
        status["state"] == "running"
        and all(worker["state"] == "ready" for worker in workers)
        and {worker["generation"] for worker in workers} == {status["generation"]}
        and status["pools"][0]["ready"] == status["pools"][0]["wanted"] == wanted
    )


def assert_sound(server: Server) -> None:
    """After an upgrade everything is as the file says: workers, generation, an answer, no zombie, one more reload."""
    wait_until(lambda: server.status()["state"] == "running", "the rollouts are over")
    server.ask("upgrade")  # joins the one that is under way, if any
    server.ask("scale", pool="web", workers=2)
    wait_until(lambda: settled(server, 2), "two workers of one generation")
    assert body_of(server.get()).endswith(b" 0")
    assert "Z" not in children_of(server.process.pid).values()
    assert len(children_of(server.process.pid)) == 4  # two, one of the other pool, the guard
    assert server.run("reload").returncode == 0
    assert "Traceback" not in server.log


def test_ttin_and_ttou_change_the_first_pool_by_one_worker(start):
    server = start(WEB).wait_serving()
    server.signal(signal.SIGTTIN)
    wait_until(lambda: server.pool("web")["ready"] == 3, "a worker more")
    for _ in range(2):
        mark = server.mark()
        server.signal(signal.SIGTTOU)
        server.wait_for("workers wanted", since=mark)
    wait_until(lambda: len(server.workers("web")) == 1, "two workers fewer")
    mark = server.mark()
    server.signal(signal.SIGTTOU)
    server.wait_for("stays at 1 workers, 0 is out of range", since=mark)
    assert server.pool("web")["ready"] == 1
    assert server.pool("other")["ready"] == 1


def test_a_reload_brings_the_number_of_the_file_back_only_if_the_file_changed_it(start):
    server = start(WEB).wait_serving()
    server.ask("scale", pool="web", workers=1)
    server.ask("reload")
    wait_until(lambda: settled(server, 1), "the number that was asked for survives a reload")
    server.write(WEB.replace("workers = 2", "workers = 3"))
    server.ask("reload")
    wait_until(lambda: settled(server, 3), "a new number in the file counts")


def test_winch_drains_all_workers_and_hup_brings_them_back_for_those_who_wait(start):
    server = start(WEB).wait_serving()
    address = server.address("web")
    server.signal(signal.SIGWINCH)
    wait_until(lambda: not server.workers("web") and not server.workers("other"), "all workers are gone")
    with Load(address, keepalive=2, closing=4, posting=2) as load:
        wait_until(lambda: server.pool("web")["listeners"][0]["queue"] >= 8, "clients wait in the queue")
        server.signal(signal.SIGHUP)
        load.wait_answered(50)
    assert load.lost == {}, load.examples
    wait_until(lambda: settled(server, 2), "everything is back")


def test_workers_take_no_notice_of_what_is_meant_for_the_master(start):
    server = start(WEB).wait_serving()
    before = server.pids()
    for _ in range(100):  # many at once interrupt each other's handlers: they need a stack with room for all
        for pid in before:
            for number in [*STORM, signal.SIGINT, signal.SIGQUIT]:
                os.kill(pid, number)
    for _ in range(10):
        assert int(body_of(server.get()).split()[0]) in before
    assert server.pids() == before


def test_a_worker_that_is_told_term_finishes_and_is_replaced(start):
    server = start(WEB).wait_serving()
    victim = min(server.pids("web"))
    with Load(server.address("web"), keepalive=2, closing=2, posting=1) as load:
        load.wait_answered(10)
        os.kill(victim, signal.SIGTERM)
        wait_until(lambda: settled(server, 2) and victim not in server.pids("web"), "it is replaced")
        load.wait_answered(10)
    assert load.lost == {}, load.examples


@pytest.mark.parametrize("seed", range(3))
def test_a_storm_of_signals_leaves_everything_as_it_should_be(start, seed):
    server = start(WEB).wait_serving()
    dice = random.Random(seed)
    signals = [dice.choice(STORM) for _ in range(26)]
    intervals = [step / 1000 for step in range(26)]  # 0 to 25 ms in steps of one
    dice.shuffle(intervals)
    send_storm(server, signals, intervals)
    assert_sound(server)
    assert server.stop() == 0


def test_a_storm_of_hups_under_load_loses_no_request(start):
    server = start(WEB).wait_serving()
    with Load(server.address("web")) as load:
        load.wait_answered(20)
        send_storm(server, [signal.SIGHUP] * 26, [step / 1000 for step in range(26)])
        load.wait_answered(50)
        wait_until(lambda: server.status()["state"] == "running", "the last rollout is over")
        load.wait_answered(50)
    assert load.lost == {}, load.examples
    assert_sound(server)


@pytest.mark.parametrize("seed", range(2))
def test_a_storm_before_the_first_ready_is_survived(start, seed, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    server = start(WEB.replace("web:app", "slow:app"))
    server.wait_for("rolling out generation 1")
    dice = random.Random(seed)
    storm = [signal.SIGHUP, *(dice.choice(STORM) for _ in range(20)), signal.SIGHUP]
    send_storm(server, storm, [dice.random() / 100 for _ in storm])
    server.wait_for(r"generation \d+ serves")
    assert_sound(server)
    assert server.stop() == 0


def test_hups_with_another_file_before_the_first_ready_end_with_the_last_file(start, tmp_path):
    (tmp_path / "gated.py").write_text(GATED.format(tmp_path / "gate"))
    config = WEB.replace("web:app", "gated:app")
    server = start(config)
    server.wait_for("rolling out generation 1")
    for workers in (3, 4, 1):
        server.write(config.replace("workers = 2", f"workers = {workers}"))
        mark = server.mark()
        server.signal(signal.SIGHUP)
        server.wait_for("the reload waits", since=mark)
    (tmp_path / "gate").touch()
    server.wait_serving(2)
    wait_until(lambda: settled(server, 1), "what the last file says")
    assert server.get()


@pytest.mark.parametrize("seed", range(2))
def test_a_storm_during_a_stop_does_not_keep_it_from_ending_well(start, seed, tmp_path):
    server = start(WEB.replace("web:app", "web:routes")).wait_serving()
    dice = random.Random(seed)
    with server.connect("web") as client:
        client.sendall(b"GET /sleep/0.4 HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(
            lambda: any(worker["current"] for worker in server.workers("web")), "the request is under way"
        )
        server.signal(signal.SIGTERM)
        storm = [signal.SIGHUP, *(dice.choice(STORM) for _ in range(25))]
        send_storm(server, storm, [dice.random() / 50 for _ in storm])
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
    assert server.wait_exit() == 0
    server.wait_all_gone()
    assert "Traceback" not in "\n".join(server.everything())


def test_a_hup_during_a_stop_lets_nobody_in_again(start):
    server = start(WEB.replace("web:app", "web:routes")).wait_serving()
    with Load(server.address("web"), path="/sleep/0.02") as load:
        load.wait_answered(10)
        server.signal(signal.SIGTERM)
        server.wait_for("stopping: ")
        send_storm(server, [signal.SIGHUP] * 10, [0.02] * 10)
        assert server.wait_exit() == 0
    assert set(load.lost) <= {"refused"}, load.examples


def test_a_line_is_never_half_written_nor_lost_by_signals(start, tmp_path):
    server = start(WEB).wait_serving()
    send_storm(server, [signal.SIGUSR1] * 20, [0.005] * 20)
    server.ask("status")
    assert all(
        re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z (debug|info |warning|error) ", line) for line in server.lines
    )
