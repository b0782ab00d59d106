"""What may exist only once at a time: programs with a port of their own, pools that are replaced or stopped alone."""

from __future__ import annotations

import json
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.harness import Server, wait_until

# It binds the port that it is given, as databases do, and keeps a diary.
ALONE = """
import os, signal, socket, sys

def note(word):
    with open("diary", "a") as diary:
        print(word, file=diary, flush=True)

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
signal.signal(signal.SIGUSR1, lambda *_: note("signal"))
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
note("begin")
try:
    while True:
        listener.accept()[0].close()
finally:
    note("end")
"""
WEB = '[pool.web]\nlisten = ["127.0.0.1:0"]\nwsgi = "web:app"\n'
APP = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def write_program(tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text(ALONE)
    (tmp_path / "web.py").write_text(APP)


def cache(port: int, *more: str, replace: str = "stop-first", script: str = "alone.py") -> str:
    command = json.dumps([sys.executable, script, str(port)])
    lines = ["[pool.cache]", f"command = {command}", f"ready = {{ port = {port} }}", *more]
    return "\n".join([*lines, f'replace = "{replace}"', ""])


def diary(folder: Path) -> list[str]:
    return (folder / "diary").read_text().split()


def at_a_time(words: list[str]) -> int:
    """Return how many were alive at most."""
    alive = [words[:number].count("begin") - words[:number].count("end") for number in range(len(words) + 1)]
    return max(alive)


@pytest.mark.usefixtures("write_program")
def test_a_program_with_a_port_of_its_own_is_replaced_by_reload_and_restart(start, tmp_path, port):
    server: Server = start(WEB + cache(port)).wait_serving()
    web = server.pids("web")
    assert server.run("reload").returncode == 0
    replaced = server.pids("web")
    assert replaced.isdisjoint(web)
    before = server.pids("cache")
    restarted = server.run("restart", "cache")
    assert (restarted.returncode, restarted.stderr.splitlines()[-1][:24]) == (0, "restarted cache: generat")
    assert server.pids("cache").isdisjoint(before)
    assert server.pids("web") == replaced
    assert server.stop() == 0
    assert (diary(tmp_path).count("begin"), at_a_time(diary(tmp_path))) == (3, 1)


@pytest.mark.usefixtures("write_program")
def test_a_program_that_fails_is_told_so_and_the_old_one_is_started_again(start, tmp_path, port):
    server: Server = start(WEB + cache(port)).wait_serving()
    web = server.pids("web")
    server.write(WEB + cache(port, script="missing.py"))
    reload = server.run("reload")
    assert reload.returncode == 1
    assert "cache: its workers of generation 1 are started again" in reload.stderr
    wait_until(lambda: server.pool("cache")["ready"] == 1, "the old program is back")
    assert server.pids("web") == web
    assert [worker["generation"] for worker in server.workers("cache")] == [1]
    assert server.stop() == 0
    assert at_a_time(diary(tmp_path)) == 1


@pytest.mark.usefixtures("write_program")
def test_without_it_the_failure_names_it(start, port):
    server: Server = start(WEB + cache(port, replace="start-first")).wait_serving()
    reload = server.run("reload")
    assert reload.returncode == 1
    assert reload.stderr.splitlines()[-1].endswith('replace = "stop-first"')
    assert "accepts connections before the program has started" in reload.stderr


@pytest.mark.usefixtures("write_program")
def test_a_stopped_pool_stays_stopped_until_it_is_scaled(start, port):
    server: Server = start(WEB + cache(port)).wait_serving()
    assert server.run("scale", "cache", "0").returncode == 0
    assert (server.workers("cache"), server.pool("cache")["stopped"]) == ([], True)
    assert server.run("reload").returncode == 0
    assert server.workers("cache") == []
    assert server.run("restart", "cache").returncode == 1
    assert "stopped" in server.run("status").stdout
    assert server.run("scale", "cache", "1").returncode == 0
    assert (server.pool("cache")["ready"], server.pool("cache")["stopped"]) == (1, False)


@pytest.mark.usefixtures("write_program")
def test_a_pool_keeps_its_workers_while_nothing_has_changed(start, port):
    server: Server = start(WEB + cache(port, 'reload = "if-changed"')).wait_serving()
    before = server.pids("cache")
    reload = server.run("reload")
    assert reload.returncode == 0
    assert "cache: keeps its workers: settings and release are the same" in reload.stderr
    assert server.pids("cache") == before
    server.write(WEB + cache(port, 'reload = "if-changed"', 'env = { A = "1" }'))
    assert server.run("reload").returncode == 0
    assert server.pids("cache").isdisjoint(before)


@pytest.mark.usefixtures("write_program")
def test_some_pools_are_reloaded_and_other_changes_are_named(start, port):
    server: Server = start(WEB + cache(port)).wait_serving()
    web, program = server.pids("web"), server.pids("cache")
    server.write(WEB + "threads = 2\n" + cache(port, "graceful_timeout = 5"))
    reload = server.run("reload", "web")
    assert reload.returncode == 0
    assert "not reloaded, and changed: [pool.cache]" in reload.stderr
    assert (server.pids("web").isdisjoint(web), server.pids("cache")) == (True, program)
    unknown = server.run("reload", "wep")
    assert (unknown.returncode, unknown.stderr.splitlines()[0]) == (1, "error: there is no pool 'wep'")


@pytest.mark.usefixtures("write_program")
def test_a_signal_goes_to_programs_and_to_nothing_else(start, tmp_path, port):
    server: Server = start(WEB + cache(port)).wait_serving()
    assert server.run("signal", "cache", "USR1").returncode == 0
    wait_until(lambda: "signal" in diary(tmp_path), "the program has got the signal")
    refused = server.run("signal", "web", "USR1")
    assert (refused.returncode, "runs no programs" in refused.stderr) == (1, True)
    assert server.run("signal", "cache", "USR9").returncode == 1
    assert server.run("scale", "cache", "0").returncode == 0
    nobody = server.run("signal", "cache", "USR1")
    assert (nobody.returncode, "no program of pool cache runs now" in nobody.stderr) == (1, True)
    assert server.run("scale", "web", "0").returncode == 0
    assert "runs no programs" in server.run("signal", "web", "USR1").stderr


@pytest.mark.usefixtures("write_program")
def test_a_drained_pool_is_not_said_to_be_scaled(start, port):
    server: Server = start(WEB + cache(port)).wait_serving()
    server.process.send_signal(signal.SIGWINCH)
    wait_until(lambda: not server.workers("cache"), "all are drained")
    refused = server.run("scale", "cache", "1")
    assert (refused.returncode, "drained by SIGWINCH" in refused.stderr) == (1, True)
    assert server.run("reload").returncode == 0
    assert server.run("scale", "cache", "1").returncode == 0


@pytest.mark.usefixtures("write_program")
def test_pools_leave_in_the_reverse_order_of_after(start, port):
    server: Server = start(WEB + 'after = ["cache"]\n' + cache(port)).wait_serving()
    server.process.send_signal(signal.SIGTERM)
    server.wait_exit()
    ends = [line.split("/")[0].split()[-1] for line in server.wait_for(r"/0 gen=1 pid=\d+ ended: ", 2)]
    assert ends == ["web", "cache"]
