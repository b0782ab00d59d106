"""Runs the real program: starts a server in a folder of its own, waits for what its log says, and leaves nobody behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prefork.control.client import Client
from prefork.errors import CommandError

# Long enough for a machine that is loaded many times over; nothing is ever awaited for so long on an idle one.
PATIENCE = 30.0
APPS = Path(__file__).parent / "apps"
PREFORK = [sys.executable, "-m", "prefork"]
RUN = [*PREFORK, "run", "server.toml"]


class Server:
    """A ``prefork run`` in ``folder`` with a given configuration.

    ``inherit`` are named sockets that it gets as from systemd.
    Its control socket is ``folder/control.sock``, its applications come from tests/apps, its log goes to stderr.
    stdout is a pipe that all of its processes share: its end of file says that the last of them is gone.
    ``command`` runs it in another way.
    """

    def __init__(
        self,
        folder: Path,
        config: str,
        *options: str,
        env: dict[str, str] | None = None,
        inherit: Sequence[tuple[str, socket.socket]] = (),
        command: Sequence[str] = RUN,
    ) -> None:
        self.folder = folder
        self.control = folder / "control.sock"
        self.file = folder / "server.toml"
        self.write(config)
        self.lines: list[str] = []
        self._news = threading.Condition()
        launcher, variables = _passing(inherit)
        self.process = subprocess.Popen(
            [*launcher, *command, *options],
            cwd=folder,
            env={
                **_surroundings(),
                "PYTHONPATH": f"{APPS}{os.pathsep}{folder}",
                **variables,
                **(env or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[passed.fileno() for _name, passed in inherit],
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    # What it is told.

    def write(self, config: str) -> None:
        """Write the configuration; a [master] table with the control socket is put before it unless it has one."""
        head = "" if "[master]" in config else f'[master]\ncontrol = "{self.control}"\n'
        self.file.write_text(head + config)

    def signal(self, number: int) -> None:
        """Send a signal to the master."""
        os.kill(self.process.pid, number)

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Ask through the control socket and return the result; raises prefork.errors.CommandError."""
        with Client(str(self.control), PATIENCE) as client:
            return client.call(command, arguments, lambda _text: None)

    def run(
        self, command: str, *arguments: str, timeout: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """Run ``prefork COMMAND server.toml …`` as a person would."""
        return subprocess.run(
            [*PREFORK, command, str(self.file), *arguments],
            cwd=self.folder,
            env={**_surroundings(), "PYTHONPATH": f"{APPS}{os.pathsep}{self.folder}", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    # What it says.

    @property
    def log(self) -> str:
        """All that it has logged."""
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, count: int = 1, since: int = 0, timeout: float = PATIENCE) -> list[str]:
        """Return the log lines, from line number ``since`` on, that match; wait until there are ``count`` of them."""
        wanted = re.compile(pattern)
        with self._news:
            self._news.wait_for(lambda: len(self._matching(wanted, since)) >= count, timeout)
            found = self._matching(wanted, since)
        assert len(found) >= count, f"expected {count} x {pattern!r}, found {len(found)} in:\n{self.log}"
        return found

    def everything(self) -> list[str]:
        """Return all lines, once nobody is left who could write one."""
        self._reader.join(PATIENCE)
        return self.lines

    def mark(self) -> int:
        """Return the number of lines so far, for ``wait_for``'s ``since``."""
        return len(self.lines)

    def wait_ready(self, workers: int) -> Server:
        """Wait until so many workers have said that they are ready."""
        self.wait_for(r" ready in ", workers)
        return self

    def wait_serving(self, generation: int = 1) -> Server:
        """Wait until a generation has been rolled out completely."""
        self.wait_for(rf"generation {generation} serves")
        return self

    def wait_answering(self, workers: int, pool: str | None = None) -> Server:
        """Wait until so many workers of a pool are ready, of a server whose log cannot be read."""

        def found() -> bool:
            try:
                return self.pool(pool)["ready"] == workers
            except CommandError:  # its control socket is not there yet, or nobody listens on it yet
                return False

        wait_until(found, "it serves")
        return self

    def status(self) -> dict[str, Any]:
        """Return what ``prefork status --json`` shows."""
        return self.ask("status")

    def pool(self, name: str | None = None) -> dict[str, Any]:
        """Return one pool's status; the first unless named."""
        pools = self.status()["pools"]
        return next(pool for pool in pools if name in (None, pool["name"]))

    def workers(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return the status of one pool's workers."""
        return self.pool(name)["workers"]

    def pids(self, name: str | None = None) -> set[int]:
        """Return the pids of one pool's workers."""
        return {worker["pid"] for worker in self.workers(name)}

    def address(self, pool: str | None = None, number: int = 0) -> tuple[str, int]:
        """Return host and port of a pool's TCP listener, as bound."""
        host, _, port = self.pool(pool)["listeners"][number]["address"].rpartition(":")
        return host.strip("[]"), int(port)

    def connect(self, pool: str | None = None, timeout: float = PATIENCE) -> socket.socket:
        """Return a connection to a pool's first listener."""
        return socket.create_connection(self.address(pool), timeout)

    def get(self, path: str = "/", pool: str | None = None) -> bytes:
        """Return the whole answer to a GET on a connection of its own."""
        return fetch(self.address(pool), path)

    # How it ends.

    def wait_exit(self, timeout: float = PATIENCE) -> int:
        """Return the master's exit code."""
        return self.process.wait(timeout)

    def wait_all_gone(self, timeout: float = PATIENCE) -> None:
        """Wait until no process of it, the master's children included, is left."""
        assert self.process.stdout is not None
        ended = threading.Event()
        stream = self.process.stdout

        def read_to_end() -> None:
            while stream.read1(65536):
                pass
            ended.set()

        threading.Thread(target=read_to_end, daemon=True).start()
        assert ended.wait(timeout), (
            f"somebody is left after {timeout} s:\n{processes_of(self.process.pid)}\n{self.log}"
        )

    def stop(self) -> int:
        """Stop gracefully and return the exit code, once everybody is gone."""
        self.signal(signal.SIGTERM)
        code = self.wait_exit()
        self.wait_all_gone()
        return code

    def close(self) -> None:
        """End everything, however it is; what the test has left running dies here."""
        for pid in with_descendants(session_of(self.process.pid)):
            try:
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()
        self._reader.join(PATIENCE)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def _matching(self, wanted: re.Pattern[str], since: int) -> list[str]:
        return [line for line in self.lines[since:] if wanted.search(line)]

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line.decode("utf-8", "replace").rstrip("\n"))
                self._news.notify_all()


# Becomes the program, so the pid is the one that is meant. Copies go out of the way first: numbers may overlap.
PASS_ON = """
import fcntl, os, sys
descriptors, command = sys.argv[1].split(","), sys.argv[2:]
copies = [fcntl.fcntl(int(descriptor), fcntl.F_DUPFD_CLOEXEC, 100) for descriptor in descriptors]
for number, copy in enumerate(copies, 3):
    os.dup2(copy, number)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(command[0], command)
"""


def _surroundings() -> dict[str, str]:
    """Return this process's environment without what would configure a server: that is for the tests themselves."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFORK_")}


def _passing(inherit: Sequence[tuple[str, socket.socket]]) -> tuple[list[str], dict[str, str]]:
    """Return the beginning of a command line, and variables, that pass sockets on as sd_listen_fds(3) wants them."""
    if not inherit:
        return [], {}
    descriptors = ",".join(str(passed.fileno()) for _name, passed in inherit)
    names = ":".join(name for name, _passed in inherit)
    variables = {"LISTEN_FDS": str(len(inherit)), "LISTEN_FDNAMES": names}
    return [sys.executable, "-c", PASS_ON, descriptors], variables


def fetch(address: tuple[str, int] | str, path: str = "/", timeout: float = PATIENCE) -> bytes:
    """Return the whole answer to a GET with ``Connection: close``."""
    family = (
        socket.AF_UNIX
        if isinstance(address, str)
        else socket.AF_INET6
        if ":" in address[0]
        else socket.AF_INET
    )
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        client.connect(address)
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
        return read_to_end(client)


def body_of(answer: bytes) -> bytes:
    """Return what follows the head of an answer that is not chunked."""
    return answer.partition(b"\r\n\r\n")[2]


def read_to_end(client: socket.socket) -> bytes:
    """Return everything until the server closes."""
    pieces = []
    while data := client.recv(65536):
        pieces.append(data)
    return b"".join(pieces)


def wait_until(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """Return the condition's value once it is true; for what no event announces."""
    until = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < until, f"not within {timeout} s: {what}"
        time.sleep(0.01)
    return value


def session_of(leader: int) -> list[int]:
    """Return the processes of a session, the leader's descendants."""
    return [pid for pid, stat in _stats() if int(stat[3]) == leader and stat[0] != "Z"]


def with_descendants(pids: list[int]) -> list[int]:
    """Return processes with all that are below them: programs have sessions of their own."""
    parents = {pid: int(stat[1]) for pid, stat in _stats()}
    found = list(pids)
    for pid in found:  # grows meanwhile
        found += [child for child, parent in parents.items() if parent == pid and child not in found]
    return found


def processes_of(leader: int) -> str:
    """Return a session's processes for people."""
    return "\n".join(f"{pid} {command_of(pid)}" for pid in session_of(leader))


def children_of(parent: int) -> dict[int, str]:
    """Return a process's children and their states: R, S, T, Z …"""
    return {pid: stat[0] for pid, stat in _stats() if int(stat[1]) == parent}


def command_of(pid: int) -> str:
    """Return a process's title."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    """Tell whether a process exists and is no zombie."""
    return any(found == pid and stat[0] != "Z" for found, stat in _stats())


def descriptors_of(pid: int) -> dict[int, str]:
    """Return a process's open descriptors and what they are."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[int(entry.name)] = os.readlink(entry)
        except FileNotFoundError:
            continue
    return found


def _stats() -> Iterator[tuple[int, list[str]]]:
    """Yield every process with the fields of its stat file after the name: state, parent, group, session … (proc(5))."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield int(entry.name), (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
