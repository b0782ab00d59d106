"""What the tests of external programs share: their configuration, and what they leave behind."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from tests.harness import APPS, Server, is_alive, wait_until


def pool(*verbs: str, name: str = "work", **options: object) -> str:
    """Return the table of a pool that runs tests/apps/program.py; by default the program says itself that it is ready."""
    command = [sys.executable, str(APPS / "program.py"), *verbs]
    values = {"command": command, "ready": "notify", "graceful_timeout": 5, **options}
    lines = (f"{key} = {_written(value)}" for key, value in values.items())
    return "\n".join([f"[pool.{name}]", *lines, ""])


def _written(value: object) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {json.dumps(text)}' for key, text in value.items())} }}"
    return json.dumps(value)


def program_of(server: Server, worker: int) -> int:
    """Return the pid of the program that a worker runs."""
    (line,) = server.wait_for(rf"pid={worker} runs pid \d+: ")
    return int(re.search(r"runs pid (\d+)", line)[1])


def pid_in(path: Path) -> int:
    """Return the pid that a program writes to a file, once it is there."""
    wait_until(path.exists, f"{path.name} is written")
    return int(path.read_text())


def told_in(path: Path) -> Any:
    """Return what a program has written about itself, once it is there."""
    wait_until(lambda: path.exists() and path.read_text().endswith("}"), f"{path.name} is written")
    return json.loads(path.read_text())


def wait_gone(*pids: int) -> None:
    """Wait until none of these processes is alive."""
    wait_until(lambda: not any(is_alive(pid) for pid in pids), f"{pids} are gone")
