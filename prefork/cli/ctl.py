"""The commands that talk to a running server: status, reload, scale, stop, reopen, stacks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from prefork.control.client import Client
from prefork.control.messages import ServerStatus
from prefork.errors import CommandError, UsageError
from prefork.units import format_duration

# A master answers such questions at once, whatever its workers do; stacks are written by the workers.
PATIENCE = 10.0
PATIENCE_WITH_WORKERS = 30.0

Say = Callable[[str], None]


def find_control(target: str, settings: Sequence[str]) -> str:
    """Return the control socket's path for a target: the path itself, or what the TOML file says.

    Raises ConfigError for a wrong file, UsageError for settings that would have no effect.
    """
    if os.path.isfile(target) or target.endswith(".toml"):
        from prefork.cli.run import source

        _check_settings(settings)
        return source(target, settings).control()
    if settings:
        raise UsageError(f"--set changes a TOML file's values, and {target} is not a TOML file")
    return target


def _check_settings(settings: Sequence[str]) -> None:
    for setting in settings:
        if not setting.startswith("master."):
            hint = "write it into the file and reload, or give it to prefork run"
            raise UsageError(
                f"--set {setting}: a running server is only found by master.*, it is not changed", hint
            )


def status(target: str, settings: Sequence[str], width: int | None, color: bool) -> str:
    """Return the server's state for people: lines of at most ``width`` columns (None: as long as they are)."""
    from prefork.cli.render import status_text

    path = find_control(target, settings)
    try:
        return status_text(msgspec.convert(_call(path, "status", {}, PATIENCE), ServerStatus), width, color)
    except msgspec.ValidationError as error:
        raise CommandError(
            f"the server on {path} tells its state in another way: {error}",
            "it may run another version of prefork: prefork status --json prints what it tells",
        ) from error


def status_json(target: str, settings: Sequence[str]) -> str:
    """Return the server's state for programs, just as the server tells it."""
    result = _call(find_control(target, settings), "status", {}, PATIENCE)
    return json.dumps(result, indent=2, ensure_ascii=False)


def reload(target: str, settings: Sequence[str], say: Say) -> str:
    """Reload and wait for the end of the rollout; returns how it went."""
    result = _call(find_control(target, settings), "reload", {}, None, say)
    return f"reloaded: generation {result['generation']} serves, after {format_duration(result['seconds'])}"


def upgrade(target: str, settings: Sequence[str], say: Say) -> str:
    """Have the server execute the program anew, and wait for the end of the rollout; returns how it went."""
    result = _call(find_control(target, settings), "upgrade", {}, None, say)
    return f"upgraded: generation {result['generation']} serves, after {format_duration(result['seconds'])}"


def scale(target: str, settings: Sequence[str], pool: str, workers: int, say: Say) -> str:
    """Change a pool's number of workers; returns how it went."""
    result = _call(find_control(target, settings), "scale", {"pool": pool, "workers": workers}, None, say)
    return f"{result['pool']}: {result['workers']} workers wanted"


def stop(target: str, settings: Sequence[str], now: bool, say: Say) -> str:
    """Stop the server and wait until it has ended."""
    with Client(find_control(target, settings)) as client:
        client.stop(now, say)
    return "stopped"


def reopen(target: str, settings: Sequence[str]) -> str:
    """Have the log file reopened."""
    _call(find_control(target, settings), "reopen", {}, PATIENCE)
    return "log reopened"


def stacks(target: str, settings: Sequence[str], worker: str | None) -> str:
    """Return the stacks of the workers' threads."""
    from prefork.cli.render import stacks_text

    result = _call(find_control(target, settings), "stacks", {"worker": worker}, PATIENCE_WITH_WORKERS)
    return stacks_text(result["workers"])


def _call(
    path: str, command: str, arguments: dict[str, Any], timeout: float | None, say: Say = lambda _text: None
) -> dict[str, Any]:
    with Client(path, timeout) as client:
        return client.call(command, arguments, say)
