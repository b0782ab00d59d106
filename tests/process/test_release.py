"""Releases behind a link that is switched: a reload takes the next one, and each generation stays with its own."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

import prefork
from tests.certificates import Authority
from tests.harness import PREFORK, Server, body_of, wait_until

APP = """
def app(environ, start_response):
    import late
    body = f"{VERSION} {late.VERSION}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
PACKAGE = Path(prefork.__file__).parent
WEB = '[pool.web]\nlisten = ["127.0.0.1:0"]\nwsgi = "app:app"\nworkers = 2\n'
# What a shell does: cd, and PWD keeps the path that was given.
IN_CURRENT = ["sh", "-c", 'cd current && exec "$@"', "sh", *PREFORK, "run"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give a folder with releases/1, releases/2 and current -> releases/1."""
    for number in (1, 2):
        release = tmp_path / "releases" / str(number)
        release.mkdir(parents=True)
        (release / "app.py").write_text(f"VERSION = {number}\n{APP}")
        (release / "late.py").write_text(f"VERSION = {number}\n")
    switch(tmp_path, 1)
    return tmp_path


def switch(root: Path, number: int) -> None:
    (root / "new").symlink_to(f"releases/{number}")
    (root / "new").replace(root / "current")


def head(root: Path, more: str = "") -> str:
    return f'[master]\ncontrol = "{root}/control.sock"\n{more}'


def answers(server: Server) -> str:
    return body_of(server.get()).decode()


def kill_workers(server: Server) -> None:
    """Kill all workers, and wait until others have taken their places."""
    old = server.pids()
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: server.pool()["ready"] == 2 and not old & server.pids(), "the workers are replaced")


def test_a_server_started_in_a_link_follows_it_at_a_reload(start, root):
    server = start(head(root) + WEB, command=[*IN_CURRENT, f"{root}/server.toml"], env={"PYTHONPATH": ""})
    server.wait_serving()
    assert answers(server) == "1 1"
    switch(root, 2)
    assert server.run("reload").returncode == 0
    assert answers(server) == "2 2"
    assert server.pool()["release"] == f"{root}/releases/2"
    assert f"release: {root}/releases/2; without preload," in server.run("status").stdout
    assert server.stop() == 0


@pytest.mark.parametrize("preload", ["false", "true"])
def test_workers_stay_with_the_release_of_their_generation(start, root, preload):
    directory = f'directory = "{root}/current"\n'
    server = start(head(root, directory) + WEB + f"preload = {preload}\n", env={"PYTHONPATH": ""})
    server.wait_serving()
    (root / "releases/2/app.py").write_text("raise RuntimeError('broken')\n")
    switch(root, 2)
    kill_workers(server)
    assert answers(server) == "1 1"  # also what is imported late
    assert server.run("reload").returncode == 1
    kill_workers(server)
    assert answers(server) == "1 1"
    assert server.pool()["release"] == f"{root}/releases/1"
    assert server.stop() == 0


def test_a_worker_whose_release_was_deleted_takes_the_current_one(start, root):
    server = start(head(root, f'directory = "{root}/current"\n') + WEB, env={"PYTHONPATH": ""})
    server.wait_serving()
    switch(root, 2)
    shutil.rmtree(root / "releases/1")
    kill_workers(server)
    assert answers(server) == "2 2"
    told = f"{root}/releases/1 has been deleted; starting in {root}/releases/2, which {root}/current is now"
    assert len(server.wait_for(told, 2)) == 2
    assert server.stop() == 0


def test_programs_start_in_the_release_of_their_generation(start, root):
    program = f"[pool.own]\ncommand = {[sys.executable, 'own.py']}\n"
    for number in (1, 2):
        text = f"import time\nprint('release', {number}, flush=True)\ntime.sleep(1000)\n"
        (root / f"releases/{number}/own.py").write_text(text)
    server = start(head(root, f'directory = "{root}/current"\n') + program)
    server.wait_serving().wait_for(r"\| release 1")
    switch(root, 2)
    os.kill(server.workers()[0]["pid"], signal.SIGKILL)
    server.wait_for(r"\| release 1", 2)
    assert server.run("reload").returncode == 0
    server.wait_for(r"\| release 2")
    assert server.stop() == 0


def test_an_upgrade_works_in_a_deleted_release(start, root):
    """The start folder is gone, and its name leads to the next release."""
    server = start(
        head(root) + WEB, command=[*IN_CURRENT, f"{root}/server.toml"], env={"PYTHONPATH": ""}
    ).wait_serving()
    switch(root, 2)
    shutil.rmtree(root / "releases/1")
    done = server.run("upgrade")
    assert done.returncode == 0, done.stderr
    assert answers(server) == "2 2"
    assert server.stop() == 0


KINDS = """
[pool.wsgi]
listen = ["127.0.0.1:0"]
wsgi = "kinds:app"

[pool.tls]
listen = ["127.0.0.1:0"]
wsgi = "kinds:app"
threads = 2
tls = {{ certificate = "{pair.certificate}", key = "{pair.key}" }}

[pool.handler]
listen = ["127.0.0.1:0"]
handler = "kinds:handle"

[pool.async]
listen = ["127.0.0.1:0"]
handler = "kinds:handle_async"

[pool.task]
task = "kinds:run"

[pool.async-task]
task = "kinds:run_async"

[pool.command]
command = ["{sleep}", "1000"]

[pool.template]
listen = ["127.0.0.1:0"]
wsgi = "kinds:app"
preload = true
"""
KINDS_APP = """
def app(environ, start_response):
    start_response("204 No Content", [])
    return []
def handle(sock, address): ...
async def handle_async(reader, writer): ...
def run(worker):
    worker.stopping.wait()
async def run_async(worker):
    await worker.stopped()
"""


def test_workers_of_every_kind_are_replaced_by_the_version_that_runs(start, tmp_path):
    """``pip install -U`` has replaced the files: nothing of prefork may be read from the disk any more."""
    library = tmp_path / "lib"
    shutil.copytree(PACKAGE, library / "prefork", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "kinds.py").write_text(KINDS_APP)
    config = KINDS.format(sleep=shutil.which("sleep"), pair=Authority(tmp_path).issue("server"))
    server = start(config, env={"PYTHONPATH": str(library)}).wait_serving()
    for file in (library / "prefork").rglob("*.py"):
        file.write_text("raise RuntimeError('another version')\n")
    pools = server.status()["pools"]
    old = {process["pid"] for pool in pools for process in [*pool["workers"], *pool["templates"]]}
    assert len(old) == 9
    for pid in old:
        os.kill(pid, signal.SIGKILL)

    def is_replaced() -> bool:
        pools = server.status()["pools"]
        new = {worker["pid"] for pool in pools for worker in pool["workers"]}
        return not old & new and all(pool["ready"] == pool["wanted"] for pool in pools)

    wait_until(is_replaced, "all are replaced")
    assert "another version" not in server.log
    refused = server.run("upgrade")
    assert refused.returncode == 1
    assert "another version" in refused.stderr
    assert server.stop() == 0
