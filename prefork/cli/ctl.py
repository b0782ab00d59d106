"""The commands that talk to running servers: list, status, reload, restart, scale, signal, stop, reopen, stacks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from prefork.cli.target import connect, user_name
from prefork.control import registry
from prefork.control.client import PATIENCE, TRIES, Client, NoServerError, RefusedError
from prefork.control.messages import ServerStatus
from prefork.control.registry import Entry
from prefork.errors import CommandError
from prefork.units import format_duration

# Stacks are written by the workers.
PATIENCE_WITH_WORKERS = 30.0
# For each server that prefork list asks; so many are asked at once, or a few that are stopped would hold up the others.
SHORT_PATIENCE = 5.0
ASKED_AT_ONCE = 16

Say = Callable[[str], None]


def status(target: str, settings: Sequence[str], width: int | None, color: bool) -> str:
    """Return the server's state for people: lines of at most ``width`` columns (None: as long as they are)."""
    from prefork.cli.render import status_text

    answer = _ask(target, settings, "status", {})
    try:
        return status_text(msgspec.convert(answer, ServerStatus), width, color)
    except msgspec.ValidationError as error:
        raise CommandError(
            f"the server of {target} tells its state in another way: {error}",
            "it may run another version of prefork: prefork status --json prints what it tells",
        ) from error


def status_json(target: str, settings: Sequence[str]) -> str:
    """Return the server's state for programs, just as the server tells it."""
    return to_json(_ask(target, settings, "status", {}))


def reload(target: str, settings: Sequence[str], pools: Sequence[str], say: Say) -> str:
    """Reload all, or these pools only, and wait for the end of the rollout; returns how it went."""
    arguments = {"pools": list(pools)} if pools else {}
    result = _call(target, settings, "reload", arguments, say, lasting=True)
    return f"reloaded: generation {result['generation']} serves, after {format_duration(result['seconds'])}"


def restart(target: str, settings: Sequence[str], pool: str, say: Say) -> str:
    """Replace the workers of a pool and wait until that is done; returns how it went."""
    result = _call(target, settings, "restart", {"pool": pool}, say, lasting=True)
    return f"restarted {pool}: generation {result['generation']}, after {format_duration(result['seconds'])}"


def signal(target: str, settings: Sequence[str], pool: str, name: str) -> str:
    """Send a signal to the programs of a pool; returns to how many."""
    arguments = {"pool": pool, "signal": name}
    result = _call(target, settings, "signal", arguments)
    programs = result["programs"]
    return f"{pool}: sent {result['signal']} to {programs} program{'s' * (programs != 1)}"


def upgrade(target: str, settings: Sequence[str], say: Say) -> str:
    """Have the server execute the program anew, and wait for the end of the rollout; returns how it went."""
    result = _call(target, settings, "upgrade", {}, say, lasting=True)
    return f"upgraded: generation {result['generation']} serves, after {format_duration(result['seconds'])}"


def scale(target: str, settings: Sequence[str], pool: str, workers: int, say: Say) -> str:
    """Change a pool's number of workers, and wait until they are there; returns how it went."""
    arguments = {"pool": pool, "workers": workers}
    result = _ask(target, settings, "scale", arguments, say=say, lasting=True)
    if result["stopped"]:
        return f"{pool}: stopped; prefork scale starts it again"
    return f"{pool}: {result['ready']} of {result['workers']} workers ready"


def stop(target: str, settings: Sequence[str], now: bool, say: Say) -> str:
    """Stop the server and wait until it has ended."""
    with connect(target, settings) as client:
        client.stop(now, say)
    return "stopped"


def reopen(target: str, settings: Sequence[str]) -> str:
    """Have the log file reopened."""
    _call(target, settings, "reopen", {})
    return "log reopened"


def stacks(target: str, settings: Sequence[str], worker: str | None) -> str:
    """Return the stacks of the workers' threads."""
    from prefork.cli.render import stacks_text

    result = _ask(target, settings, "stacks", {"worker": worker}, PATIENCE_WITH_WORKERS)
    return stacks_text(result["workers"])


def servers() -> list[dict[str, Any]]:
    """Return all servers that this user may see, and forget those that have ended without a word."""
    alive = []
    for entry in registry.entries():
        if entry.has_process or entry.listens:
            alive.append(entry)
        else:
            registry.forget(entry)
    with ThreadPoolExecutor(ASKED_AT_ONCE) as askers:
        return list(askers.map(_server, alive))


def _server(entry: Entry) -> dict[str, Any]:
    """Return what is known of a server, and what it says of itself now."""
    record = entry.record
    known = {
        "name": record.name,
        "state": "no answer",
        "generation": None,
        "pid": record.pid,
        "user": user_name(entry.uid),
        "uptime": None,
        "version": None,
        "file": record.file,
        "real": record.real,
        "control": record.control,
    }
    try:
        with Client(record.bound, SHORT_PATIENCE, entry.uid) as client:
            identity = client.identify()
    except NoServerError:
        return known | {"state": "no control socket"}
    except CommandError:
        return known
    if identity.pid != record.pid:
        return known | {"state": "no control socket"}  # another server's is there
    return known | {
        "state": identity.state,
        "generation": identity.generation,
        "uptime": identity.uptime,
        "version": identity.version,
    }


def server_list(width: int | None, color: bool) -> str:
    """Return the table of running servers for people."""
    from prefork.cli.render import servers_text

    return servers_text(servers(), width, color)


def server_list_json() -> str:
    """Return the running servers for programs."""
    return to_json(servers())


def to_json(value: Any) -> str:
    """Return JSON that no terminal obeys: json leaves the control characters above ASCII as they are."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(sign if sign.isprintable() or sign == "\n" else json.dumps(sign)[1:-1] for sign in text)


def _call(
    target: str,
    settings: Sequence[str],
    command: str,
    arguments: dict[str, Any],
    say: Say = lambda _text: None,
    *,
    lasting: bool = False,
) -> dict[str, Any]:
    with connect(target, settings) as client:
        return client.call(command, arguments, say, lasting=lasting)


def _ask(
    target: str,
    settings: Sequence[str],
    command: str,
    arguments: dict[str, Any],
    timeout: float = PATIENCE,
    say: Say = lambda _text: None,
    *,
    lasting: bool = False,
) -> dict[str, Any]:
    """Return the answer to what may be asked twice without harm: if an upgrade comes between, it is."""
    for last in (*[False] * (TRIES - 1), True):
        try:
            with connect(target, settings, timeout) as client:
                return client.call(command, arguments, say, lasting=lasting)
        except RefusedError as error:
            if last or not error.again:
                raise
    raise AssertionError("the last try returns or raises")
