"""Hooks in the real program: called in the worker, in their order; what their failures do."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.harness import Server, read_to_end, wait_until

# Each moment leaves a line in a file: its name, the worker, the process, and what was known then.
NOTES = """
import atexit, os, prefork

def note(what, worker):
    with open("notes", "a") as file:
        file.write(f"{what} {worker.pool}/{worker.slot} {os.getpid()} {worker.stopping.is_set()}\\n")

def after_fork(worker):
    assert prefork.current() is worker
    note("after_fork", worker)
    atexit.register(note, "atexit", worker)

def ready(worker): note("ready", worker)
def drain(worker): note("drain", worker)
def exit(worker): note("exit", worker)
"""
APP = """
import prefork
from hooks import note
note("loaded", prefork.current())
def handle(sock, address):
    note("served", prefork.current())
    sock.sendall(b"served")
"""
POOL = '[hooks]\nmodule = "hooks"\n[pool.own]\nlisten = ["127.0.0.1:0"]\nhandler = "own:handle"\n'


@pytest.fixture
def begin(start, tmp_path):
    """Start a server with hooks, the ones above unless others are given."""

    def begin_server(hooks: str = NOTES, more: str = "", app: str = APP) -> Server:
        (tmp_path / "hooks.py").write_text(hooks)
        (tmp_path / "own.py").write_text(app)
        return start(POOL + more)

    return begin_server


def notes(server: Server) -> list[list[str]]:
    return [line.split() for line in (server.folder / "notes").read_text().splitlines()]


def served(server: Server) -> bytes:
    with server.connect() as client:
        return read_to_end(client)


def test_each_moment_calls_its_hook_in_the_worker_once(begin):
    server = begin().wait_serving()
    (pid,) = server.pids()
    assert served(server) == b"served"
    assert server.stop() == 0
    found = notes(server)
    moments = ["after_fork", "loaded", "ready", "served", "drain", "exit", "atexit"]
    assert [note[0] for note in found] == moments
    assert {note[1] for note in found} == {"own/0"}
    assert {int(note[2]) for note in found} == {pid}
    assert [note[3] for note in found] == ["False"] * 4 + ["True"] * 3


def test_a_hook_runs_with_the_privileges_of_the_pool(start, open_folder):
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    (open_folder / "hooks.py").write_text("import os\ndef after_fork(worker): open('made', 'x').close()\n")
    (open_folder / "own.py").write_text("def handle(sock, address): pass\n")
    start(POOL + 'user = "games"\n', folder=open_folder).wait_serving()
    assert (open_folder / "made").stat().st_uid == 5


@pytest.mark.parametrize("name", ["after_fork", "ready"])
def test_a_failure_before_ready_is_a_boot_failure(begin, name):
    server = begin(f"def {name}(worker):\n    1 / 0\n", app="def handle(sock, address): pass\n")
    assert server.wait_exit() == 4
    lines = server.everything()
    assert f"error: [pool.own] hook {name} failed: ZeroDivisionError: division by zero" in lines
    assert sum("Traceback" in line for line in lines) == 1
    assert any(f'hooks.py", line 2, in {name}' in line for line in lines)
    assert not any("handlers/hooks.py" in line for line in lines)
    assert " ready in " not in server.log


def test_a_reload_with_a_broken_hook_changes_nothing(begin, tmp_path):
    server = begin().wait_serving()
    before = server.pids()
    (tmp_path / "hooks.py").write_text(NOTES.replace("def ready(worker): ", "def ready(worker): 1 / 0; "))
    reload = server.run("reload")
    assert reload.returncode == 1
    assert "hook ready failed: ZeroDivisionError" in reload.stderr
    assert server.pids() == before
    assert served(server) == b"served"


def test_a_ready_hook_that_hangs_is_shown_where_it_is(begin):
    server = begin(
        "import time\ndef ready(worker):\n    time.sleep(99)\n",
        "boot_timeout = 0.5\n",
        "def handle(s, a): pass\n",
    )
    assert server.wait_exit() == 4
    assert 'hooks.py", line 3 in ready' in server.log


def test_the_drain_begins_while_its_hook_still_runs_and_waits_for_it_in_the_end(begin, tmp_path):
    slow = "import time, pathlib\ndef drain(worker):\n    while not pathlib.Path('go').exists(): time.sleep(0.01)\n"
    slow += "    pathlib.Path('deregistered').touch()\n"
    server = begin(slow, app="def handle(sock, address): sock.recv(1)\n").wait_serving()
    (pid,) = server.pids()
    server.signal(signal.SIGHUP)
    wait_until(lambda: pid not in server.pids() or "draining" in title(pid), "the old worker drains")
    assert pid in server.pids()  # nothing is in flight, but the hook is not done
    (tmp_path / "go").touch()
    server.wait_for(rf"pid={pid} ended: clean: replaced by generation 2")
    assert (tmp_path / "deregistered").exists()


def test_a_drain_hook_that_never_ends_is_ended_with_the_drain(begin):
    hooks = "import time\ndef drain(worker):\n    time.sleep(99)\n"
    server = begin(hooks, "graceful_timeout = 0.5\n", "def handle(sock, address): pass\n").wait_serving()
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    server.wait_all_gone()
    assert 'hooks.py", line 3 in drain' in server.log


def test_late_failures_are_logged_and_a_failing_exit_is_the_workers(begin):
    hooks = "def drain(worker): 1 / 0\ndef exit(worker):\n    raise SystemExit('no')\n"
    server = begin(hooks, app="def handle(sock, address): pass\n").wait_serving()
    assert server.stop() == 0
    server.wait_for("hook drain failed: ZeroDivisionError: division by zero")
    server.wait_for("hook exit failed: SystemExit: no")
    server.wait_for("own/0 gen=1 pid=[0-9]+ ended: exit code 1")


def test_check_loads_the_hooks_and_calls_none(begin):
    server = begin(
        "raise RuntimeError('broken on purpose')\n",
    )
    assert server.wait_exit() == 4
    check = server.run("check")
    assert check.returncode == 4
    assert "error: [hooks] hooks: RuntimeError: broken on purpose" in check.stderr.splitlines()
    (server.folder / "hooks.py").write_text("def drian(worker): pass\ndef after_fork(worker): 1 / 0\n")
    (server.folder / "own.py").write_text("def handle(sock, address): pass\n")
    check = server.run("check")
    assert (check.returncode, check.stdout.count("all is well")) == (0, 1)
    assert check.stderr == "warning: [hooks] hooks: nobody calls drian; did you mean drain?\n"


def test_a_doubt_is_logged_once_for_a_generation(begin):
    app = "def handle(sock, address): pass\n"
    server = begin("def drian(worker): pass\n", "workers = 3\n", app).wait_serving()
    assert len(server.wait_for("nobody calls drian; did you mean drain")) == 1
    assert server.stop() == 0
    assert server.log.count("nobody calls") == 1


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
