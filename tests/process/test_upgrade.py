"""Upgrades in place: the program is replaced under one pid and nobody notices; a bad one changes nothing (fault 10)."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import prefork
from prefork.control.client import Client, RefusedError
from prefork.master.estate import VERSION
from prefork.scoreboard import LAYOUT
from tests.certificates import Authority
from tests.clients import Load
from tests.harness import (
    PATIENCE,
    PREFORK,
    Server,
    body_of,
    children_of,
    descriptors_of,
    is_alive,
    wait_until,
)

WEB = """
[pool.web]
listen = ["127.0.0.1:0"]
wsgi = "web:app"
workers = 2
"""
APP = """
def app(environ, start_response):
    environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", "4")])
    return [b"%s"]
"""
OWN = WEB.replace("web:app", "own:app")
HOLD = """
import os, time
if os.environ.get("_PREFORK_UPGRADE", "").startswith("{word}"):
    open("{gate}", "w").close()
    while os.path.exists("{gate}"):
        time.sleep(0.01)
"""


def own_app(folder: Path, code: str) -> None:
    (folder / "own.py").write_text(code)


def held_new_program(folder: Path, word: str) -> tuple[dict[str, str], Path]:
    """Have the new program wait at its very beginning while a file is there; return the environment and that file."""
    gate = folder / "gate"
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(HOLD.format(word=word, gate=gate))
    return {
        "PYTHONPATH": os.pathsep.join([str(site), str(Path(__file__).parents[1] / "apps"), str(folder)])
    }, gate


def copied_prefork(folder: Path) -> Path:
    """Put a version of prefork where the next program finds it first; it is the same as the running one as yet."""
    return Path(shutil.copytree(Path(prefork.__file__).parent, folder / "prefork"))


def ask_aside(server: Server) -> tuple[threading.Thread, list[subprocess.CompletedProcess[str]]]:
    """Run ``prefork upgrade`` beside the test."""
    done: list[subprocess.CompletedProcess[str]] = []
    thread = threading.Thread(target=lambda: done.append(server.run("upgrade")))
    thread.start()
    return thread, done


def generations(server: Server) -> set[int]:
    return {worker["generation"] for worker in server.workers()}


def ready(server: Server) -> set[int]:
    return {worker["pid"] for worker in server.workers() if worker["state"] == "ready"}


def assert_unchanged(server: Server, before: set[int], reason: str) -> None:
    """An upgrade fails with a reason, and changes nothing."""
    address = server.address()
    with pytest.raises(RefusedError) as caught:
        server.ask("upgrade")
    assert reason in caught.value.message
    assert caught.value.hint == "the server goes on as before"
    assert server.pids() == before
    assert server.address() == address
    assert "executing" not in server.log
    assert server.get()
    assert sorted(children_of(server.process.pid).values()).count("Z") == 0


def test_upgrades_under_load_lose_no_request_and_keep_pid_and_port(start, tmp_path):
    pid_file = tmp_path / "server.pid"
    head = f'[master]\ncontrol = "{tmp_path}/control.sock"\npid_file = "{pid_file}"\n'
    server = start(head + WEB).wait_serving()
    address, began = server.address(), server.pids()
    with Load(address) as load:
        for generation in (2, 3):
            load.wait_answered(50)
            upgrade = server.run("upgrade")
            assert upgrade.returncode == 0, upgrade.stderr
            assert f"upgraded: generation {generation} serves" in upgrade.stderr
            assert generations(server) == {generation}
        load.wait_answered(50)
    assert load.lost == {}, load.examples
    assert server.address() == address
    assert server.pids().isdisjoint(began)
    status = server.status()
    assert status["pid"] == server.process.pid == int(pid_file.read_text())
    assert len(children_of(server.process.pid)) == 3  # two workers and the guard
    with pid_file.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert server.stop() == 0
    assert not pid_file.exists()
    assert not server.control.exists()


def test_usr2_takes_what_was_installed_since(start, tmp_path):
    own_app(tmp_path, APP % "old!")
    server = start(OWN).wait_serving()
    (copied_prefork(tmp_path) / "__init__.py").open("a").write('__version__ = "77.7"\n')
    own_app(tmp_path, APP % "new!")
    assert server.status()["version"] == prefork.__version__
    server.signal(signal.SIGUSR2)
    server.wait_serving(2)
    assert server.status()["version"] == "77.7"
    assert body_of(server.get()) == b"new!"
    assert server.stop() == 0


def test_programs_are_replaced_as_well(start):
    server = start('[pool.tick]\ncommand = ["sleep", "1000"]\n').wait_serving()
    before = server.pids()
    assert server.ask("upgrade")["generation"] == 2
    assert len(server.pids() - before) == 1
    assert server.stop() == 0


def test_uptime_counts_and_restarts_go_on(start):
    server = start(WEB).wait_serving()
    os.kill(min(server.pids()), signal.SIGKILL)
    server.wait_for("killed by somebody else: SIGKILL")
    server.ask("scale", pool="web", workers=3)
    wait_until(lambda: server.pool()["ready"] == 3, "it is scaled")
    uptime = server.status()["uptime"]
    server.ask("upgrade")
    pool = server.pool()
    assert (pool["wanted"], pool["ready"], pool["restarts"]) == (3, 3, 1)
    assert pool["last_death"]["cause"] == "killed by somebody else: SIGKILL"
    assert server.status()["uptime"] > uptime


def test_a_request_in_flight_is_finished_by_the_worker_of_before(start, tmp_path):
    done = tmp_path / "done"
    wait = f"    while not os.path.exists({str(done)!r}):\n        time.sleep(0.01)\n"
    own_app(
        tmp_path,
        "import os, time\n" + (APP % "slow").replace("    start_response", wait + "    start_response"),
    )
    server = start(OWN).wait_serving()
    with server.connect() as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        wait_until(lambda: any(worker["current"] for worker in server.workers()), "it is under way")
        (busy,) = (worker["pid"] for worker in server.workers() if worker["current"])
        server.signal(signal.SIGUSR2)
        server.wait_for("rolling out generation 2")
        (seen,) = (worker for worker in server.workers() if worker["pid"] == busy)
        assert seen["generation"] == 1
        assert [current["what"] for current in seen["current"]] == ["GET /slow"]
        done.touch()
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
    server.wait_serving(2)
    server.wait_for(rf"gen=1 pid={busy} ended: clean: replaced by generation 2; .* served 1 request,")


def test_a_clock_that_runs_across_an_upgrade_strikes_in_time(start):
    server = start(WEB.replace("web:app", "web:routes") + "request_timeout = 2\n").wait_serving()
    with server.connect() as client:
        client.sendall(b"GET /sleep/1000 HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: any(worker["current"] for worker in server.workers()), "it is under way")
        server.signal(signal.SIGUSR2)
        server.wait_for("goes on with")
        (line,) = server.wait_for(
            r"GET /sleep/1000 ran .*, limit 2 s \(request_timeout\); replacing the worker"
        )
        assert "gen=1" in line
    server.wait_serving(2)


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda folder: copied_prefork(folder) / "master" / "loop.py", "broken on purpose"),
        (
            lambda folder: folder / "own.py",
            "[pool.web] RuntimeError: broken on purpose",
        ),
    ],
    ids=["prefork", "application"],
)
def test_a_program_that_is_broken_changes_nothing(start, tmp_path, break_it, reason):
    own_app(tmp_path, APP % "good")
    server = start(OWN).wait_serving()
    break_it(tmp_path).write_text("raise RuntimeError('broken on purpose')\n")
    assert_unchanged(server, server.pids(), reason)
    server.wait_for("no upgrade: .*broken on purpose")


def test_a_file_that_is_wrong_changes_nothing(start):
    server = start(WEB).wait_serving()
    server.write(WEB.replace("workers = 2", "workers = 'two'"))
    assert_unchanged(server, server.pids(), "server.toml:7: [pool.web] workers: expected")
    server.write(WEB.replace("workers = 2", "wokers = 2"))
    assert_unchanged(server, server.pids(), "wokers")
    upgrade = server.run("upgrade")
    assert upgrade.returncode == 1
    assert upgrade.stderr.splitlines()[1:] == [
        'error: the new program would not run: server.toml:7: [pool.web]: expected a known key, found "wokers"',
        "hint: did you mean workers?",
        "hint: the server goes on as before",
    ]


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_state_of_another_version_is_not_taken_over(start, tmp_path):
    server = start(WEB).wait_serving()
    room = copied_prefork(tmp_path) / "master" / "estate.py"
    change(room, f"VERSION = {VERSION}", f"VERSION = {VERSION + 1}")
    assert_unchanged(server, server.pids(), f"expected version {VERSION + 1}, found {VERSION}")


def test_boards_that_are_laid_out_in_another_way_are_left_alone(start, tmp_path):
    server = start(WEB).wait_serving()
    room = copied_prefork(tmp_path) / "scoreboard.py"
    change(room, f"\nLAYOUT = {LAYOUT}\n", f"\nLAYOUT = {LAYOUT + 1}\n")
    with Load(server.address()) as load:
        assert server.ask("upgrade")["generation"] == 2
        load.wait_answered(50)
    assert load.lost == {}, load.examples
    assert server.workers()[0]["requests"] > 0
    assert "Traceback" not in server.log


def test_a_program_that_hangs_is_given_up(start, tmp_path):
    environment, _gate = held_new_program(tmp_path, "rehearse")
    server = start(WEB + "boot_timeout = 2\n", env=environment).wait_serving()
    before = server.pids()
    assert_unchanged(server, before, "the new program hangs: the configuration was not read within 2 s")
    wait_until(lambda: len(children_of(server.process.pid)) == 3, "it is ended")


def test_an_application_that_hangs_is_given_up(start, tmp_path):
    own_app(tmp_path, APP % "good")
    server = start(OWN).wait_serving()
    own_app(tmp_path, "import time\ntime.sleep(1000)\n")
    server.write(OWN + "boot_timeout = 1\n")
    assert_unchanged(server, server.pids(), "[pool.web] not loaded after 1 s (boot_timeout)")


def test_a_worker_that_dies_while_the_master_executes_is_mourned_and_replaced(start, tmp_path):
    environment, gate = held_new_program(tmp_path, "succeed")
    server = start(WEB.replace("web:app", "web:routes"), env=environment).wait_serving()
    address, victim = server.address(), min(server.pids())
    thread, done = ask_aside(server)
    wait_until(gate.exists, "the new program is at its beginning")
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: children_of(server.process.pid).get(victim) == "Z", "it is dead")
    with Load(address, keepalive=1, closing=2, posting=1) as load:
        load.wait_answered(20)  # nobody watches, but those who live serve
        gate.unlink()
        thread.join(PATIENCE)
        load.wait_answered(20)
    assert load.lost == {}, load.examples
    assert done[0].returncode == 0, done[0].stderr
    server.wait_for(rf"pid={victim} ended: killed by somebody else: SIGKILL")
    assert generations(server) == {2}
    assert server.pool()["restarts"] == 1
    assert "Z" not in children_of(server.process.pid).values()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0)])
def test_a_signal_that_comes_while_the_master_executes_is_not_lost(start, tmp_path, number, code):
    environment, gate = held_new_program(tmp_path, "succeed")
    server = start(WEB, env=environment).wait_serving()
    server.signal(signal.SIGUSR2)
    wait_until(gate.exists, "the new program is at its beginning")
    server.signal(number)
    gate.unlink()
    assert server.wait_exit() == code, server.log
    server.wait_all_gone()
    assert "Traceback" not in server.log


def test_a_new_program_that_fails_after_all_leaves_nobody_behind(start, tmp_path):
    environment, gate = held_new_program(tmp_path, "succeed")
    server = start(WEB.replace("web:app", "web:routes"), env=environment).wait_serving()
    with server.connect() as client:
        client.sendall(b"GET /sleep/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        wait_until(lambda: any(worker["current"] for worker in server.workers()), "it is under way")
        server.signal(signal.SIGUSR2)
        wait_until(gate.exists, "the new program is at its beginning")
        server.signal(signal.SIGKILL)
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
    server.wait_all_gone()


def test_an_interpreter_that_is_gone_changes_nothing(start, tmp_path):
    """Found out by the rehearsal; and if it goes away after that, execve(2) fails and all is as before."""
    interpreter, away = tmp_path / "python", tmp_path / "away"
    interpreter.symlink_to(os.path.realpath(sys.executable))
    environment, gate = held_new_program(tmp_path, "rehearse")
    environment["PYTHONPATH"] += os.pathsep + os.pathsep.join(filter(None, sys.path))
    command = [str(interpreter), *PREFORK[1:], "run", "server.toml"]
    server = start(WEB, env=environment, command=command).wait_serving()
    interpreter.rename(away)
    assert_unchanged(server, server.pids(), "would not run: FileNotFoundError")
    away.rename(interpreter)
    thread, done = ask_aside(server)
    wait_until(gate.exists, "the new program rehearses")
    interpreter.unlink()
    gate.unlink()
    thread.join(PATIENCE)
    assert done[0].returncode == 1
    assert "the new program cannot be executed: No such file or directory" in done[0].stderr
    assert len(server.pids()) == 2
    assert server.ask("reload")["generation"] == 2
    assert server.stop() == 0


def test_an_upgrade_waits_for_the_verdict_on_a_generation(start, tmp_path):
    own_app(tmp_path, APP % "good")
    server = start(OWN).wait_serving()
    gate = tmp_path / "gate"
    wait = f"import os, time\nopen('{gate}', 'w').close()\nwhile os.path.exists('{gate}'):\n    time.sleep(0.01)\n"
    own_app(tmp_path, wait + "raise RuntimeError('broken on purpose')\n")
    server.signal(signal.SIGHUP)
    wait_until(gate.exists, "generation 2 is on trial")
    own_app(tmp_path, APP % "new!")
    server.signal(signal.SIGUSR2)
    server.wait_for("upgrade: waiting until the generation on trial is judged")
    gate.unlink()
    server.wait_for("no worker of generation 2 got ready")
    server.wait_serving(3)
    assert body_of(server.get()) == b"new!"


def test_a_stop_during_the_rehearsal_wins(start, tmp_path):
    environment, gate = held_new_program(tmp_path, "rehearse")
    server = start(WEB, env=environment).wait_serving()
    thread, done = ask_aside(server)
    wait_until(gate.exists, "the new program rehearses")
    assert server.stop() == 0
    thread.join(PATIENCE)
    assert done[0].returncode == 1
    assert "the server is stopping" in done[0].stderr or "ended before it had answered" in done[0].stderr


def test_whoever_waits_for_something_else_is_told(start, tmp_path):
    environment, gate = held_new_program(tmp_path, "rehearse")
    server = start(WEB, env=environment).wait_serving()
    victim = min(server.pids())
    thread, done = ask_aside(server)
    wait_until(gate.exists, "the new program rehearses")
    os.kill(victim, signal.SIGSTOP)  # its stacks will not come
    with Client(str(server.control), PATIENCE) as client:
        answers: list[object] = []

        def ask() -> None:
            try:
                answers.append(client.call("stacks", {"worker": None}, lambda _text: None))
            except Exception as error:
                answers.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        gate.unlink()
        asking.join(PATIENCE)
        (answer,) = answers
        assert isinstance(answer, dict) or "the server was upgraded in the meantime" in str(answer)
        assert client.call("status", {})["pid"] == server.process.pid  # on the same connection
    os.kill(victim, signal.SIGCONT)
    thread.join(PATIENCE)
    assert done[0].returncode == 0, done[0].stderr


@pytest.mark.parametrize("seed", range(2))
def test_a_storm_of_signals_with_upgrades_leaves_everything_as_it_should_be(start, seed):
    server = start(WEB).wait_serving()
    dice = random.Random(seed)
    pause = threading.Event()
    storm = [signal.SIGHUP, signal.SIGUSR1, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2, signal.SIGUSR2]
    with Load(server.address(), keepalive=1, closing=1, posting=1) as load:
        for _ in range(60):
            server.signal(dice.choice(storm))
            pause.wait(dice.random() / 20)
        wait_until(
            lambda: server.log.count("executing") == server.log.count("goes on with") > 0, "it is over"
        )
        server.ask("upgrade")
        load.wait_answered(20)
    assert load.lost == {}, load.examples
    assert len(generations(server)) == 1
    assert "Z" not in children_of(server.process.pid).values()
    assert server.ask("reload")["generation"] > 2
    assert server.stop() == 0
    assert "Traceback" not in server.log


def test_a_file_that_breaks_after_the_rehearsal_leaves_the_old_generation_at_work(start, tmp_path):
    """Its workers are born by the configuration of before, in the new program, with its certificates."""
    authority = Authority(tmp_path / "ca")
    environment, gate = held_new_program(tmp_path, "succeed")
    server = start(WEB + authority.issue("web").toml(), env=environment).wait_serving()
    victim = min(server.pids())
    with Load(server.address(), keepalive=1, closing=1, posting=1, tls=authority.client()) as load:
        load.wait_answered(10)
        thread, done = ask_aside(server)
        wait_until(gate.exists, "the new program is at its beginning")
        server.write("[pool.web\n")
        gate.unlink()
        thread.join(PATIENCE)
        load.wait_answered(10)
    assert load.lost == {}, load.examples
    assert done[0].returncode == 1
    assert "server.toml:" in done[0].stderr
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(ready(server) - {victim}) == 2, "it is replaced")
    assert generations(server) == {1}
    with Load(server.address(), keepalive=0, closing=4, posting=0, tls=authority.client()) as load:
        load.wait_answered(20)
    assert load.lost == {}, load.examples


def kinds(server: Server) -> list[str]:
    """Return what the master holds, at rest."""
    wait_until(lambda: len(children_of(server.process.pid)) == 3, "the old ones are gone")
    with Client(str(server.control), PATIENCE) as client:
        client.call("status", {})
        found = descriptors_of(server.process.pid).values()
        return sorted(name.partition("[")[0] if ":[" in name else name for name in found)


def test_upgrades_leave_nothing_behind(start):
    server = start(WEB.replace("web:app", "environs:app")).wait_serving()
    before = kinds(server)
    workers = {len(descriptors_of(pid)) for pid in server.pids()}
    for generation in range(2, 8):
        assert server.ask("upgrade")["generation"] == generation
    assert kinds(server) == before
    assert {len(descriptors_of(pid)) for pid in server.pids()} == workers
    assert b"_PREFORK_UPGRADE" not in server.get()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a pid namespace")
def test_as_pid_1_of_a_pid_namespace(tmp_path):
    file, log = tmp_path / "server.toml", tmp_path / "log"
    file.write_text(f'[master]\ncontrol = "{tmp_path}/control.sock"\n[log]\nfile = "{log}"\n' + WEB)
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *PREFORK, "run", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "apps")}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
    try:
        wait_until(lambda: log.exists() and "generation 1 serves" in log.read_text(), "it serves")
        with Client(str(tmp_path / "control.sock"), PATIENCE) as client:
            assert client.call("upgrade", {})["generation"] == 2
            assert client.call("status", {})["pid"] == 1
            client.stop(False, lambda _text: None)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


def test_an_ended_hook_that_runs_at_an_upgrade_keeps_its_time_limit(start, tmp_path):
    hooks = "import os, sys, time\ndef ended(worker):\n    print('hook', os.getpid(), file=sys.stderr)\n    time.sleep(600)\n"
    (tmp_path / "slow.py").write_text(hooks)
    server = start(f'[hooks]\nmodule = "slow"\n{WEB}boot_timeout = 10\n').wait_serving()
    victim = min(server.pids())
    os.kill(victim, signal.SIGKILL)
    (line,) = server.wait_for(r"^hook \d+$")
    assert server.run("upgrade").returncode == 0
    server.wait_for(f"pid={victim} hook ended ran 10.0 s, limit 10.0 s [(]boot_timeout[)]; it is killed")
    wait_until(lambda: not is_alive(int(line.split()[1])), "it is ended")
