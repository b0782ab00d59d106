"""The log: its formats, its rotation, and what becomes of it where nothing can be written (promise 27; fault 7)."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys

import pytest

from tests.clients import Load
from tests.harness import APPS, PREFORK, children_of, command_of, fetch, session_of, wait_until

# Each connection leaves one line in the log, with its number.
NUMBERED = """
from prefork.log import logger
def handle(sock, address):
    number = sock.recv(100).decode()
    logger.info("number %s.", number)
    sock.sendall(b"noted")
"""
LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (debug|info |warning|error) [\w/-]+ (gen=\d+ )?pid=\d+ \S"
)


def web(log: str, wsgi: str = "web:routes") -> str:
    return f'[log]\n{log}\n[pool.web]\nlisten = ["127.0.0.1:0"]\nwsgi = "{wsgi}"\nworkers = 2\n'


def test_every_line_of_a_text_log_begins_with_time_level_and_identity(start):
    server = start(web('level = "debug"')).wait_serving()
    server.get("/raise")
    server.ask("reload")
    assert server.stop() == 0
    lines = [line for line in server.everything() if not line.startswith("    ")]
    assert len(lines) > 10
    assert [line for line in lines if not LINE.match(line)] == []
    assert any("the application's own mistake" in line for line in server.lines)


def test_every_line_of_a_json_log_is_an_object_that_says_whom_it_is_about(start):
    server = start(web('format = "json"'))
    server.wait_for("generation 1 serves")
    server.get("/raise")
    os.kill(min(server.pids()), signal.SIGKILL)
    server.wait_for("killed by somebody else")
    assert server.stop() == 0
    records = [json.loads(line) for line in server.everything()]
    assert all(
        record.keys() >= {"time", "level", "name", "generation", "pid", "message"} for record in records
    )
    death = next(record for record in records if record.get("cause") == "killed by somebody else: SIGKILL")
    assert death["name"].startswith("web/")
    assert death["level"] == "error"


@pytest.mark.parametrize(
    "account", ["", 'user = "games"\ngroup = "games"\n'], ids=["same-user", "dropped-user"]
)
def test_not_one_line_is_lost_when_the_log_is_rotated(start, open_folder, account):
    if account and os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    (open_folder / "numbered.py").write_text(NUMBERED)
    closed = open_folder / "closed"
    closed.mkdir(mode=0o700)
    server = start(
        f'[master]\ncontrol = "{open_folder}/control.sock"\ndirectory = "{open_folder}"\n{account}'
        f'[log]\nfile = "closed/server.log"\n'
        '[pool.own]\nlisten = ["127.0.0.1:0"]\nhandler = "numbered:handle"\nworkers = 2\n',
        env={"PYTHONPATH": ""},
        folder=open_folder,
    )
    log = closed / "server.log"
    wait_until(lambda: log.exists() and "generation 1 serves" in log.read_text(), "it serves")
    number = 0
    for rotation in range(4):
        for _ in range(20):
            with server.connect() as client:
                client.sendall(str(number).encode())
                assert client.recv(100) == b"noted"
            number += 1
        if rotation < 3:
            log.rename(closed / f"server.log.{rotation}")
            server.signal(signal.SIGUSR1)
    wait_until(
        lambda: log.exists() and "number 79." in log.read_text(), "the last line is in the newest file"
    )
    texts = [file.read_text() for file in closed.iterdir()]
    assert len(texts) == 4
    assert sorted(int(found) for text in texts for found in re.findall(r"number (\d+)\.", text)) == list(
        range(80)
    )
    assert "" not in texts


def test_a_log_that_is_rotated_during_a_rollout_is_found_by_the_new_generation(start, tmp_path):
    (tmp_path / "own.py").write_text("from web import routes\n")
    server = start(web('file = "server.log"', "own:routes"))
    log = tmp_path / "server.log"
    wait_until(lambda: log.exists() and "generation 1 serves" in log.read_text(), "it serves")
    (tmp_path / "own.py").write_text(
        "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\n" + "from web import routes\n"
    )
    server.signal(signal.SIGHUP)
    wait_until(lambda: "rolling out generation 2" in log.read_text(), "the rollout is under way")
    log.rename(tmp_path / "old.log")
    server.signal(signal.SIGUSR1)
    wait_until(log.exists, "the log is reopened")
    (tmp_path / "go").touch()
    wait_until(lambda: "generation 2 serves" in log.read_text(), "the end of the rollout is in the new file")
    assert len(re.findall(r"gen=2 pid=\d+ ready", log.read_text())) == 2


def test_a_full_disk_under_the_log_stops_nothing(start):
    server = start(web('level = "debug"\nfile = "/dev/full"')).wait_answering(2)
    with Load(server.address()) as load:
        load.wait_answered(20)
        server.ask("reload")
        server.signal(signal.SIGUSR1)
        assert fetch(server.address(), "/raise").startswith(b"HTTP/1.1 500")
        load.wait_answered(20)
    assert load.lost == {}, load.examples
    assert server.stop() == 0


def test_a_reader_of_stderr_that_does_not_read_stops_nothing(tmp_path):
    """The pipe is filled by records of many kilobytes: the stacks of a request that runs too long."""
    (tmp_path / "deep.py").write_text(
        "import time\n"
        "def app(environ, start_response, depth=300):\n"
        "    if depth and environ['PATH_INFO'] == '/raise':\n"
        "        return app(environ, start_response, depth - 1) or depth\n"
        "    if environ['PATH_INFO'] == '/raise':\n"
        "        raise RuntimeError('x' * 9000)\n"
        "    start_response('200 OK', [('Content-Length', '2')])\n"
        "    return [b'ok']\n"
    )
    control = tmp_path / "control.sock"
    (tmp_path / "server.toml").write_text(
        f'[master]\ncontrol = "{control}"\n[log]\nlevel = "debug"\n'
        '[pool.web]\nlisten = ["unix:web.sock"]\nwsgi = "deep:app"\nworkers = 2\nread_timeout = 5\n'
    )
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 8192)
    process = subprocess.Popen(
        [*PREFORK, "run", "server.toml"],
        cwd=tmp_path,
        stderr=writing,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    os.close(writing)
    path = str(tmp_path / "web.sock")
    try:
        wait_until(lambda: os.path.exists(path), "it listens")
        for _ in range(8):
            assert fetch(path, "/raise", timeout=10).startswith(b"HTTP/1.1 500")
        with Load(path) as load:
            load.wait_answered(20)
            reloaded = subprocess.run(
                [*PREFORK, "reload", str(control)], timeout=20, check=False, capture_output=True
            )
            assert reloaded.returncode == 0, reloaded.stderr
        assert load.lost == {}, load.examples
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        for pid in session_of(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        os.close(reading)


# Where the master runs.


def test_a_terminal_that_is_resized_drains_nobody(tmp_path):
    (tmp_path / "server.toml").write_text(
        f'[master]\ncontrol = "{tmp_path}/control.sock"\n'
        '[log]\nlevel = "debug"\nfile = "server.log"\n[pool.web]\nlisten = ["unix:web.sock"]\nwsgi = "web:app"\n'
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, [*PREFORK, "run", "server.toml"], {**os.environ, "PYTHONPATH": str(APPS)})
    log = tmp_path / "server.log"
    try:
        wait_until(lambda: log.exists() and "generation 1 serves" in log.read_text(), "it serves")
        os.kill(pid, signal.SIGWINCH)
        wait_until(lambda: "SIGWINCH is ignored" in log.read_text(), "it says so")
        assert fetch(str(tmp_path / "web.sock"))
        os.write(terminal, b"\x03")  # Ctrl-C: INT for the whole group
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert "draining all workers" not in log.read_text()
    finally:
        for left in session_of(pid):
            os.kill(left, signal.SIGKILL)
        os.close(terminal)


def can_unshare() -> bool:
    return (
        subprocess.run(
            ["unshare", "-pf", "--mount-proc", "true"], capture_output=True, check=False
        ).returncode
        == 0
    )


@pytest.mark.skipif(not can_unshare(), reason="a pid namespace needs rights that this machine does not give")
def test_as_pid_1_it_reaps_strangers_and_ends_on_term(tmp_path):
    (tmp_path / "own.py").write_text(
        "import subprocess\n"
        "def handle(sock, address):\n"
        "    # The shell ends, its child lives on and is inherited by pid 1.\n"
        "    subprocess.run(['sh', '-c', 'sleep 0.3 >/dev/null 2>&1 &'])\n"
        "    sock.sendall(b'done')\n"
    )
    (tmp_path / "server.toml").write_text(
        f'[master]\ncontrol = "{tmp_path}/control.sock"\n[log]\nfile = "server.log"\n'
        '[pool.own]\nlisten = ["unix:own.sock"]\nhandler = "own:handle"\n'
    )
    command = ["unshare", "-pf", "--mount-proc", *PREFORK, "run", "server.toml"]
    outer = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    log = tmp_path / "server.log"
    try:
        wait_until(lambda: log.exists() and "generation 1 serves" in log.read_text(), "it serves")
        master = next(iter(children_of(outer.pid)))
        assert "master pid=1 " in log.read_text()
        before = set(children_of(master))
        assert fetch(str(tmp_path / "own.sock")) == b"done"
        wait_until(lambda: set(children_of(master)) - before, "the stranger is inherited")
        wait_until(lambda: set(children_of(master)) == before, "the stranger is reaped")
        assert all("prefork: " in command_of(pid) for pid in before)
        os.kill(master, signal.SIGTERM)
        assert outer.wait(20) == 0
    finally:
        outer.kill()
        outer.wait()
