"""reload_on_change: what is edited is served, what is broken changes nothing, and the watcher is never left over."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.harness import RUN, Server, children_of, command_of, is_alive, read_to_end, wait_until

OWN = "def handle(sock, address): sock.sendall(b'{}')\n"
POOL = '[pool.own]\nlisten = ["127.0.0.1:0"]\nhandler = "own:handle"\ndirectory = "src"\n'
WATCHED = POOL + 'reload_on_change = ["src/**/*.py"]\n'


@pytest.fixture
def edit(tmp_path):
    """Write the application as an editor does: beside the file, then over it."""

    def write(text: str) -> None:
        (tmp_path / "src").mkdir(exist_ok=True)
        beside = tmp_path / "src" / ".own.py.swp"
        beside.write_text(text)
        beside.rename(tmp_path / "src" / "own.py")

    write(OWN.format("one"))
    return write


def watcher_of(server: Server) -> int:
    titles = {pid: command_of(pid) for pid in children_of(server.process.pid)}
    (pid,) = [pid for pid, title in titles.items() if title == "prefork: watcher server"]
    return pid


def said(server: Server) -> bytes:
    with server.connect() as client:
        return read_to_end(client)


def begin(start, config: str = WATCHED) -> Server:
    server = start(config, env={"PYTHONPATH": ""}).wait_serving()
    server.wait_for("watching .*src/")
    return server


def test_an_edit_is_served_and_a_syntax_error_survived(start, edit, tmp_path):
    server = begin(start)
    edit(OWN.format("two"))
    server.wait_serving(2)
    server.wait_for(rf"{tmp_path}/src/own.py has changed$")
    assert said(server) == b"two"
    edit("def handle(:\n")
    server.wait_for("SyntaxError")
    server.wait_for("the server goes on as before")
    server.wait_for("    SyntaxError: ")
    assert not [line for line in server.log.splitlines() if line.isspace()]
    assert said(server) == b"two"
    edit(OWN.format("four"))
    server.wait_serving(4)
    assert said(server) == b"four"
    watcher = watcher_of(server)
    assert server.stop() == 0
    assert not is_alive(watcher)


def test_an_upgrade_starts_another_watcher(start, edit):
    server = begin(start)
    before = watcher_of(server)
    assert server.ask("upgrade")["generation"] == 2
    server.wait_for("watching .*src/", 2)
    wait_until(lambda: not is_alive(before), "the old one is gone")
    assert watcher_of(server) != before
    edit(OWN.format("three"))
    server.wait_serving(3)
    assert said(server) == b"three"
    wait_until(lambda: "Z" not in children_of(server.process.pid).values(), "the old one is reaped")
    assert server.stop() == 0


def test_a_new_file_in_a_new_folder_counts_and_no_other_file_does(start, edit, tmp_path):
    server = begin(start)
    for other in ("src/notes.txt", "src/.git/a.py", "src/__pycache__/a.py", "src/own.pyc", "a.py"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).touch()
    (tmp_path / "src" / "deep").mkdir()
    wait_until(lambda: len(inotify_watches(watcher_of(server))) >= 4, "the new folders are watched")
    (tmp_path / "src" / "deep" / "new.py").touch()
    server.wait_for("src/deep/new.py has changed$")
    server.wait_serving(2)
    assert server.log.count("has changed") == 1


def inotify_watches(pid: int) -> list[str]:
    """Return the lines of a process's inotify watches (proc(5))."""
    infos = Path(f"/proc/{pid}/fdinfo")
    return [
        line
        for entry in os.listdir(infos)
        for line in (infos / entry).read_text().splitlines()
        if line.startswith("inotify ")
    ]


def test_a_pattern_without_folders_watches_one_folder_only(start, edit, tmp_path):
    (tmp_path / "src" / "deep").mkdir()
    server = begin(start, POOL + 'reload_on_change = ["src/*.py"]\n')
    assert len(inotify_watches(watcher_of(server))) == 1
    edit(OWN.format("two"))
    server.wait_serving(2)


def test_the_watcher_follows_the_configuration(start, edit, tmp_path):
    server = begin(start)
    first = watcher_of(server)
    server.write(POOL + f'reload_on_change = ["{tmp_path}/more/*.py"]\n')
    assert f"{tmp_path}/more: no such file or directory" in server.run("reload").stderr
    (tmp_path / "more").mkdir()
    server.ask("reload")
    server.wait_for(r"watching .*more/\*.py")
    assert watcher_of(server) != first
    wait_until(lambda: not is_alive(first), "the first watcher is gone")
    server.write(POOL)
    server.ask("reload")
    wait_until(
        lambda: "watcher" not in str([command_of(pid) for pid in children_of(server.process.pid)]),
        "it is gone",
    )
    wait_until(lambda: "Z" not in children_of(server.process.pid).values(), "it is reaped")


def test_a_watcher_that_dies_is_started_again(start, edit):
    server = begin(start)
    first = watcher_of(server)
    os.kill(first, signal.SIGKILL)
    server.wait_for("the watcher of files has ended; the next try is in 1 s")
    server.wait_for("watching .*src/", 2)
    assert watcher_of(server) != first
    edit(OWN.format("two"))
    server.wait_serving(2)


def test_a_watcher_dies_with_its_master(start, edit):
    server = begin(start)
    server.signal(signal.SIGKILL)
    server.wait_all_gone()


def test_without_the_package_it_is_a_mistake_of_the_file_with_the_remedy(start, edit, tmp_path):
    (tmp_path / "lacking.py").write_text(
        "import importlib.util, runpy, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'watchfiles' else find(name, *rest)\n"
        "sys.argv[0] = 'prefork'\n"
        "from prefork.cli.app import main\n"
        "main()\n"
    )
    server = start(WATCHED, command=[sys.executable, "lacking.py", *RUN[3:]])
    assert server.wait_exit() == 2
    errors = [line for line in server.everything() if line.startswith(("error", "hint"))]
    assert errors == [
        "error: server.toml:7: [pool.own] reload_on_change: expected the package watchfiles, which does that, found none",
        "hint: pip install 'prefork[watch]'",
    ]
