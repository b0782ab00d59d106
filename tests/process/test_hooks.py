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


ENDED = """
import os, sys, time
def ended(worker):
    with open("ended", "a") as file:
        what = f"{worker.pool}/{worker.slot} gen={worker.generation} pid={worker.pid} {worker.exit_status}"
        file.write(f"{what} {os.getppid()} {os.getuid()} {os.environ['MINE']}\\n")
"""
MINE = 'env = { MINE = "mine" }\n'
PLAIN = "def handle(sock, address): pass\n"


def ends(server: Server, count: int) -> list[list[str]]:
    """Return what the hook ``ended`` has written, once it was called so often."""
    file = server.folder / "ended"
    wait_until(lambda: file.exists() and file.read_text().count("\n") >= count, f"{count} ends")
    return [line.split() for line in file.read_text().splitlines()]


@pytest.mark.parametrize("preload", ["true", "false"])
def test_after_each_end_a_process_of_its_own_is_told_of_it(begin, preload):
    server = begin(ENDED, f"{MINE}preload = {preload}\n", PLAIN).wait_serving()
    (first,) = server.pids()
    os.kill(first, signal.SIGKILL)
    ends(server, 1)
    server.wait_for("own/0 .* ready in ", 2)
    (second,) = server.pids() - {first}
    server.run("reload")
    ends(server, 2)
    (third,) = server.pids() - {second}
    server.signal(signal.SIGINT)
    assert server.wait_exit() == 0
    found = ends(server, 3)
    assert [line[2] for line in found] == [f"pid={first}", f"pid={second}", f"pid={third}"]
    assert [line[:2] for line in found] == [["own/0", f"gen={generation}"] for generation in (1, 1, 2)]
    assert [line[3] for line in found] == ["137", "0", "0"]
    master, user = str(server.process.pid), str(os.getuid())
    assert [line[4:] for line in found] == [[master, user, "mine"]] * 3
    server.wait_all_gone()


def test_an_ended_hook_that_fails_or_hangs_is_logged_and_holds_nothing_up(begin):
    hooks = (
        "import time\ndef ended(worker):\n    if worker.exit_status:\n        1 / 0\n    time.sleep(600)\n"
    )
    server = begin(hooks, "boot_timeout = 2\n", PLAIN).wait_serving()
    (pid,) = server.pids()
    os.kill(pid, signal.SIGKILL)
    server.wait_for(rf"own/0 gen=1 pid={pid} hook ended failed: ZeroDivisionError")
    server.wait_ready(2)
    assert server.stop() == 0
    server.wait_for("own/0 gen=1 pid=.* hook ended ran 2 s, limit 2 s [(]boot_timeout[)]; it is killed")


def test_a_second_stop_does_not_wait_for_an_ended_hook(begin):
    hooks = "import time\ndef ended(worker):\n    open('begun', 'x').close()\n    time.sleep(600)\n"
    server = begin(hooks, app=PLAIN).wait_serving()
    server.signal(signal.SIGTERM)
    wait_until((server.folder / "begun").exists, "the hook is called")
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    server.wait_all_gone()


def test_an_ended_hook_runs_as_whom_its_worker_ran(start, open_folder):
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    (open_folder / "hooks.py").write_text(ENDED)
    (open_folder / "own.py").write_text(PLAIN)
    server = start(POOL + MINE + 'user = "games"\n', folder=open_folder).wait_serving()
    assert server.stop() == 0
    ((*_, user, mine),) = ends(server, 1)
    assert (user, mine) == ("5", "mine")
