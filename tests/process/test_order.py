"""Order and ends with the real program: what has to be done first, who waits for whom, and who is done (promise 18)."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.clients import Load
from tests.harness import Server, body_of, wait_until

WEB = '[pool.web]\nlisten = ["127.0.0.1:0"]\nwsgi = "web:app"\n'
MIGRATE = '[pool.migrate]\ntask = "own:run"\nrestart = "once"\n'
# It has to be told that it may go on; what it does is to be seen in a file.
STEP = """
import os, time
def run(worker):
    with open("steps", "a") as steps:
        steps.write(f"{worker.generation}\\n")
    while not os.path.exists(f"go{worker.generation}"):
        if worker.stopping.wait(0.01):
            return
    with open(f"go{worker.generation}") as go:
        exec(go.read())
"""


def stepping(folder: Path) -> str:
    """Write the migration and return a configuration in which it comes first."""
    (folder / "own.py").write_text(STEP)
    return WEB + MIGRATE


def steps(folder: Path) -> list[str]:
    return (folder / "steps").read_text().split()


def go(folder: Path, generation: int, code: str = "") -> None:
    """Let the migration of a generation go on, all at once."""
    (folder / "new").write_text(code)
    os.rename(folder / "new", folder / f"go{generation}")


def test_what_runs_once_ends_before_the_others_start_at_each_start_and_reload(start, tmp_path):
    server = start(stepping(tmp_path))
    server.wait_for("migrate/0 gen=1 .* at work")
    status = server.run("status").stdout
    assert "web waits for migrate" in status
    assert server.pool("web")["workers"] == []
    go(tmp_path, 1)
    server.wait_serving()
    assert server.pool("migrate")["done"] == 1
    assert "done" in next(line for line in server.run("status").stdout.splitlines() if "migrate" in line)
    with Load(server.address("web")) as load:
        server.signal(signal.SIGHUP)
        server.wait_for("migrate/0 gen=2 .* at work")
        load.wait_answered(50)
        assert {worker["generation"] for worker in server.workers("web")} == {1}
        go(tmp_path, 2)
        server.wait_serving(2)
        load.wait_answered(20)
    assert load.lost == {}, load.examples
    assert steps(tmp_path) == ["1", "2"]
    assert server.stop() == 0
    assert " error " not in server.log


def test_a_first_start_whose_migration_fails_ends_with_4_and_its_traceback(start, tmp_path):
    server = start(stepping(tmp_path))
    go(tmp_path, 1, "{}['table']")
    assert server.wait_exit() == 4
    lines = server.everything()
    assert "error: [pool.migrate] KeyError: 'table'" in lines
    assert [line.strip() for line in lines].count("KeyError: 'table'") == 2  # in the log, and at the end
    assert "web/0" not in server.log


def test_a_reload_whose_migration_fails_changes_nothing_and_shows_its_traceback(start, tmp_path):
    server = start(stepping(tmp_path))
    go(tmp_path, 1)
    server.wait_serving()
    before = server.pids("web")
    with Load(server.address("web")) as load:
        go(tmp_path, 2, "{}['table']")
        reload = server.run("reload")
        assert reload.returncode == 1
        assert "pool migrate: its work in generation 2 did not end well: KeyError: 'table'" in reload.stderr
        assert "Traceback" in reload.stderr
        assert "prefork/worker" not in reload.stderr  # which is of no use to its reader
        go(tmp_path, 3, "os.kill(os.getpid(), 9)")
        reload = server.run("reload")
        assert "did not end well: killed by somebody else: SIGKILL" in reload.stderr
        load.wait_answered(20)
        assert server.pids("web") == before
        go(tmp_path, 4)
        assert server.run("reload").returncode == 0
    assert load.lost == {}, load.examples
    assert server.pids("web").isdisjoint(before)


def test_a_migration_that_is_superseded_or_stopped_is_told_so(start, tmp_path):
    server = start(stepping(tmp_path))
    go(tmp_path, 1)
    server.wait_serving()
    server.signal(signal.SIGHUP)
    server.wait_for("migrate/0 gen=2 .* at work")
    server.signal(signal.SIGHUP)
    server.wait_for("migrate/0 gen=2 .* ended: clean: superseded by generation 3")
    server.wait_for("migrate/0 gen=3 .* at work")
    assert server.stop() == 0
    assert steps(tmp_path) == ["1", "2", "3"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_migration_that_a_signal_ends_has_not_been_done(start, tmp_path, when):
    config = stepping(tmp_path)
    if when == "before":
        (tmp_path / "own.py").write_text(
            "import sys, time\nprint('booting', file=sys.stderr)\ntime.sleep(60)\n"
        )
    server = start(config)
    server.wait_for("^booting" if when == "before" else "migrate/0 gen=1 .* at work")
    (pid,) = wait_until(lambda: server.pids("migrate"), "it runs")
    os.kill(pid, signal.SIGTERM)
    assert server.wait_exit() == 4
    assert any(line.endswith("exit code 143") for line in server.everything() if line.startswith("error: "))


def test_pools_start_after_those_that_they_name(start, tmp_path):
    own = tmp_path / "own.py"
    own.write_text("from web import app\n")
    ticking = '[pool.cache]\ntask = "tasks:run"\nenv = { TASK = "60" }\nrestart = "on-failure"\n'
    server = start(WEB + 'after = ["api"]\n' + api(after='"cache"') + ticking).wait_serving()
    order = [line.split()[2] for line in server.wait_for(" ready in ")]
    assert order == ["cache/0", "api/0", "web/0"]
    own.write_text("raise RuntimeError('broken on purpose')\n")
    mark = server.mark()
    assert server.run("reload").returncode == 1
    assert [line.split()[2] for line in server.wait_for(" ready in ", since=mark)] == ["cache/0"]
    assert server.get(pool="web").startswith(b"HTTP/1.1 200")


def api(after: str) -> str:
    return f'[pool.api]\nlisten = ["127.0.0.1:0"]\nwsgi = "own:app"\nafter = [{after}]\n'


def test_a_worker_of_any_kind_is_done_when_it_leaves_by_itself(start):
    server = start(WEB + 'workers = 2\nrestart = "on-failure"\n').wait_serving()
    gone, left = server.pids()
    os.kill(gone, signal.SIGTERM)
    server.wait_for(r"info  web/\d gen=1 .* ended: done, exit code 0; ")
    assert body_of(server.get()).split()[0].decode() == str(left)
    pool = server.pool()
    assert (pool["ready"], pool["done"], pool["wanted"], pool["restarts"]) == (1, 1, 2, 0)
    os.kill(left, signal.SIGKILL)
    server.wait_for(" ready in ", 3)
    scale = server.run("scale", "web", "1")
    assert scale.returncode == 0, scale.stderr
    (last,) = wait_until(lambda: server.pool()["ready"] == 1 and server.pids(), "it is replaced")
    os.kill(last, signal.SIGTERM)
    wait_until(lambda: server.pool()["workers"] == [], "all are done")
    scale = server.run("scale", "web", "3")
    assert (scale.returncode, "all workers of pool web are done" in scale.stderr) == (1, True)
    assert server.run("reload").returncode == 0
    assert server.get().startswith(b"HTTP/1.1 200")


def test_a_task_that_returns_at_once_is_no_hot_loop(start):
    server = start('[pool.mail]\ntask = "tasks:run"\nenv = { TASK = "say" }\n').wait_serving()
    lines = server.wait_for("mail/0 was done right after it was ready; the next try is in", 3)
    pauses = [float(line.split()[-2]) for line in lines]
    assert pauses[0] < pauses[2]
    note = "mail is degraded: mail/0 was done right after it was ready"
    wait_until(lambda: note in server.run("status").stdout, "the status says so")


@pytest.mark.parametrize("function", ["run", "run_async"])
def test_the_example_runs(start, function):
    conf = Path(__file__).parents[2] / "conf" / "task.toml"
    text = (
        conf.read_text().replace("127.0.0.1:8000", "127.0.0.1:0").replace("ticker:run", f"ticker:{function}")
    )
    server: Server = start(text).wait_serving()
    begun = server.wait_for(" at work after | ready in ", 3)
    assert [line.split()[2] for line in begun] == ["prepare/0", "ticker/0", "web/0"]
    assert server.get(pool="web").startswith(b"HTTP/1.1 200")
    assert server.stop() == 0
    server.wait_for("^stopped after 0 ticks")
    assert server.run("check").returncode == 0


def command(line: str, name: str = "migrate", **options: str) -> str:
    """Return the table of a pool that runs a shell's command."""
    lines = [f'{key} = "{value}"' for key, value in options.items()]
    return "\n".join([f"[pool.{name}]", f'command = ["sh", "-c", "{line}"]', *lines, ""])


