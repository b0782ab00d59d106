"""Hooks: which functions of a module are called, what their failures become, and what looks like a mistake."""

from __future__ import annotations

import pytest

from prefork.errors import BootError
from prefork.handlers.context import Worker
from prefork.handlers.hooks import load_hooks
from prefork.log import logger
from prefork.scoreboard import Board


@pytest.fixture
def worker():
    board = Board(rows=1, lanes=1)
    return Worker("web", 0, 1, board.row(board.claim()))


@pytest.fixture
def write(tmp_path, monkeypatch, request):
    """Return the hooks of a module with a given text."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"hooks_{abs(hash(request.node.name))}"  # a module is imported once per process

    def write_module(text):
        (tmp_path / f"{name}.py").write_text(text)
        return load_hooks(name)

    return write_module


def test_without_a_module_nothing_is_called(worker):
    hooks = load_hooks(None)
    hooks.run("ready", worker)
    assert hooks.try_run("exit", worker)
    assert not hooks.has("drain")


def test_a_hook_gets_the_worker(write, worker):
    hooks = write("seen = []\ndef ready(worker): seen.append(worker)\nseen_by = ready.__globals__['seen']\n")
    hooks.run("ready", worker)
    assert hooks._functions["ready"].__globals__["seen"] == [worker]


@pytest.mark.parametrize("failure", ["raise RuntimeError('on purpose')", "raise SystemExit(3)"])
def test_a_failure_is_a_boot_failure_with_the_functions_name_and_its_own_traceback(write, worker, failure):
    hooks = write(f"def after_fork(worker):\n    {failure}\n")
    with pytest.raises(
        BootError, match=r"^hook after_fork failed: (RuntimeError: on purpose|SystemExit: 3)$"
    ) as caught:
        hooks.run("after_fork", worker)
    assert f"in after_fork\n    {failure}" in caught.value.traceback
    assert "handlers/hooks.py" not in caught.value.traceback


def test_a_late_failure_is_logged(write, worker, caplog, monkeypatch):
    monkeypatch.setattr(logger, "propagate", True)
    hooks = write("def exit(worker):\n    raise RuntimeError('on purpose')\n")
    assert not hooks.try_run("exit", worker)
    assert caplog.messages[0].startswith("hook exit failed: RuntimeError: on purpose\nTraceback")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ready = 3", "expected def ready(worker), found 3"),
        ("async def drain(worker): pass", "expected def drain(worker), found async def"),
        ("def exit(): pass", "expected def exit(worker), found def exit()"),
        ("def ready(worker, more): pass", "expected def ready(worker), found def ready(worker, more)"),
        (
            "import nonsense_that_is_not_there",
            "ModuleNotFoundError: No module named 'nonsense_that_is_not_there'",
        ),
        ("raise SystemExit", "SystemExit"),
    ],
)
def test_a_module_that_cannot_be_used_is_refused(write, text, message):
    with pytest.raises(BootError) as caught:
        write(text)
    where, _, what = caught.value.message.partition(": ")
    assert where.startswith("[hooks] hooks_")
    assert what == message


@pytest.mark.parametrize("name", ["befor_fork", "afterFork", "redy", "drian", "exit_"])
def test_a_name_that_is_nearly_right_is_doubted(write, name):
    (doubt,) = write(f"def {name}(worker): pass\n").doubts
    assert f"nobody calls {name}; did you mean " in doubt


@pytest.mark.parametrize(
    "text",
    [
        "def ready(worker): pass",
        "def prepare(worker): pass",
        "def redy(): pass",
        "def redy(a, b): pass",
        "redy = 3",
        "from atexit import register as redy",
        "from prefork import current as redy",
    ],
)
def test_nothing_else_is_doubted(write, text):
    assert write(text).doubts == ()
