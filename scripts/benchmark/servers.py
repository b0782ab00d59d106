"""The servers that are compared, one worker each, and how each is told to serve the same application."""

from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from . import scenarios
from .scenarios import BROWSED, VARIED, Scenario

# What scripts/bench --install asks pip for. fastwsgi still imports pkg_resources, which setuptools 81 has dropped.
PACKAGES = (
    ("gunicorn",),
    ("uvicorn[standard]",),
    ("granian",),
    ("bjoern",),
    ("fastwsgi", "setuptools<81"),
    ("fastpysgi",),
    ("uwsgi",),
    ("waitress",),
)
# As many as are held at once in any scenario, and some.
MOST = 5000

CONFIG = """
[master]
control = "bench.sock"
[log]
level = "warning"
{log}
[pool.web]
listen = ["127.0.0.1:{{port}}"]
{application}
workers = 1
threads = {threads}
max_connections = 20000
{tls}
"""
TLS = '[pool.web.tls]\ncertificate = "{certificate}"\nkey = "{key}"'


@dataclass(frozen=True)
class Server:
    """A way to serve.

    In its command and its configuration stand ``{port}``, ``{config}``, ``{certificate}`` and ``{key}``
    for what is chosen later.

    Attributes:
        name: what people call it.
        command: the program and its arguments.
        package: what has to be installed for it; empty if nothing has.
        config: the contents of a configuration file.
        source: a folder to import from before all others.
        only: the scenarios that it takes part in; empty for all.
        lacks: paths of the application that it cannot serve.

    """

    name: str
    command: tuple[str, ...]
    package: str = ""
    config: str = ""
    source: Path | None = None
    only: tuple[Scenario, ...] = ()
    lacks: tuple[str, ...] = ()

    def version(self) -> str | None:
        """Return the version that is installed beside this interpreter, None if there is none."""
        if not self.package:
            return ""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def takes_part_in(self, scenario: Scenario) -> bool:
        """Return whether a scenario is for it."""
        return scenario.path not in self.lacks and (not self.only or scenario in self.only)


@dataclass(frozen=True)
class Group:
    """Servers that are comparable, and what they are compared in; the first one is 1 in all ratios."""

    servers: tuple[Server, ...]
    scenarios: tuple[Scenario, ...]
    scheme: str = "http"


def prefork(
    name: str,
    *,
    application: str = 'wsgi = "bench_app:app"',
    threads: int = 1,
    log: str = "",
    tls: str = "",
    only: tuple[Scenario, ...] = (),
) -> Server:
    """Return prefork with a configuration."""
    config = CONFIG.format(application=application, threads=threads, log=log, tls=tls)
    command = (sys.executable, "-m", "prefork", "run", "{config}")
    return Server(name, command, config=config, only=only)


def with_log(access_format: str) -> Server:
    """Return prefork with an access log."""
    log = f'access = "access.log"\naccess_format = "{access_format}"'
    return prefork(f"prefork, access log {access_format}", log=log, only=(VARIED, BROWSED))


def module(name: str, package: str, *options: str, lacks: tuple[str, ...] = ()) -> Server:
    """Return a server that is a module to be run by Python."""
    return Server(name, (sys.executable, "-m", package, *options), package, lacks=lacks)


def function(name: str, package: str, application: str = "app", lacks: tuple[str, ...] = ()) -> Server:
    """Return a server that is a function to be called: ``run(application, host, port)``."""
    code = f"import {package}, bench_app; {package}.run(bench_app.{application}, '127.0.0.1', {{port}})"
    return Server(name, (sys.executable, "-c", code), package, lacks=lacks)


PORT = ("--port", "{port}")
BIND = ("--bind", "127.0.0.1:{port}", "--log-level", "warning", "--worker-connections", str(MOST))
GTHREAD = (*BIND, "--worker-class", "gthread", "--threads", "4")
UVICORN = ("--lifespan", "off", "--log-level", "warning", "--no-access-log", *PORT)
GRANIAN = ("--no-ws", "--log-level", "warning", "--backlog", "2048", *PORT)
# Its HTTP router holds the connections and hands requests to the worker: the way it keeps connections alive.
UWSGI = (
    "--http",
    "127.0.0.1:{port}",
    "--http-keepalive",
    "--disable-logging",
    "--listen",
    "1024",
    "--die-on-term",
)

HTTP = Group(
    (
        prefork("prefork"),
        prefork("prefork, 4 threads", threads=4),
        *(with_log(name) for name in ("common", "combined", "json")),
        function("bjoern", "bjoern"),
        function("fastwsgi", "fastwsgi"),
        function("fastpysgi", "fastpysgi"),
        function("fastpysgi, ASGI", "fastpysgi", "asgi", lacks=("/file",)),
        module("granian", "granian", *GRANIAN, "--interface", "wsgi", "bench_app:app"),
        module(
            "granian, ASGI", "granian", *GRANIAN, "--interface", "asginl", "bench_app:asgi", lacks=("/file",)
        ),
        Server(
            "uWSGI",
            (str(Path(sys.executable).parent / "uwsgi"), *UWSGI, "--module", "bench_app:app"),
            "uwsgi",
        ),
        module("uvicorn, ASGI", "uvicorn", *UVICORN, "bench_app:asgi", lacks=("/file",)),
        module("uvicorn, WSGI", "uvicorn", "--interface", "wsgi", *UVICORN, "bench_app:app"),
        module(
            "waitress",
            "waitress",
            "--listen=127.0.0.1:{port}",
            f"--connection-limit={MOST}",
            "--asyncore-use-poll",  # select(2) ends at descriptor 1023
            "bench_app:app",
        ),
        module("gunicorn gthread", "gunicorn", *GTHREAD, "bench_app:app"),
        module("gunicorn sync", "gunicorn", *BIND, "--worker-class", "sync", "bench_app:app"),
    ),
    scenarios.HTTP,
)
FILES = ("--certfile", "{certificate}", "--keyfile", "{key}")
SSL_FILES = ("--ssl-certfile", "{certificate}", "--ssl-keyfile", "{key}")
SECURE = Group(
    (
        prefork("prefork", tls=TLS),
        prefork("prefork, 4 threads", tls=TLS, threads=4),
        module(
            "granian",
            "granian",
            *GRANIAN,
            "--interface",
            "wsgi",
            "--ssl-certificate",
            "{certificate}",
            "--ssl-keyfile",
            "{key}",
            "bench_app:app",
        ),
        module("uvicorn, ASGI", "uvicorn", *UVICORN, *SSL_FILES, "bench_app:asgi"),
        module("gunicorn gthread", "gunicorn", *GTHREAD, *FILES, "bench_app:app"),
    ),
    scenarios.TLS,
    "https",
)
SOCKETS = Group(
    (
        prefork("prefork handler", application='handler = "bench_app:handle"'),
        Server("bare loop", (sys.executable, "-c", "import bench_app; bench_app.bare({port})")),
    ),
    scenarios.SOCKETS,
)
GROUPS = (HTTP, SECURE, SOCKETS)


def compared_with(group: Group, source: Path) -> Group:
    """Return a group of prefork here and of the same servers from another checkout, and nothing else."""
    own = [server for server in group.servers if server.config]
    others = [replace(server, name=f"{server.name} ({source.name})", source=source) for server in own]
    pairs = tuple(server for pair in zip(own, others, strict=True) for server in pair)
    return Group(pairs, group.scenarios, group.scheme)
