"""As the only server of a container: pid 1, without any right, with signals as a container's runtime sends them."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import PREFORK, body_of, children_of, fetch, wait_until

NOBODY = "65534"
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
UNSHARE = ["unshare", "-pf", "--mount-proc"]

pytestmark = pytest.mark.skipif(
    subprocess.run([*UNSHARE, *AS_NOBODY, "true"], capture_output=True, check=False).returncode != 0,
    reason="a pid namespace and another user need rights that this machine does not give",
)

APP = 'import os\ndef app(environ, start_response):\n    start_response("200 OK", [])\n    return [str(os.getuid()).encode()]\n'
CONFIG = """
[master]
control = "run/shop.sock"
[log]
file = "run/server.log"
[pool.web]
listen = ["unix:run/web.sock"]
wsgi = "contained:app"
workers = 2
"""

Contain = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
def home() -> Iterator[Path]:
    """Give a folder that the user nobody can enter: pytest closes its own, at each start, to all but its user."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def contain(home: Path) -> Iterator[Contain]:
    """Give a function that starts a server with an application's text as nobody, and as pid 1 of a namespace."""
    started = []
    # As an emptyDir is: anybody's, and root's.
    (home / "run").mkdir()
    (home / "run").chmod(0o777)
    (home / "server.toml").write_text(CONFIG)

    def start(text: str) -> subprocess.Popen[bytes]:
        (home / "contained.py").write_text(text)
        command = [*UNSHARE, *AS_NOBODY, *PREFORK, "run", "server.toml"]
        environment = {**os.environ, "PYTHONPATH": str(home)}
        started.append(subprocess.Popen(command, cwd=home, env=environment, stderr=subprocess.PIPE))
        return started[-1]

    yield start
    for outer in started:
        for child in children_of(outer.pid):
            os.kill(child, signal.SIGKILL)  # with pid 1 its whole namespace ends
        outer.kill()
        outer.communicate()


def master_of(outer: subprocess.Popen[bytes], folder: Path) -> int:
    log = folder / "run/server.log"
    wait_until(lambda: log.exists() and "generation 1 serves" in log.read_text(), "it serves")
    return next(iter(children_of(outer.pid)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_pid_1_without_rights_serves_and_ends_with_0(contain: Contain, home: Path, number: signal.Signals):
    outer = contain(APP)
    master = master_of(outer, home)
    assert body_of(fetch(str(home / "run/web.sock"))) == NOBODY.encode()
    os.kill(master, number)
    assert outer.wait(20) == 0


def test_pid_1_reloads_and_answers_its_probe(contain: Contain, home: Path):
    outer = contain(APP)
    master = master_of(outer, home)
    os.kill(master, signal.SIGHUP)
    wait_until(
        lambda: "generation 2 serves" in (home / "run/server.log").read_text(), "the second generation"
    )
    probe = subprocess.run([*PREFORK, "status", "server.toml"], cwd=home, capture_output=True, check=False)
    assert probe.returncode == 0, probe.stderr


def test_pid_1_ends_with_4_if_the_application_does_not_load(contain: Contain):
    outer = contain("1 / 0")
    _, said = outer.communicate(timeout=20)
    assert outer.returncode == 4
    assert b"ZeroDivisionError" in said
