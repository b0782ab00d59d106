"""Starts: what serves, what refuses to, and how that is told (promises 3, 21, 22; fault 12)."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.harness import APPS, PATIENCE, PREFORK, Server, body_of, command_of, read_to_end, wait_until

ROOT = Path(__file__).parents[2]
WEB = """
[pool.web]
listen = ["127.0.0.1:0"]
wsgi = "boots:routes"
workers = 2
"""


def refused(server: Server, code: int) -> list[str]:
    """Return the lines of a start that must fail with this exit code, without those about what it did before."""
    assert server.wait_exit() == code, server.log
    server.wait_all_gone()
    return [line for line in server.everything() if not line.startswith("20")]


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_the_quick_start_serves_http_and_echo(start):
    options = ["--set", 'pool.web.listen=["127.0.0.1:0"]', "--set", 'pool.echo.listen=["127.0.0.1:0"]']
    server = start((ROOT / "conf/server.toml").read_text(), *options).wait_serving()
    assert body_of(server.get(pool="web")).startswith(b"Hello from web/")
    with server.connect("echo") as client:
        client.sendall(b"twice\nasked")
        client.shutdown(socket.SHUT_WR)
        assert read_to_end(client) == b"twice\nasked"
    assert server.stop() == 0


def test_a_first_boot_that_fails_ends_with_the_traceback_once_and_one_hint(start):
    lines = refused(start(WEB, env={"BOOT": "raise"}), 4)
    assert sum("Traceback" in line for line in lines) == 1
    assert (
        sum("RuntimeError: the boot went wrong on purpose" in line for line in lines) == 2
    )  # its end, the error
    assert [line for line in lines if line.startswith("error: ")] == [
        "error: [pool.web] RuntimeError: the boot went wrong on purpose"
    ]
    assert sum(line.startswith("hint: ") for line in lines) == 1


def test_a_first_boot_that_exits_or_hangs_is_told_by_its_cause(start, tmp_path):
    left = start(WEB, env={"BOOT": "exit"}, folder=tmp_path / "left")
    hung = start(WEB + "boot_timeout = 1\n", env={"BOOT": "hang"}, folder=tmp_path / "hung")
    assert "SystemExit: 7" in "\n".join(refused(left, 4))
    assert any("not ready after 1 s" in line for line in refused(hung, 4))
    assert 'boots.py", line 17 in <module>' in hung.log


def test_a_server_serves_when_only_some_workers_boot_and_says_that_it_is_degraded(start):
    server = start(WEB, env={"BOOT": "only 0"})
    server.wait_for("the next try is in")
    assert body_of(server.get()).split()[1] == b"0"
    pool = server.pool()
    assert (pool["ready"], pool["wanted"]) == (1, 2)
    assert "not this slot" in pool["degraded"]
    assert server.stop() == 0


def test_a_port_in_use_is_one_line_and_a_hint_that_names_who_has_it(start, taken):
    lines = refused(start(WEB.replace("127.0.0.1:0", f"127.0.0.1:{taken}")), 3)
    assert lines == [
        f"error: cannot listen on 127.0.0.1:{taken}: address already in use",
        f"hint: pid {os.getpid()} ({command_of(os.getpid())[:80].strip()}) listens there",
    ]


def test_a_port_of_another_server_is_told_with_its_masters_title(start, tmp_path):
    first = start(WEB).wait_serving()
    port = first.address()[1]
    lines = refused(start(WEB.replace("127.0.0.1:0", f"127.0.0.1:{port}"), folder=tmp_path / "second"), 3)
    assert lines[1] == f"hint: pid {first.process.pid} (prefork: master server gen=1 [running]) listens there"
    assert first.get()


def test_every_mistake_of_a_file_is_told_with_its_line(start):
    config = (
        '[pool.web]\nlisten = ["127.0.0.1:0"]\nwsgi = "web:app"\nwokers = 2\nthreads = "four"\nworkers = 0\n'
    )
    lines = refused(start('[master]\nname = "x"\n' + config), 2)
    errors = [line for line in lines if line.startswith("error: ")]
    assert [error.split(": ")[1] for error in errors] == ["server.toml:6", "server.toml:7", "server.toml:8"]
    assert "hint: did you mean workers?" in lines


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(start):
    env = {
        "PREFORK_POOL__WEB__WORKERS": "3",
        "PREFORK_POOL__WEB__THREADS": "2",
        "PREFORK_POOL__WEB__ENV__BOOT": "",
    }
    server = start(WEB, "--set", "pool.web.workers=1", env=env).wait_serving()
    assert server.pool()["wanted"] == 1
    (pid,) = server.pids()
    tasks = Path(f"/proc/{pid}/task")
    wait_until(
        lambda: len(list(tasks.iterdir())) == 4,
        "there are the main thread, the one that hears orders, and two for the application",
    )


# A second instance.


def test_a_second_instance_on_the_same_control_socket_is_refused_and_the_first_unharmed(start, tmp_path):
    first = start(WEB).wait_serving()
    second = start(first.file.read_text(), folder=tmp_path / "second")
    lines = refused(second, 3)
    assert (
        lines[0]
        == f"error: cannot listen on the control socket {first.control}: a running server listens there"
    )
    assert first.get()
    assert first.status()["state"] == "running"


def test_a_second_instance_on_the_same_pid_file_is_refused_and_the_first_unharmed(start, tmp_path):
    file = tmp_path / "run" / "shop.pid"
    first = start(f'[master]\ncontrol = "{tmp_path}/control.sock"\npid_file = "{file}"\n{WEB}').wait_serving()
    other = tmp_path / "second"
    second = start(f'[master]\ncontrol = "{other}/control.sock"\npid_file = "{file}"\n{WEB}', folder=other)
    lines = refused(second, 3)
    assert lines[0] == f"error: the pid file {file} is held by a running server, pid {first.process.pid}"
    assert file.read_text() == f"{first.process.pid}\n"
    assert first.get()
    assert first.stop() == 0
    assert not file.exists()


def test_the_pid_file_is_held_by_a_lock_of_the_master_alone(start, tmp_path):
    file = tmp_path / "shop.pid"
    server = start(
        f'[master]\ncontrol = "{tmp_path}/control.sock"\npid_file = "{file}"\n{WEB}'
    ).wait_serving()
    with file.open() as held, pytest.raises(BlockingIOError):
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    server.signal(signal.SIGKILL)
    server.wait_exit()
    with file.open() as free:  # the workers may still be there, but they do not hold it
        fcntl.flock(free, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_a_killed_server_left_behind_is_taken_over(start, tmp_path):
    head = f'[master]\ncontrol = "{tmp_path}/control.sock"\npid_file = "{tmp_path}/shop.pid"\n'
    config = head + WEB.replace('["127.0.0.1:0"]', f'["127.0.0.1:0", "unix:{tmp_path}/web.sock"]')
    killed = start(config).wait_serving()
    address = killed.address()
    killed.signal(signal.SIGKILL)
    killed.wait_exit()
    assert (tmp_path / "shop.pid").exists()
    assert (tmp_path / "control.sock").exists()
    killed.wait_all_gone()
    server = start(config.replace("127.0.0.1:0", f"127.0.0.1:{address[1]}")).wait_serving()
    assert (tmp_path / "shop.pid").read_text() == f"{server.process.pid}\n"
    assert server.get()
    assert server.stop() == 0
    assert not [path.name for path in tmp_path.iterdir() if path.suffix in (".sock", ".pid")]


# Whom and what the workers are.


def test_processes_say_what_they_are_in_their_titles(start):
    server = start(WEB).wait_serving()
    running = "prefork: master server gen=1 [running]"
    wait_until(lambda: command_of(server.process.pid) == running, "the master says that it is running")
    titles = sorted(command_of(pid) for pid in server.pids())
    assert titles == ["prefork: worker web/0 gen=1 [ready]", "prefork: worker web/1 gen=1 [ready]"]
    with server.connect() as client:
        client.sendall(b"GET /sleep/30 HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: any(worker["current"] for worker in server.workers()), "the request is under way")
        server.signal(signal.SIGTERM)
        wait_until(
            lambda: any("[draining]" in command_of(pid) for pid in server.pids()),
            "a worker says that it drains",
        )
        assert command_of(server.process.pid) == "prefork: master server gen=1 [stopping]"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_workers_run_as_the_given_user_with_its_groups_and_umask(start, open_folder):
    (open_folder / "own.py").write_text(
        "import os\n"
        "def handle(sock, address):\n"
        "    open('made', 'w').close()\n"
        "    sock.sendall(repr((os.getresuid(), os.getresgid(), os.getgroups(), os.getcwd(), os.environ['COLOUR']))"
        ".encode())\n"
    )
    head = f'[master]\ncontrol = "{open_folder}/control.sock"\nuser = "games"\ngroup = "daemon"\numask = "0027"\n'
    config = (
        f'{head}directory = "{open_folder}"\n[pool.own]\nlisten = ["127.0.0.1:0"]\nhandler = "own:handle"\n'
    )
    server = start(
        config + 'env = { COLOUR = "green" }\n', env={"PYTHONPATH": ""}, folder=open_folder
    ).wait_serving()
    with server.connect() as client:
        found = eval(read_to_end(client))
    games, daemon = 5, 1
    assert found == ((games,) * 3, (daemon,) * 3, [daemon], str(open_folder), "green")
    made = (open_folder / "made").stat()
    assert (made.st_uid, made.st_gid, made.st_mode & 0o777) == (games, daemon, 0o640)
    assert Path(f"/proc/{server.process.pid}").stat().st_uid == 0
    assert server.stop() == 0


# What else a start may meet.


def test_closed_standard_streams_do_no_harm(tmp_path):
    control = tmp_path / "control.sock"
    (tmp_path / "own.toml").write_text(
        f'[master]\ncontrol = "{control}"\npid_file = "p.pid"\n[log]\nfile = "own.log"\n' + WEB
    )
    command = f"exec {' '.join(PREFORK)} run own.toml 0<&- 1>&- 2>&-"
    env = {**os.environ, "PYTHONPATH": str(APPS)}
    master = subprocess.Popen(["/bin/sh", "-c", command], cwd=tmp_path, env=env)
    try:
        log = tmp_path / "own.log"
        wait_until(lambda: log.exists() and "generation 1 serves" in log.read_text(), "it serves")
        assert (tmp_path / "p.pid").read_text() == f"{master.pid}\n"
        master.terminate()
        assert master.wait(PATIENCE) == 0
        assert "error" not in log.read_text()
    finally:
        master.kill()


@pytest.mark.parametrize("text", ["x" * 100_000, "\u65e5" * 50_000])
def test_a_long_exception_at_import_is_told_as_far_as_there_is_room(start, tmp_path, text):
    (tmp_path / "own.py").write_text(f"raise ValueError({text!r})\n", encoding="utf-8")
    server = start('[pool.web]\nlisten = ["127.0.0.1:0"]\nwsgi = "own:app"\n')
    assert server.wait_exit() == 4
    assert f"ValueError: {text[:1000]}" in "\n".join(server.everything())
