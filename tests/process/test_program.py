"""Servers from a Python program: prefork.serve() and prefork.run(), as people write them into their own scripts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import PATIENCE, Server, body_of, read_to_end, wait_until

# Whatever is not in front of the guard is the test's own.
SERVES = """
import os, sys
import prefork

def main(word):
    count = [0]
    def handle(sock, address):
        count[0] += 1
        sock.sendall(f"{word} {count[0]}".encode())
    return prefork.serve(handle, listen="127.0.0.1:0", workers=1)

if __name__ == "__main__":
    sys.exit(main("spoken"))
"""


@pytest.fixture
def launch(start, tmp_path):
    """Start a script of the test's own; its control socket is the harness's."""

    def launch_script(text: str, name: str = "shop_server.py") -> Server:
        (tmp_path / name).write_text(text)
        env = {"PREFORK_MASTER__CONTROL": str(tmp_path / "control.sock")}
        server = start("", env=env, command=[sys.executable, name])
        server.file = tmp_path / name  # by which commands find it
        return server

    return launch_script


def run_script(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run a script that ends by itself."""
    (folder / "script.py").write_text(text)
    env = {**os.environ, "PREFORK_MASTER__CONTROL": str(folder / "control.sock")}
    command = [sys.executable, "script.py"]
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def said(server: Server) -> bytes:
    with server.connect() as client:
        return read_to_end(client)


def test_a_function_that_cannot_be_imported_is_served_reloaded_and_stopped(launch, tmp_path):
    server = launch(SERVES).wait_serving()
    status = server.status()
    assert (status["name"], status["pools"][0]["application"]) == ("shop_server", "__main__:main.handle")
    assert [said(server), said(server)] == [b"spoken 1", b"spoken 2"]
    (tmp_path / "shop_server.py").write_text("raise RuntimeError('nobody reads this')\n")
    assert server.run("reload").returncode == 0
    assert said(server) == b"spoken 1"  # a new worker, with the code and the state of the beginning
    assert server.stop() == 0


def test_an_upgrade_takes_the_newest_program(launch, tmp_path):
    text = SERVES.replace('sys.exit(main("spoken"))', 'main("spoken")\n    open("after", "w").close()')
    server = launch(text).wait_serving()
    assert said(server) == b"spoken 1"
    (tmp_path / "shop_server.py").write_text("1 / 0\n")
    failed = server.run("upgrade")
    assert (failed.returncode, "ZeroDivisionError" in failed.stderr) == (1, True)
    (tmp_path / "shop_server.py").write_text(text.replace("spoken", "louder"))
    upgraded = server.run("upgrade")
    assert upgraded.returncode == 0, upgraded.stderr
    assert said(server) == b"louder 1"
    assert not (tmp_path / "after").exists()  # a rehearsal ends where its server would
    assert server.stop() == 0
    assert (tmp_path / "after").exists()


def test_the_end_gives_everything_back_and_a_second_server_can_follow(launch, tmp_path):
    text = (
        SERVES.partition("if __name__")[0]
        + """
import signal, setproctitle
def mine(number, frame): pass
def state():
    signals = [signal.getsignal(number) for number in signal.valid_signals()]
    from prefork.log import logger
    descriptors = sorted(os.listdir("/proc/self/fd"))
    return signals, signal.set_wakeup_fd(-1), setproctitle.getproctitle(), logger.handlers[:], logger.level, descriptors

if __name__ == "__main__":
    print("printed before, not flushed")
    signal.signal(signal.SIGHUP, mine)
    before = state()
    code = main("first")
    after = state()
    assert after == before, (before, after)
    assert main("second") == code == 0
    assert state() == before
    raise SystemExit(7)
"""
    )
    server = launch(text).wait_serving()
    assert said(server) == b"first 1"
    server.signal(signal.SIGTERM)
    server.wait_for("generation 1 serves", 2)
    assert said(server) == b"second 1"
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 7, server.log
    assert server.process.stdout.read() == b"printed before, not flushed\n"


def test_the_end_closes_the_log_as_well(start, tmp_path):
    text = (
        SERVES.partition("if __name__")[0]
        + """
if __name__ == "__main__":
    before = sorted(os.listdir("/proc/self/fd"))
    assert main("spoken") == 0
    assert sorted(os.listdir("/proc/self/fd")) == before
"""
    )
    (tmp_path / "shop_server.py").write_text(text)
    env = {"PREFORK_MASTER__CONTROL": str(tmp_path / "control.sock"), "PREFORK_LOG__FILE": "server.log"}
    server = start("", env=env, command=[sys.executable, "shop_server.py"])
    log = tmp_path / "server.log"
    wait_until(lambda: log.exists() and "generation 1 serves" in log.read_text(), "it serves")
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0, server.everything()


def test_an_application_of_another_kind_is_served_as_such(launch):
    text = """
import prefork
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
if __name__ == "__main__":
    prefork.serve(app, ["127.0.0.1:0"], "auto", kind="wsgi", request_timeout="5s", env={"A": "b"}, user=None)
"""
    server = launch(text).wait_serving()
    assert body_of(server.get()) == b"ok"
    assert server.stop() == 0


