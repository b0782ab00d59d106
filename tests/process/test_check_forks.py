"""``prefork check`` of an application that starts a process while it is imported."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.harness import APPS, PREFORK

FORKS = """
import os, time
pid = os.fork()
if pid == 0:
    time.sleep(25)
    os._exit(0)
with open("forked.pid", "w") as file:
    file.write(str(pid))
"""
WEB = '[pool.web]\nlisten = ["127.0.0.1:0"]\nwsgi = "forks:app"\nboot_timeout = 5\n'


@pytest.mark.parametrize(
    ("rest", "code"),
    [
        ("def app(environ, start_response): return []\n", 0),
        ("raise RuntimeError\n", 4),
        ("os._exit(3)\n", 4),
    ],
)
def test_check_does_not_wait_for_a_process_that_the_application_has_started(
    tmp_path: Path, rest: str, code: int
) -> None:
    (tmp_path / "forks.py").write_text(FORKS + rest)
    (tmp_path / "server.toml").write_text(WEB)
    began = time.monotonic()
    # Its output goes nowhere: the started process has it, too, and would be waited for at the end of a pipe.
    found = subprocess.run(
        [*PREFORK, "check", "server.toml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{APPS}{os.pathsep}{tmp_path}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    os.kill(int((tmp_path / "forked.pid").read_text()), signal.SIGKILL)
    assert found.returncode == code
    assert time.monotonic() - began < 15
