"""The rooms of the house keep their doors: who may import whom, and who may do what, as the design's table says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "prefork"

# The design's table. "prefork" is the package's own __init__: what authors of handlers import.
BASE = {"errors", "units"}
MAY_IMPORT = {
    "errors": set(),
    "units": {"errors"},
    "log": BASE,
    "config": BASE,
    "system": BASE,
    "scoreboard": BASE,
    "control": BASE,
    "protocols": {"errors"},
    "supervisor": BASE | {"config"},
    "metrics": {"scoreboard", "units"},
    "handlers": BASE | {"protocols", "scoreboard", "config", "log"},
    "worker": BASE | {"handlers", "system", "scoreboard", "config", "log"},
    "master": BASE
    | {"supervisor", "worker", "system", "scoreboard", "control", "metrics", "config", "log", "prefork"},
    "cli": BASE | {"master", "control", "metrics", "config", "log", "prefork"},
    "examples": {"prefork"},
    "program": BASE | {"cli", "master", "control", "handlers", "config", "log"},
    "executed": BASE | {"worker", "master", "system", "scoreboard", "config"},
    "__init__": {"handlers", "program"},
    "__main__": {"cli"},
}

PURE = {"errors", "units", "config", "supervisor", "protocols", "metrics"}
EFFECTS = {
    "os",
    "signal",
    "socket",
    "select",
    "selectors",
    "time",
    "threading",
    "asyncio",
    "subprocess",
    "mmap",
    "random",
}

# Of os: what only system/ does. os._exit is an end, not a way to steer another process.
PROCESSES = {
    "fork",
    "forkpty",
    "kill",
    "killpg",
    "wait",
    "waitpid",
    "waitid",
    "wait3",
    "wait4",
    "posix_spawn",
    "system",
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST, path: Path) -> Iterator[tuple[str, int]]:
    """Yield the dotted name and the line of each import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join(("prefork", *path.relative_to(PACKAGE).parts)[: -node.level]) if node.level else ""
            )
            module = ".".join(filter(None, (base, node.module)))
            # "from prefork import control" names a room, "from prefork import current" does not: see room_of.
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def room_of(name: str) -> str | None:
    """Return the room that an import enters, or None if it leaves the house."""
    top, _, rest = name.partition(".")
    if top != "prefork":
        return None
    first = rest.partition(".")[0]
    return (
        first if ((PACKAGE / first).is_dir() and first) or (PACKAGE / f"{first}.py").is_file() else "prefork"
    )


def trespasses(tree: ast.AST, path: Path) -> list[str]:
    here = room(path)
    allowed = MAY_IMPORT[here] | {here}
    found = [
        f"line {line}: {name}" for name, line in imported(tree, path) if room_of(name) not in {None, *allowed}
    ]
    if here in PURE:
        tops = ((name.partition(".")[0], line) for name, line in imported(tree, path))
        found += [f"line {line}: {top}" for top, line in tops if top in EFFECTS]
    return found


def steered(tree: ast.AST) -> list[str]:
    """Return the places that fork, exec, kill or wait, and where subprocess is used."""
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    ]
    return [
        f"line {node.lineno}: {node.value.id}.{node.attr}"
        for node in calls
        if (node.value.id == "os" and (node.attr in PROCESSES or node.attr.startswith(("exec", "spawn"))))
        or (node.value.id, node.attr) == ("signal", "pidfd_send_signal")
        or node.value.id in {"subprocess", "multiprocessing"}
    ]


def ended(tree: ast.AST) -> list[str]:
    """Return the places that print or exit."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        f"line {node.lineno}: {ast.unparse(node.func)}"
        for node in names
        if ast.unparse(node.func) in {"print", "exit", "quit", "sys.exit"}
    ]


def parse(path: Path) -> ast.AST:
    return ast.parse(path.read_text(), str(path))


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", modules(), ids=name)
def test_modules_import_only_what_their_room_may(path):
    assert trespasses(parse(path), path) == []


@pytest.mark.parametrize("path", [path for path in modules() if room(path) != "system"], ids=name)
def test_only_system_steers_processes(path):
    assert steered(parse(path)) == []


@pytest.mark.parametrize(
    "path", [path for path in modules() if room(path) not in {"cli", "__main__"}], ids=name
)
def test_only_the_command_line_prints_and_exits(path):
    assert ended(parse(path)) == []


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("config/load.py", "import os"),
        ("config/load.py", "from os import path"),
        ("config/load.py", "def f():\n    import time"),
        ("config/load.py", "import asyncio.events"),
        ("config/load.py", "from prefork.system.cpus import usable_cpus"),
        ("config/load.py", "from prefork import system"),
        ("config/load.py", "from .. import log"),
        ("config/load.py", "from ..log import x"),
        ("worker/evented.py", "from prefork.protocols.http1 import Parser"),
        ("worker/evented.py", "import prefork.protocols"),
        ("cli/run.py", "from prefork.worker import main"),
        ("cli/run.py", "from prefork.supervisor.server import Supervisor"),
        ("supervisor/pool.py", "from random import random"),
        ("errors.py", "from prefork.units import shown"),
    ],
)
def test_trespassing_is_noticed(path, code):
    assert len(trespasses(ast.parse(code), PACKAGE / path)) == 1


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (
            "config/load.py",
            "import posixpath, msgspec\nfrom prefork.units import shown\nfrom prefork import errors",
        ),
        ("config/load.py", "from .schema import Pool\nfrom . import schema"),
        ("worker/evented.py", "import os, socket\nfrom prefork.handlers.wsgi import x"),
        ("cli/app.py", "from prefork import __version__"),
    ],
)
def test_open_doors_are_open(path, code):
    assert trespasses(ast.parse(code), PACKAGE / path) == []


def test_steering_and_ending_are_noticed():
    tree = ast.parse(
        "os.fork()\nos.execvp(a)\nos._exit(1)\nsubprocess.run(x)\nprint(1)\nsys.exit()\nloop.exit()"
    )
    assert len(steered(tree)) == 3
    assert len(ended(tree)) == 2
