"""Reloads under load: not one request is lost, and what is broken changes nothing (promises 1, 2, 4; faults 1, 9)."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from tests.clients import Load
from tests.harness import Server, body_of, wait_until

WEB = """
[pool.web]
listen = ["127.0.0.1:0"]
wsgi = "web:app"
workers = 2
"""

GOOD = """
def app(environ, start_response):
    environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", "4")])
    return [b"good"]
"""


def is_replaced(server: Server, victim: int) -> bool:
    return server.pool()["ready"] == 2 and victim not in server.pids()


def own_app(folder: Path, code: str) -> str:
    """Write an application of the test's own and return a configuration that serves it with one worker."""
    (folder / "own.py").write_text(code)
    return '[pool.web]\nlisten = ["127.0.0.1:0"]\nwsgi = "own:app"\nworkers = 1\n'


def test_twenty_reloads_in_a_row_lose_no_request(start):
    server = start(WEB).wait_serving()
    with Load(server.address()) as load:
        for generation in range(2, 22):
            load.wait_answered(20)
            assert server.ask("reload")["generation"] == generation
        load.wait_answered(50)
    assert load.lost == {}, load.examples
    assert {worker["generation"] for worker in server.workers()} == {21}
    assert server.pool()["ready"] == 2
    assert server.stop() == 0


def test_reloads_with_threads_lose_no_request(start):
    server = start(WEB + "threads = 4\n").wait_serving()
    with Load(server.address(), pause=0.005) as load:
        for _ in range(5):
            load.wait_answered(50)
            server.ask("reload")
    assert load.lost == {}, load.examples


def test_killed_workers_lose_only_what_was_in_flight_in_them(start):
    server = start(WEB).wait_serving()
    kills = 8
    with Load(server.address(), pause=0.05) as load:
        for _ in range(kills):
            load.wait_answered(20)
            victim = min(server.pids())
            os.kill(victim, signal.SIGKILL)
            wait_until(partial(is_replaced, server, victim), "the victim is replaced")
            server.ask("reload")
    # A killed worker takes the connections along that it held at that moment: at most all of them.
    assert sum(load.lost.values()) <= kills * 8, load.lost
    assert set(load.lost) <= {"reset", "empty", "short"}, load.examples


def test_a_broken_application_changes_nothing_until_it_is_repaired(start, tmp_path):
    server = start(own_app(tmp_path, GOOD)).wait_serving()
    before = server.pids()
    with Load(server.address(), check=lambda body: body == b"good") as load:
        own_app(tmp_path, "raise RuntimeError('broken on purpose')")
        reload = server.run("reload")
        assert reload.returncode == 1
        assert "RuntimeError: broken on purpose" in reload.stderr
        assert 'own.py", line 1' in reload.stderr
        load.wait_answered(50)
        assert server.pids() == before
        own_app(tmp_path, GOOD)
        repaired = server.run("reload")
        assert repaired.returncode == 0, repaired.stderr
        load.wait_answered(50)
    assert load.lost == {}, load.examples
    assert server.pids().isdisjoint(before)


@pytest.mark.parametrize("preload", ["false", "true"])
def test_what_is_no_wsgi_application_changes_nothing_and_a_factory_is_called(start, tmp_path, preload):
    more = f"preload = {preload}\n"
    server = start(own_app(tmp_path, GOOD) + more).wait_serving()
    before = server.pids()
    own_app(tmp_path, "async def app(scope, receive, send): ...\n")
    told = (
        "expected a WSGI application, called with (environ, start_response), found an asynchronous one (ASGI)"
    )
    for command, code in (("check", 4), ("reload", 1)):
        refused = server.run(command)
        assert refused.returncode == code
        assert told in refused.stderr
        assert 'command = ["uvicorn"' in refused.stderr
    assert server.pids() == before
    assert body_of(server.get()) == b"good"
    factory = GOOD.replace("def app", "def made") + "def create_app(name):\n    return {'made': made}[name]\n"
    server.write(own_app(tmp_path, factory).replace("own:app", "own:create_app('made')") + more)
    reload = server.run("reload")
    assert reload.returncode == 0, reload.stderr
    assert body_of(server.get()) == b"good"
    assert server.pids().isdisjoint(before)


def test_a_slow_import_with_one_worker_is_not_felt(start, tmp_path):
    server = start(own_app(tmp_path, GOOD)).wait_serving()
    slow = "import time\ntime.sleep(5)\n" + GOOD
    own_app(tmp_path, slow)
    with Load(server.address(), check=lambda body: body == b"good") as load:
        assert server.run("reload").returncode == 0
    assert load.lost == {}, load.examples
    assert load.answered > 100


def test_a_file_that_is_no_toml_changes_nothing_and_says_so(start):
    server = start(WEB).wait_serving()
    before = server.pids()
    server.write("[pool.web\n")
    reload = server.run("reload")
    assert reload.returncode == 1
    assert "server.toml:" in reload.stderr
    assert server.pids() == before
    mark = server.mark()
    server.signal(signal.SIGHUP)
    server.wait_for("the reload is refused", since=mark)
    assert body_of(server.get()).split()[0].decode() in {str(pid) for pid in before}


def test_an_import_that_never_ends_is_given_up_with_its_stack(start, tmp_path):
    config = own_app(tmp_path, GOOD) + "boot_timeout = 1.5\n"
    server = start(config).wait_serving()
    before = server.pids()
    own_app(tmp_path, "import time\ntime.sleep(1000)\n")
    reload = server.run("reload")
    assert reload.returncode == 1
    assert "not ready after 1.5 s" in reload.stderr
    assert any("own.py" in line and "line 2" in line for line in server.lines)
    assert server.pids() == before


def test_who_reloads_is_told_of_what_takes_a_new_start(start):
    server = start(WEB).wait_serving()
    server.write(f'[master]\ncontrol = "{server.control}"\npid_file = "server.pid"\n{WEB}')
    reload = server.run("reload")
    assert reload.returncode == 0
    told = "master.pid_file has changed: that takes a new start, the running server keeps the old one"
    assert told in reload.stderr.splitlines()
    assert any(line.endswith(f"warning master pid={server.process.pid} {told}") for line in server.lines)
