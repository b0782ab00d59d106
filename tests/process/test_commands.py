"""External programs as workers: what they find, when they are ready, and how the whole tree ends (promise 19)."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.clients import Load
from tests.harness import children_of, descriptors_of, is_alive, wait_until
from tests.programs import pid_in, pool, program_of, told_in, wait_gone

SERVING = ["polite=TERM", "ready", "serve"]
LISTEN = ["127.0.0.1:0"]


# What a program finds.


def test_a_program_finds_its_listeners_its_place_and_nothing_else(start, tmp_path):
    unix = f"unix:{tmp_path}/work.sock"
    table = pool(
        "ready", f"tell={tmp_path}/told", "sleep=600", listen=[*LISTEN, unix], env={"COLOUR": "blue"}
    )
    others = {"NOTIFY_SOCKET": "/run/systemd/notify", "WATCHDOG_USEC": "1", "LISTEN_FDS": "9", "KEPT": "1"}
    server = start(table, env={**others, "PREFORK_LOG__LEVEL": "debug"}).wait_serving()
    told = told_in(tmp_path / "told")
    worker = min(server.pids())
    own = told["environment"]
    assert told["pid"] == told["session"] == told["group"] == program_of(server, worker) != worker
    assert (own["LISTEN_FDS"], own["LISTEN_FDNAMES"]) == ("2", "work:work")
    assert int(own["LISTEN_PID"]) == told["pid"]
    place = [own[f"PREFORK_{name}"] for name in ("POOL", "SLOT", "GENERATION", "WORKER")]
    assert place == ["work", "0", "1", f"work/0 gen=1 pid={worker}"]
    assert (own["COLOUR"], own["KEPT"]) == ("blue", "1")
    assert own["NOTIFY_SOCKET"].startswith("@")
    assert not {"WATCHDOG_USEC", "PREFORK_LOG__LEVEL"} & set(own)
    assert told["directory"] == str(tmp_path)
    masters = set(descriptors_of(server.process.pid).values())
    found = told["descriptors"]
    assert sorted(found) == ["0", "1", "2", "3", "4"]
    assert found["0"] == "/dev/null"
    assert found["1"] == found["2"] not in masters
    assert {found["3"], found["4"]} <= masters
    worker_holds = set(descriptors_of(worker).values())
    assert not {found["3"], found["4"]} & worker_holds  # its copies would keep the listeners open
    assert server.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_a_program_runs_as_the_user(start, tmp_path):
    head = (
        f'[master]\ncontrol = "{tmp_path}/control.sock"\ndirectory = "/"\nuser = "nobody"\numask = "0027"\n'
    )
    server = start(
        f'{head}[pool.work]\ncommand = ["sh", "-c", "id -u; umask; grep Sig /proc/self/status; exec sleep 600"]\n'
    ).wait_serving()
    server.wait_for(rf"[|] {pwd.getpwnam('nobody').pw_uid}$")
    server.wait_for("[|] 0027$")
    server.wait_for("[|] Sig(Blk|Ign):\t0000000000000000$", 2)
    program = program_of(server, min(server.pids()))
    assert server.stop() == 0
    assert not is_alive(program)


def test_the_example_serves_files_by_a_program_of_its_own(start):
    root = Path(__file__).parents[2]
    config = (root / "conf/command.toml").read_text()
    options = ["--set", 'pool.files.listen=["127.0.0.1:0"]', "--set", f"master.directory={root}"]
    server = start(config, *options).wait_serving()
    with Load(server.address(), keepalive=0, posting=0, path="/README.md") as load:
        load.wait_answered(20)
        server.ask("reload")
        load.wait_answered(20)
    assert load.lost == {}, load.examples
    server.wait_for(r"clock/0 gen=1 .* [|] \w{3} ")
    assert server.stop() == 0
    assert " error " not in server.log


# When it is ready.


def test_a_program_is_ready_once_it_has_lived_for_a_second(start):
    server = start(pool("sleep=600", ready="started")).wait_serving()
    (line,) = server.wait_for(" ready in ")
    assert 1.0 <= float(re.search(r"ready in ([\d.]+) s", line)[1]) < 10
    assert server.stop() == 0


def test_a_program_that_says_so_is_ready_then_and_not_before(start, tmp_path):
    server = start(
        pool(f"await={tmp_path}/go", "status=almost", "ready", "sleep=600"), "--set", "log.level=debug"
    )
    server.wait_for("runs pid")
    time.sleep(1.2)  # longer than a program has to live that says nothing
    assert not any(" ready in " in line for line in server.lines)
    (tmp_path / "go").touch()
    server.wait_serving()
    server.wait_for("work/0 .* its status: almost")
    assert server.stop() == 0


def test_a_program_that_never_says_it_is_ready_is_ended_with_all_its_processes(start, tmp_path):
    server = start(pool(f"away=deaf,pid={tmp_path}/away,sleep=600", "deaf", "sleep=600", boot_timeout=1.5))
    assert server.wait_exit() == 4
    reason = "not ready after 1.5 s: READY=1 has not come on its NOTIFY_SOCKET"
    assert f"error: [pool.work] {reason}" in server.everything()
    (line,) = server.wait_for(
        "starting ran 1.5 s, limit 1.5 s .boot_timeout.; replacing the worker; it was at:"
    )
    shown = server.lines[server.lines.index(line) + 1 :]
    assert re.match(r"    pid \d+, \w+: .*program.py away=deaf", shown[0])
    assert re.match(r"    pid \d+, \w+: .*program.py deaf pid=", shown[1])
    wait_gone(pid_in(tmp_path / "away"))


def test_a_program_that_says_it_stops_is_replaced_before_it_has_ended(start, tmp_path):
    verbs = [f"take={tmp_path}/go", "stopping", f"await={tmp_path}/end"]
    table = pool("polite=TERM", "ready", *verbs, listen=LISTEN, graceful_timeout=60)
    server = start(table).wait_serving()
    (first,) = server.pids()
    (tmp_path / "go").touch()
    wait_until(
        lambda: any(worker["state"] == "ready" and worker["pid"] != first for worker in server.workers()),
        "next",
    )
    assert next(worker for worker in server.workers() if worker["pid"] == first)["state"] == "draining"
    (tmp_path / "end").touch()
    server.wait_for(rf"info  work/0 gen=1 pid={first} ended: clean: it left by itself")


# Programs that cannot be started.


def failing(folder: Path) -> dict[str, tuple[list[str], str]]:
    """Return commands that fail, with what is said of each."""
    (folder / "plain").write_text("echo hello\n")
    (folder / "odd").write_text("#!/no/such/interpreter\n")
    (folder / "odd").chmod(0o755)
    (folder / "noise").write_bytes(b"\x00\x01\x02")
    (folder / "noise").chmod(0o755)
    return {
        "absent": (["no-such-program-here"], "cannot run 'no-such-program-here': no such program in PATH"),
        "nowhere": (["./nowhere"], f"cannot run './nowhere': no such file, from {folder}"),
        "plain": (["./plain"], "cannot run './plain': permission denied"),
        "odd": (
            ["./odd"],
            "cannot run './odd': no such file or directory for the interpreter that its first line names",
        ),
        "noise": (["./noise"], "cannot run './noise': exec format error"),
    }


@pytest.mark.parametrize("name", ["absent", "nowhere", "plain", "odd", "noise"])
def test_a_program_that_cannot_be_executed_ends_the_first_start_with_its_name_and_the_reason(
    start, tmp_path, name
):
    command, reason = failing(tmp_path)[name]
    server = start(f"[pool.work]\ncommand = {json.dumps(command)}\n")
    assert server.wait_exit() == 4
    assert any(line.startswith(f"error: [pool.work] {reason}") for line in server.everything())


def test_check_tells_of_programs_that_cannot_be_executed(start, tmp_path):
    server = start(pool("ready", "sleep=600")).wait_serving()
    faulty = {name: failing(tmp_path)[name] for name in ("absent", "nowhere", "plain")}
    server.write(
        "".join(f"[pool.{name}]\ncommand = {json.dumps(found[0])}\n" for name, found in faulty.items())
    )
    check = server.run("check")
    assert check.returncode == 4
    assert all(f"error: [pool.{name}] {reason}" in check.stderr for name, (_, reason) in faulty.items())
    server.write(pool("print=never"))
    check = server.run("check")
    assert (check.returncode, "never" in check.stdout + check.stderr) == (0, False)


def test_a_reload_to_a_program_that_ends_at_once_changes_nothing_and_shows_its_last_words(start):
    server = start(pool("ready", "sleep=600")).wait_serving()
    before = server.pids()
    server.write(pool("print=the port is missing", "exit=3"))
    reload = server.run("reload")
    assert reload.returncode == 1
    assert "no worker of generation 2 got ready: it ended before it was ready: exit code 3" in reload.stderr
    assert "the port is missing" in reload.stderr
    assert server.pids() == before
    assert is_alive(program_of(server, min(before)))


def test_a_program_that_goes_to_the_background_is_told_to_stay(start, tmp_path):
    server = start(pool(f"away=pid={tmp_path}/daemon,sleep=600", f"await={tmp_path}/daemon", "exit=0"))
    assert server.wait_exit() == 4
    hint = "it ended before it was ready: exit code 0, and what it has started went on: a program has to stay"
    text = "\n".join(server.everything())
    assert hint in text
    assert "hint: at the first start every pool has to get ready; " in text
    assert not is_alive(pid_in(tmp_path / "daemon"))


def test_a_program_that_ends_soon_is_tried_again_with_growing_pauses(start, tmp_path):
    server = start(pool(f"pid={tmp_path}/pid", "ready", "sleep=0.1", "exit=5")).wait_serving()
    server.wait_for("error work/0 gen=1 .* ended: exit code 5; ", 3)
    pauses = [float(re.search(r"in ([\d.]+) s$", line)[1]) for line in server.wait_for("next try is in", 2)]
    assert 0.3 <= pauses[0] < 0.7
    assert server.pool()["last_death"]["cause"] == "exit code 5"


# How it ends.


@pytest.mark.parametrize("name", ["TERM", "QUIT", "USR1"])
def test_a_program_is_told_by_its_stop_signal_and_finishes_what_it_does(start, name):
    server = start(pool(f"polite={name}", "ready", "serve", listen=LISTEN, stop_signal=name)).wait_serving()
    program = program_of(server, min(server.pids()))
    assert server.get().endswith(str(program).encode())
    assert server.stop() == 0
    server.wait_for(f"[|] told by {name}")
    server.wait_for("info  work/0 gen=1 .* ended: clean: stopped")
    assert " error " not in server.log


@pytest.mark.parametrize("ending", [[], ["polite=TERM", "sleep=600", "exit=143"]])
def test_a_program_that_the_signal_ends_has_left_as_it_was_told(start, ending):
    server = start(pool("ready", *ending, "sleep=600")).wait_serving()
    assert server.stop() == 0
    server.wait_for("info  work/0 gen=1 .* ended: clean: stopped; .* peak memory [\\d.]+ MiB")


def test_a_program_that_fails_while_it_leaves_is_told_of(start):
    server = start(pool("polite=TERM", "ready", "sleep=600", "exit=9")).wait_serving()
    assert server.stop() == 0
    server.wait_for("error work/0 gen=1 .* ended: exit code 9")


def test_a_deaf_program_is_killed_at_graceful_timeout_with_all_that_it_has_started(start, tmp_path):
    holders = [f"away=deaf,pid={tmp_path}/away,serve", f"child=deaf,pid={tmp_path}/child,sleep=600", "orphan"]
    table = pool("deaf", *holders, "ready", "sleep=600", listen=LISTEN, graceful_timeout=0.8)
    server = start(table).wait_serving()
    tree = [pid_in(tmp_path / name) for name in ("away", "child", "orphan")]
    address = server.address()
    tree.append(program_of(server, min(server.pids())))
    began = time.monotonic()
    assert server.stop() == 0
    assert 0.8 <= time.monotonic() - began < 5
    assert not any(is_alive(pid) for pid in tree)
    server.wait_for("error work/0 gen=1 .* ended: killed by prefork: graceful_timeout of 0.8 s")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_whom_a_program_leaves_behind_is_told_to_leave_and_then_killed(start, tmp_path):
    left = [
        f"away=polite=TERM,pid={tmp_path}/polite,sleep=600",
        f"away=deaf,pid={tmp_path}/deaf,sleep=600",
        "orphan",
    ]
    table = pool(*left, "ready", f"await={tmp_path}/go", "exit=7", graceful_timeout=1.5)
    server = start(table).wait_serving()
    tree = [pid_in(tmp_path / name) for name in ("polite", "deaf", "orphan")]
    (first,) = server.pids()
    (tmp_path / "go").touch()
    server.wait_for(rf"work/0 gen=1 pid={first} its program has ended, exit code 7, and left: pid ")
    (tmp_path / "go").unlink()
    server.wait_for("[|] told by TERM")
    wait_until(lambda: server.pool()["ready"] == 1, "another one serves while they are leaving")
    server.wait_for(rf"error work/0 gen=1 pid={first} ended: exit code 7")
    assert not any(is_alive(pid) for pid in tree)
    assert is_alive(program_of(server, min(server.pids() - {first})))


def test_a_quick_stop_waits_for_nobody(start, tmp_path):
    table = pool(
        "deaf", f"away=deaf,pid={tmp_path}/away,sleep=600", "ready", "sleep=600", graceful_timeout=30
    )
    server = start(table).wait_serving()
    tree = [pid_in(tmp_path / "away"), program_of(server, min(server.pids()))]
    began = time.monotonic()
    server.signal(signal.SIGINT)
    assert server.wait_exit() == 0
    assert time.monotonic() - began < 3
    assert not any(is_alive(pid) for pid in tree)
    server.wait_for("info  work/0 gen=1 .* ended: clean: stopped at once")


@pytest.mark.parametrize(
    ("name", "cause"), [("KILL", "killed by somebody else: SIGKILL"), ("SEGV", "crashed: SIGSEGV")]
)
def test_the_record_of_a_program_that_a_signal_ends_says_which_and_has_its_own_memory(
    start, tmp_path, name, cause
):
    size = 60 * 2**20
    table = pool("ready", f"await={tmp_path}/go", f"allocate={size}", f"kill={name}")
    server = start(table).wait_serving()
    (tmp_path / "go").touch()
    (line,) = server.wait_for(rf"error work/0 gen=1 .* ended: {cause}; ")
    (tmp_path / "go").unlink()
    assert 60 <= float(re.search(r"peak memory ([\d.]+) MiB", line)[1]) < 100
    wait_until(lambda: server.pool()["ready"] == 1, "it is replaced")
    assert server.pool()["restarts"] == 1


def test_a_worker_that_is_killed_takes_its_program_and_what_that_has_started_along(start, tmp_path):
    holders = [f"away=deaf,pid={tmp_path}/away,sleep=600", f"child=deaf,pid={tmp_path}/child,sleep=600"]
    server = start(pool("deaf", *holders, "ready", "sleep=600")).wait_serving()
    (worker,) = server.pids()
    tree = [pid_in(tmp_path / "away"), pid_in(tmp_path / "child"), program_of(server, worker)]
    for name in ("away", "child"):
        (tmp_path / name).unlink()
    os.kill(worker, signal.SIGKILL)
    wait_gone(*tree)
    server.wait_for(rf"error work/0 gen=1 pid={worker} ended: killed by somebody else: SIGKILL")
    wait_until(lambda: server.pool()["ready"] == 1, "it is replaced")
    second = [pid_in(tmp_path / "away"), pid_in(tmp_path / "child"), program_of(server, min(server.pids()))]
    assert all(is_alive(pid) for pid in second)


def test_a_worker_that_is_told_to_leave_by_a_signal_tells_its_program_and_is_replaced(start):
    server = start(pool(*SERVING, listen=LISTEN)).wait_serving()
    (worker,) = server.pids()
    os.kill(worker, signal.SIGTERM)
    server.wait_for("[|] told by TERM")
    server.wait_for(rf"info  work/0 gen=1 pid={worker} ended: clean: it left by itself")
    wait_until(lambda: server.pool()["ready"] == 1, "it is replaced")


def test_a_killed_master_takes_all_programs_with_it_by_graceful_timeout(start, tmp_path):
    holders = [f"away=deaf,pid={tmp_path}/away,serve", "orphan"]
    table = pool("deaf", *holders, "ready", "serve", listen=LISTEN, graceful_timeout=1)
    polite = pool("polite=TERM", "ready", "sleep=600", name="polite")
    server = start(table + polite).wait_serving()
    tree = [pid_in(tmp_path / "away"), pid_in(tmp_path / "orphan")]
    tree += [program_of(server, pid) for name in ("work", "polite") for pid in server.pids(name)]
    address = server.address()
    server.signal(signal.SIGKILL)
    server.process.wait()
    killed = time.monotonic()
    server.wait_for("polite/0 .*[|] told by TERM")
    wait_gone(tree[3])
    assert time.monotonic() - killed < 0.9
    wait_gone(*tree)
    assert time.monotonic() - killed < 2.5
    server.wait_all_gone()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


# Beside that it is a worker.


def test_reloads_and_scaling_replace_programs_without_a_lost_request(start):
    server = start(pool(*SERVING, listen=LISTEN, workers=2)).wait_serving()
    with Load(server.address(), keepalive=0, posting=0) as load:
        for generation in (2, 3, 4):
            load.wait_answered(20)
            assert server.ask("reload")["generation"] == generation
        server.ask("scale", pool="work", workers=1)
        wait_until(lambda: len(server.pids()) == 1, "one is left")
        load.wait_answered(20)
    assert load.lost == {}, load.examples
    assert " error " not in server.log
    assert server.stop() == 0


def test_status_and_stacks_show_the_programs_processes(start, tmp_path):
    size = 80 * 2**20
    table = pool(f"child=allocate={size},pid={tmp_path}/child,sleep=600", "ready", "sleep=600")
    server = start(table).wait_serving()
    child = pid_in(tmp_path / "child")
    (worker,) = server.workers()
    assert size < worker["memory"] < 2 * size
    assert server.pool()["kind"] == "command"
    assert server.pool()["application"].endswith(" ready sleep=600")
    (found,) = server.ask("stacks")["workers"]
    program = program_of(server, worker["pid"])
    assert [line.split(",")[0] for line in found["stack"].splitlines()] == [f"pid {program}", f"pid {child}"]
    shown = server.run("status")
    assert "ready" in shown.stdout
    assert "program.py" in shown.stdout


def test_reloads_of_programs_leave_no_descriptor_behind(start):
    server = start(pool(*SERVING, listen=LISTEN)).wait_serving()
    master = server.process.pid
    server.ask("reload")
    held = []
    for _ in range(2):
        for _ in range(5):
            server.ask("reload")
        wait_until(lambda: len(children_of(master)) == 2, "the old ones are gone")
        held.append(len(descriptors_of(master)))
    # The master may just be about to close the last connection of the control socket.
    wait_until(lambda: len(descriptors_of(master)) <= held[0], "nothing is left behind")
