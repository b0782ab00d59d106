"""Releases behind a link that is switched: a reload takes the next one, and each generation stays with its own."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.harness import PREFORK, Server, body_of, wait_until

APP = """
def app(environ, start_response):
    import late
    body = f"{VERSION} {late.VERSION}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
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