def test_a_program_that_ends_well_at_once_has_done_its_work(start):
    server = start(WEB + command("echo migrated", restart="once")).wait_serving()
    lines = server.wait_for(
        r"migrate/0 gen=1 .* \| migrated|migrate/0 .* done, exit code 0|web/0 .* ready in", 3
    )
    assert ["|" in line for line in lines] == [True, False, False]
    assert server.pool("migrate")["done"] == 1


@pytest.mark.parametrize("before", ["", "sleep 1.2; "])
def test_what_a_program_said_last_is_told_when_it_fails(start, before):
    server = start(WEB + command(f"{before}echo no such table; exit 3", restart="once"))
    assert server.wait_exit() == 4
    lines = server.everything()
    assert "no such table" in lines
    assert any(line.startswith("error: [pool.migrate]") and line.endswith("exit code 3") for line in lines)


def test_a_program_that_a_signal_ends_has_not_done_its_work(start):
    server = start(WEB + command("sleep 60", restart="once"))
    (line,) = server.wait_for(r"migrate/0 gen=1 pid=\d+ runs pid")
    os.kill(int(re.search(r"pid=(\d+)", line)[1]), signal.SIGTERM)
    assert server.wait_exit() == 4
    server.wait_for("migrate/0 .* exit code 143")


def test_the_server_ends_with_the_status_of_an_essential_program(start):
    web = command("sleep 1.2; kill -9 $$", name="main", restart="never") + "essential = true\n"
    server = start(web + command("sleep 60", name="side"))
    assert server.wait_exit() == 128 + signal.SIGKILL
    server.wait_all_gone()
