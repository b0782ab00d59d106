"""What each pool's workers are: user, directory, limits, CPUs; and what is said where that cannot be had."""

from __future__ import annotations

import json
import os
import pwd
import re
import resource
import signal
import socket
from pathlib import Path

import pytest

from tests.harness import APPS, RUN, Server, read_to_end, wait_until

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do that")
CPU = min(os.sched_getaffinity(0))


def pool(name: str, more: str = "", listen: str = "127.0.0.1:0") -> str:
    return f'[pool.{name}]\nlisten = ["{listen}"]\nhandler = "settled:handle"\n{more}\n'


def facts(server: Server, name: str) -> dict:
    """Return what a pool's handler says of its process."""
    with server.connect(name) as client:
        return json.loads(read_to_end(client))


def refusal(server: Server) -> tuple[int, list[str]]:
    """Return the exit code of a server that does not start, and its errors."""
    code = server.wait_exit()
    return code, [line for line in server.everything() if line.startswith("error: ")]


def test_each_pool_has_limits_cpus_and_a_priority_of_its_own_in_all_its_threads(start):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    inherited = os.getpriority(os.PRIO_PROCESS, 0)
    nice = min(inherited + 3, 19)
    own = (
        f"nice = {nice}\ncpu_affinity = [{CPU}]\nno_new_privs = true\nthreads = 2\n"
        '[pool.own.limits]\nnofile = 200\nas = "4GiB"\ncore = 0\nstack = "4MiB"\n'
    )
    server = start(pool("own", own) + pool("plain")).wait_serving()
    found, plain = facts(server, "own"), facts(server, "plain")
    assert found["threads"] >= 3  # the main thread, one or two that serve, one that hears the master
    assert (found["nice"], found["cpus"], found["no_new_privs"]) == ([nice], [[CPU]], [1])
    limits = found["limits"]
    assert [limits[name] for name in ("nofile", "as", "core", "stack")] == [
        [200, 200],
        [2**32, 2**32],
        [0, 0],
        [2**22, 2**22],
    ]
    assert (plain["nice"], plain["no_new_privs"]) == ([inherited], [0])
    assert plain["cpus"] == [sorted(os.sched_getaffinity(0))]
    assert plain["limits"]["nofile"][1] == hard
    assert server.stop() == 0


@pytest.mark.parametrize("preload", ["false", "true"])
def test_a_worker_has_room_for_all_its_connections_from_the_start(start, preload):
    server = start(pool("own", f"max_connections = 3000\npreload = {preload}")).wait_serving()
    (pid,) = server.pids()
    (size,) = re.findall(r"^FDSize:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert int(size) >= 3000


@ROOT
def test_pools_run_as_users_of_their_own_behind_sockets_and_logs_that_root_has_opened(start, open_folder):
    (open_folder / "mail").mkdir()
    os.chown(open_folder / "mail", 1, 8)
    (open_folder / "closed").mkdir(mode=0o700)
    head = (
        f'[master]\ncontrol = "{open_folder}/closed/control.sock"\ndirectory = "{open_folder}"\n'
        f'user = "games"\numask = "0027"\n[log]\nfile = "closed/server.log"\n'
    )
    mail = 'user = "daemon"\ngroup = "mail"\numask = "0007"\ndirectory = "mail"\nlimits.core = "unlimited"\n'
    config = (
        head
        + pool("web")
        + pool("mail", mail + 'env = { WRITE = "made", HOME = "/tmp" }\n', "unix:mail.sock")
    )
    server = start(config, env={"PYTHONPATH": str(APPS)}, folder=open_folder)
    server.control = open_folder / "closed" / "control.sock"
    log = open_folder / "closed" / "server.log"
    wait_until(lambda: log.exists() and "generation 1 serves" in log.read_text(), "it serves")
    web = facts(server, "web")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(open_folder / "mail.sock"))
        found = json.loads(read_to_end(client))
    assert (web["user"], web["group"], web["directory"]) == ([5] * 3, [60] * 3, str(open_folder))
    assert (found["user"], found["group"], found["groups"]) == ([1] * 3, [8] * 3, [8])
    assert web["home"] == [pwd.getpwnam("games").pw_dir, "games", "games"]
    assert found["home"] == ["/tmp", "daemon", "daemon"]  # what a pool's env says counts
    assert found["directory"] == str(open_folder / "mail")
    assert found["path"] == [str(open_folder / "mail"), str(open_folder)]
    assert (web["dumpable"], found["dumpable"]) == (0, 1)
    made = (open_folder / "mail" / "made").stat()
    assert (made.st_uid, made.st_gid, made.st_mode & 0o777) == (1, 8, 0o660)
    assert server.ask("reload")["generation"] == 2
    assert server.stop() == 0
    assert "gen=2" in log.read_text()


