"""Running a server on a core of its own, asking it from another one, and reading what that has cost."""

from __future__ import annotations

import http.client
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .bench_app import FILE_SIZE, FILE_VARIABLE
from .scenarios import Scenario
from .servers import Server

ROOT = Path(__file__).resolve().parent.parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
BOOT_TIME = 20.0
STOP_TIME = 10.0
ANSWER_TIME = 10.0
UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}


class Failure(Exception):  # noqa: N818 - a result of a measurement, not a fault of the benchmark
    """A server, or wrk, did not do what it should have."""


@dataclass(frozen=True)
class Figures:
    """What one server did in one round.

    Attributes:
        rate: requests per second.
        cpu: microseconds of all its processes per request.
        p99: microseconds within which 99 of 100 requests were answered.
        memory: bytes of proportional set size of all its processes.

    """

    rate: float
    cpu: float
    p99: float
    memory: float


@dataclass(frozen=True)
class Running:
    """A server that runs: its first process, and where it listens."""

    pid: int
    port: int
    scheme: str


def measure(running: Running, scenario: Scenario, seconds: int) -> Figures:
    """Let wrk loose on a server and return what came of it. Raises Failure."""
    check_answer(running, scenario)
    with idle_connections(running, scenario):
        before = cpu_seconds(running.pid)
        rate, count, p99 = run_wrk(running, scenario, seconds)
        used = cpu_seconds(running.pid) - before
        return Figures(rate, used / count * 1e6, p99, memory(running.pid))


@contextmanager
def started(server: Server, scheme: str) -> Iterator[Running]:
    """Run a server on the first core. Raises Failure if it does not start."""
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = prepare(server, folder, port, scheme)
        log = folder / "output"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(server, folder),
                preexec_fn=lambda: pin(0),
                stdout=output,
                stderr=output,
            )
        try:
            if not comes_up(process, port):
                raise Failure(f"{server.name} does not start:\n{log.read_text()}")
            yield Running(process.pid, port, scheme)
        finally:
            stop(process)


def prepare(server: Server, folder: Path, port: int, scheme: str) -> list[str]:
    """Fill a server's folder; return its command."""
    names = {
        "port": port,
        "config": folder / "bench.toml",
        "certificate": folder / "cert.pem",
        "key": folder / "key.pem",
    }
    (folder / "bench.toml").write_text(server.config.format(**names))
    (folder / "file").write_bytes(bytes(FILE_SIZE))
    if scheme == "https":
        make_certificate(folder)
    return [word.format(**names) for word in server.command]


def environment(server: Server, folder: Path) -> dict[str, str]:
    sources = [server.source or ROOT, Path(__file__).parent]
    path = os.pathsep.join(str(source) for source in sources)
    return {**os.environ, "PYTHONPATH": path, FILE_VARIABLE: str(folder / "file")}


def make_certificate(folder: Path) -> None:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder,
        check=True,
        stderr=subprocess.DEVNULL,
    )


def pin(number: int) -> None:
    """Keep the calling process on one of the cores, if there are at least two."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, {cores[number]})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def allow_many_connections() -> None:
    """Raise the limit of descriptors, for this process and for the servers that it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def comes_up(process: subprocess.Popen[bytes], port: int) -> bool:
    until = time.monotonic() + BOOT_TIME
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                return False
            time.sleep(0.05)
        else:
            time.sleep(0.3)  # what is done only once is not measured
            return True


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIME)
    except subprocess.TimeoutExpired:
        for pid in tree(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()


def check_answer(running: Running, scenario: Scenario) -> None:
    """Ask once; raise Failure unless the whole answer comes."""
    client = connect(running)
    try:
        size = ask(client, scenario)
    except (OSError, http.client.HTTPException) as error:
        raise Failure(f"{scenario.path} is not answered: {error!r}") from error
    finally:
        client.close()
    if size != scenario.size:
        raise Failure(f"{scenario.path} is answered with {size} bytes, expected {scenario.size}")


def connect(running: Running) -> http.client.HTTPConnection:
    if running.scheme == "http":
        return http.client.HTTPConnection("127.0.0.1", running.port, timeout=ANSWER_TIME)
    context = ssl._create_unverified_context()  # noqa: SLF001 - the certificate has just been made here
    return http.client.HTTPSConnection("127.0.0.1", running.port, timeout=ANSWER_TIME, context=context)


def ask(client: http.client.HTTPConnection, scenario: Scenario) -> int:
    """Send one request; return the size of the answer's body, or -1 if the answer is no success."""
    headers = dict(line.split(": ", 1) for line in scenario.headers)
    body = b"x" * scenario.form
    client.request("POST" if body else "GET", scenario.path, body or None, headers)
    answer = client.getresponse()
    size = len(answer.read())
    return size if answer.status == 200 else -1


@contextmanager
def idle_connections(running: Running, scenario: Scenario) -> Iterator[None]:
    """Hold connections that have asked once and say no more."""
    clients = [connect(running) for _ in range(scenario.idle)]
    try:
        for client in clients:
            ask(client, scenario)
        yield
    except (OSError, http.client.HTTPException) as error:
        raise Failure(f"{scenario.idle} connections are not held: {error!r}") from error
    finally:
        for client in clients:
            client.close()


def run_wrk(running: Running, scenario: Scenario, seconds: int) -> tuple[float, int, float]:
    """Return requests per second, how many there were, and the 99th percentile of microseconds. Raises Failure."""
    url = f"{running.scheme}://127.0.0.1:{running.port}{scenario.path}"
    command = ["wrk", "-t1", f"-d{seconds}s", "--latency", *scenario.options()]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        if scenario.script():
            script.write(scenario.script())
            script.flush()
            command += ["-s", script.name]
        done = subprocess.run(
            [*command, url], capture_output=True, text=True, check=False, preexec_fn=lambda: pin(1)
        )
    if done.returncode:
        raise Failure(f"wrk: {done.stdout}{done.stderr}")
    return read_wrk(done.stdout)


def read_wrk(output: str) -> tuple[float, int, float]:
    """Return what wrk's output says; see ``run_wrk``."""
    count = re.search(r"(\d+) requests in", output)
    rate = re.search(r"Requests/sec:\s*([\d.]+)", output)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s|m)\b", output)
    if count is None or rate is None or p99 is None or not int(count[1]):
        raise Failure(f"wrk got no answers:\n{output}")
    if errors := re.search(r"Non-2xx.*", output):
        raise Failure(f"wrk got other answers than 200: {errors[0]}")
    return float(rate[1]), int(count[1]), float(p99[1]) * UNITS[p99[2]]


def tree(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
        children.setdefault(parent, []).append(int(entry.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def cpu_seconds(pid: int) -> float:
    """Return what a process tree has used of the processor, the dead and waited-for included."""
    stats = (look_up(one, "stat").rpartition(")")[2].split() for one in tree(pid))
    return sum(int(ticks) for fields in stats for ticks in fields[11:15]) / TICKS


def memory(pid: int) -> float:
    """Return the proportional set size of a process tree in bytes."""
    sizes = (re.search(r"^Pss:\s+(\d+) kB", look_up(one, "smaps_rollup"), re.MULTILINE) for one in tree(pid))
    return sum(int(size[1]) * 1024.0 for size in sizes if size)


def look_up(pid: int, name: str) -> str:
    """Return what the kernel says about a process; nothing if it has just ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def has_wrk() -> bool:
    return shutil.which("wrk") is not None