def test_a_task_needs_no_listener(launch):
    text = """
import pathlib, prefork
def run(worker):
    pathlib.Path("ran").write_text(str(worker))
    worker.stopping.wait()
if __name__ == "__main__":
    prefork.serve(run, None, 1, kind="task")
"""
    server = launch(text).wait_serving()
    wait_until((server.folder / "ran").exists, "it runs")
    assert server.stop() == 0


def test_threads_that_workers_will_miss_are_told_by_name(launch):
    text = """
import prefork, threading
def handle(sock, address):
    sock.sendall(" ".join(thread.name for thread in threading.enumerate()).encode())
if __name__ == "__main__":
    threading.Thread(target=threading.Event().wait, name="poller", daemon=True).start()
    prefork.serve(handle, "127.0.0.1:0", 1)
"""
    server = launch(text).wait_serving()
    assert b"poller" not in said(server)
    assert server.stop() == 0
    warned = "RuntimeWarning: the program has started threads, which workers do not have: poller; "
    assert [line for line in server.everything() if warned in line]


def test_a_dictionary_is_run_like_a_file_and_a_reload_imports_the_newest_code(launch, tmp_path):
    own = "def handle(sock, address): sock.sendall(b'{}')\n"
    (tmp_path / "own.py").write_text(own.format("old"))
    text = """
import pathlib, sys
import prefork
CONFIG = {
    "log": {"level": "debug"},
    "pool": {"own": {"listen": ("127.0.0.1:0",), "handler": "own:handle", "directory": pathlib.Path.cwd()}},
}
if __name__ == "__main__":
    sys.exit(prefork.run(CONFIG))
"""
    server = launch(text).wait_serving()
    assert said(server) == b"old"
    (tmp_path / "own.py").write_text(own.format("newer"))
    assert server.ask("reload")["generation"] == 2
    assert said(server) == b"newer"
    assert server.stop() == 0


def test_a_file_is_read_again_by_a_reload(launch, tmp_path):
    (tmp_path / "own.py").write_text("def handle(sock, address): pass\n")
    config = f'[master]\ncontrol = "{tmp_path}/control.sock"\n[pool.own]\nlisten = ["127.0.0.1:0"]\nhandler = "own:handle"\n'
    (tmp_path / "mine.toml").write_text(config)
    server = launch(
        "import pathlib, prefork\nif __name__ == '__main__':\n    prefork.run(pathlib.Path('mine.toml'))\n"
    )
    server.wait_serving()
    (tmp_path / "mine.toml").write_text(config + "workers = 3\n")
    server.signal(signal.SIGHUP)
    server.wait_serving(2)
    assert len(server.pids()) == 3
    assert server.stop() == 0


def test_a_call_in_a_worker_is_refused_by_what_is_missing(launch):
    text = """
import prefork
def handle(sock, address): pass
prefork.run({"pool": {"own": {"listen": ["127.0.0.1:0"], "handler": "unguarded:handle"}}})
"""
    server = launch(text, "unguarded.py")
    assert server.wait_exit() == 1
    server.wait_all_gone()
    text = "\n".join(server.everything())
    assert "expected to be called once, found a call in <prefork.Worker own/0 gen=1>" in text
    assert 'hint: its code was imported there: put the call below if __name__ == "__main__":' in text
    assert 'unguarded.py", line 4, in <module>' in text


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            "prefork.serve(print, listen='127.0.0.1:0', wokers=2)",
            [
                'prefork.errors.ConfigError: script: [pool.main]: expected a known key, found "wokers"',
                "hint: did you mean workers?",
            ],
        ),
        (
            "prefork.serve(print, workers='four')",
            [
                'prefork.errors.ConfigError: script: [pool.main] workers: expected a whole number or "auto", found "four"'
            ],
        ),
        ("prefork.serve(print, kind='wsg')", ["kind: expected one of handler, wsgi"]),
        ("prefork.run('none.toml')", ["cannot read none.toml: No such file or directory"]),
        ("prefork.run({})", ["expected at least one [pool.NAME], found none"]),
        (
            "prefork.serve(3, listen='127.0.0.1:0')",
            ["prefork.errors.BootError: [pool.main] expected def handle(sock, address), found 3"],
        ),
        (
            "prefork.serve('broken:handle', listen='127.0.0.1:0')",
            ["prefork.errors.BootError: [pool.main] ZeroDivisionError", 'broken.py", line 1, in <module>'],
        ),
        (
            "import threading; threading.Thread(target=prefork.serve, args=(print,), name='mine').start()",
            [
                "prefork.errors.UsageError: ",
                "expected to be called in the main thread",
                "found the thread mine",
            ],
        ),
    ],
)
def test_a_mistake_is_raised_with_all_that_the_command_line_would_print(tmp_path, call, told):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    found = run_script(tmp_path, f"import prefork\nif __name__ == '__main__':\n    {call}\n")
    for text in told:
        assert text in found.stderr


def test_importing_prefork_imports_no_server(tmp_path):
    names = (
        "[name for name in sys.modules if name.startswith(('prefork.master', 'prefork.program', 'click'))]"
    )
    found = run_script(tmp_path, f"import prefork, sys\nprint({names})\nprefork.nothing\n")
    assert found.stdout == "[]\n"
    assert "AttributeError: module 'prefork' has no attribute 'nothing'" in found.stderr