@ROOT
def test_what_only_root_may_have_is_set_before_the_privileges_are_dropped(start, open_folder):
    head = f'[master]\ncontrol = "{open_folder}/control.sock"\nuser = "nobody"\n'
    server = start(
        head + pool("own", "nice = -3"), env={"PYTHONPATH": str(APPS)}, folder=open_folder
    ).wait_serving()
    found = facts(server, "own")
    assert (found["user"], found["nice"]) == ([65534] * 3, [-3])


@ROOT
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("nice = -3", "nice = -3 is not possible here: permission denied"),
        (
            "limits.nofile = 5000",
            "limits.nofile = 5000 is not possible here: only root may raise the hard limit, 4000",
        ),
    ],
)
def test_what_the_master_may_not_have_is_told_by_the_key(start, open_folder, line, told):
    """Run as nobody all the way, as on a machine where nobody is root."""
    as_nobody = [
        "prlimit",
        "--nofile=4000:4000",
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ]
    server = start(pool("own", line), folder=open_folder, command=[*as_nobody, *RUN])
    assert refusal(server) == (4, [f"error: [pool.own] {told}"])


def test_a_cpu_that_this_process_may_not_use_is_told_by_the_key(start):
    server = start(pool("own", f"cpu_affinity = [{CPU}, 1000]"))
    usable = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
    told = f"cpu_affinity = [{CPU}, 1000] is not possible here: the CPUs for this process are {usable}"
    assert refusal(server) == (
        4,
        [f"error: [pool.own] {told}"],
    )
    check = server.run("check")
    assert (check.returncode, told in check.stderr) == (4, True)


def test_a_missing_directory_is_a_mistake_of_the_file_for_run_check_and_reload(start, tmp_path):
    head = f'[master]\ncontrol = "{tmp_path}/control.sock"\n'
    config = head + pool("own", 'directory = "own"')
    told = f"server.toml:6: [pool.own] directory: expected a directory, found {tmp_path}/own: no such file or directory"
    server = start(config)
    assert refusal(server) == (2, [f"error: {told}"])
    assert not (tmp_path / "control.sock").exists()
    check = server.run("check")
    assert (check.returncode, check.stderr) == (2, f"error: {tmp_path}/{told}\n")
    (tmp_path / "own").mkdir()
    server = start(config).wait_serving()
    (tmp_path / "own").rename(tmp_path / "moved")
    reload = server.run("reload")
    assert (reload.returncode, told in reload.stderr) == (1, True)
    assert facts(server, "own")["user"]
    server.signal(signal.SIGHUP)
    server.wait_for(re.escape(told))
    assert server.stop() == 0


def test_a_master_directory_that_is_missing_is_not_made(start, tmp_path):
    missing = tmp_path / "missing"
    log = '[log]\nfile = "server.log"\n'
    server = start(f'[master]\ndirectory = "{missing}"\n{log}' + pool("own"))
    told = (
        f"server.toml:2: [master] directory: expected a directory, found {missing}: no such file or directory"
    )
    assert refusal(server) == (2, [f"error: {told}"])
    assert not missing.exists()


@ROOT
def test_a_directory_that_is_closed_to_the_pools_user_is_told_by_the_key(start, open_folder):
    (open_folder / "closed").mkdir(mode=0o700)
    server = start(pool("own", 'user = "games"\ndirectory = "closed"'), folder=open_folder)
    code, errors = refusal(server)
    told = f"directory = {open_folder}/closed is not possible here: permission denied"
    assert (code, errors) == (4, [f"error: [pool.own] {told}"])


@ROOT
def test_every_unknown_account_is_told_at_once(start):
    text = pool("own", 'user = "nobody-at-all"') + pool("more", 'group = "none-such"')
    code, errors = refusal(start(text))
    assert code == 2
    assert [error.partition("expected ")[2] for error in errors] == [
        "a user of this machine, found 'nobody-at-all'",
        "a group of this machine, found 'none-such'",
    ]


@ROOT
def test_a_program_is_what_its_pool_says(start, open_folder):
    (open_folder / "own").mkdir()
    script = "echo user $(id -u) group $(id -g) files $(ulimit -n) nice $(nice) in $(pwd); grep NoNewPrivs /proc/self/status; exec sleep 99"
    own = f'user = "games"\nnice = -2\ndirectory = "own"\nno_new_privs = true\nlimits.nofile = 300\ncommand = {["sh", "-c", script]}\n'
    server = start(f"[pool.own]\n{own}", folder=open_folder)
    server.wait_for(rf"user 5 group 60 files 300 nice -2 in {open_folder}/own$")
    server.wait_for(r"NoNewPrivs:\s+1")
    server.wait_serving()
    assert server.stop() == 0


@pytest.mark.parametrize("preload", ["true", "false"])
def test_modules_are_found_in_further_folders(start, tmp_path, preload):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "of_the_lib.py").write_text("from web import app\n")
    config = '[pool.web]\nlisten = ["127.0.0.1:0"]\nwsgi = "of_the_lib:app"\npythonpath = ["lib"]\n'
    server = start(f"{config}preload = {preload}\n").wait_serving()
    assert server.get().startswith(b"HTTP/1.1 200 ")
