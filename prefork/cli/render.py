"""What people see: errors, and the tables of ``prefork status``, for a terminal of any width and for a pipe."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from prefork.config.schema import UNSEEN
from prefork.control.messages import (
    Current,
    ListenerStatus,
    PoolStatus,
    ServerStatus,
    TemplateStatus,
    WorkerStatus,
)
from prefork.units import format_duration, format_size, visible

# In a pipe nothing is cut off or wrapped: lines are as long as they are.
PIPE_WIDTH = 10_000
# Below this width the columns stand closer.
WIDE = 100
STATE_STYLES = {
    "ready": "green",
    "running": "green",
    "working": "green",
    "starting": "yellow",
    "reloading": "yellow",
    "draining": "cyan",
    "stopping": "cyan",
}


def status_text(status: ServerStatus, width: int | None, color: bool) -> str:
    """Return the tables of a server, each line within ``width`` columns (None: a pipe), with or without colours."""
    return _printed(_parts(status, (width or PIPE_WIDTH) >= WIDE), width, color)


def _printed(parts: Iterable[RenderableType], width: int | None, color: bool) -> str:
    console = Console(
        file=io.StringIO(),
        width=width or PIPE_WIDTH,
        force_terminal=color,
        no_color=not color,
        color_system="standard" if color else None,
        highlight=False,
        legacy_windows=False,
    )
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def servers_text(servers: Sequence[dict[str, Any]], width: int | None, color: bool) -> str:
    """Return a table of running servers."""
    if not servers:
        return ""
    table = _table((width or PIPE_WIDTH) >= WIDE)
    for name in ("NAME", "STATE"):
        table.add_column(name, no_wrap=True)
    for name in ("GEN", "PID", "USER", "UP"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("FILE")
    for server in servers:
        generation, uptime = server["generation"], server["uptime"]
        table.add_row(
            _line(server["name"], "bold"),
            _state(server["state"]),
            "-" if generation is None else str(generation),
            str(server["pid"]),
            _line(server["user"]),
            "-" if uptime is None else format_duration(uptime),
            _line(server["file"] or "-"),
        )
    return _printed([table], width, color)


def stacks_text(workers: Iterable[dict[str, Any]]) -> str:
    """Return the stacks of all threads of some workers, each under its worker's identity."""
    parts = [
        visible(
            f"{worker['worker']} gen={worker['generation']} pid={worker['pid']}\n{worker['stack'].rstrip()}\n"
        )
        for worker in workers
    ]
    return "\n".join(parts)


def _parts(status: ServerStatus, wide: bool) -> list[RenderableType]:
    parts: list[RenderableType] = [_headline(status)]
    if status.pools:
        parts += ["", _pools(status.pools, wide)]
    notes = [*_releases(status.pools), *(note for pool in status.pools for note in _notes(pool))]
    if notes:
        parts += ["", *notes]
    if any(pool.workers or pool.templates for pool in status.pools):
        parts += ["", _workers(status.pools, wide)]
    return parts


def _headline(status: ServerStatus) -> Text:
    return Text.assemble(
        (_safe(status.name), "bold"),
        " is ",
        _state(status.state),
        f": generation {status.generation}, pid {status.pid}, up {format_duration(status.uptime)}",
        f", prefork {_safe(status.version)}",
    )


def _pools(pools: Sequence[PoolStatus], wide: bool) -> Table:
    table = _table(wide)
    table.add_column("POOL", no_wrap=True)
    table.add_column("READY", no_wrap=True)
    table.add_column("RESTARTS", justify="right", no_wrap=True)
    table.add_column("LISTENER")
    table.add_column("QUEUE", no_wrap=True)
    table.add_column("RUNS")
    for pool in pools:
        table.add_row(
            _line(pool.name, "bold"),
            _ready(pool),
            str(pool.restarts),
            _lines([listener.address for listener in pool.listeners]),
            _lines([_queue(listener) for listener in pool.listeners]),
            _line(f"{pool.kind} {pool.application}"),
        )
    return table


def _ready(pool: PoolStatus) -> Text:
    if pool.stopped and not pool.workers:
        return _line("stopped", "cyan")
    if pool.done and not pool.ready:
        return _line("done" if pool.done >= pool.wanted else f"{pool.done} of {pool.wanted} done", "green")
    style = "green" if pool.ready + pool.done >= pool.wanted else "yellow" if pool.ready else "red"
    done = f", {pool.done} done" if pool.done else ""
    between = "" if pool.size_range is None else " ({}..{})".format(*pool.size_range)
    return _line(f"{pool.ready} of {pool.wanted}{between}{done}", style)


def _queue(listener: ListenerStatus) -> str:
    return f"{'-' if listener.queue is None else listener.queue}/{listener.backlog}"


def _releases(pools: Sequence[PoolStatus]) -> list[Text]:
    """Return where the code of the pools comes from, a line for each folder."""
    notes = []
    for folder in dict.fromkeys(pool.release for pool in pools if pool.release):
        there = [pool for pool in pools if pool.release == folder]
        names = "" if len(there) == len(pools) else f" of {', '.join(pool.name for pool in there)}"
        loose = [pool for pool in there if not pool.is_preloaded]
        # Only a template keeps code in memory; a path cannot keep others from writing to the files behind it.
        caveat = (
            "; without preload, files changed in place there are loaded by the next worker" if loose else ""
        )
        notes.append(Text(f"release{_safe(names)}: {_safe(folder)}{caveat}", "dim"))
    return notes


def _notes(pool: PoolStatus) -> list[Text]:
    """Return what is not as it should be, or was not, one line each."""
    notes = []
    if pool.waits_for:
        notes.append(Text(f"{_safe(pool.name)} waits for {_safe(', '.join(pool.waits_for))}", "yellow"))
    if pool.degraded:
        notes.append(Text(f"{_safe(pool.name)} is degraded: {_safe(pool.degraded)}", "red"))
    death = pool.last_death
    if death is not None:
        worker = f"{_safe(death.worker)} (pid {death.pid})"
        notes.append(
            Text(f"last death: {worker}, {format_duration(death.ago)} ago: {_safe(death.cause)}", "yellow")
        )
    return notes


def _workers(pools: Sequence[PoolStatus], wide: bool) -> Table:
    table = _table(wide)
    for name in ("WORKER", "STATE"):
        table.add_column(name, no_wrap=True)
    for name in ("GEN", "PID", "AGE", "REQUESTS", "CONNS", "MEMORY"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("NOW")
    for pool in pools:
        for template in pool.templates:
            table.add_row(*_template(pool.name, template))
        for worker in pool.workers:
            table.add_row(*_worker(pool, worker))
    return table


def _worker(pool: PoolStatus, worker: WorkerStatus) -> list[RenderableType]:
    is_seen = pool.kind not in UNSEEN
    return [
        _line(f"{pool.name}/{worker.slot}"),
        _state(worker.state),
        str(worker.generation),
        str(worker.pid),
        format_duration(worker.age),
        str(worker.requests) if is_seen else "-",
        str(worker.connections) if is_seen else "-",
        format_size(worker.memory),
        _line(_now(worker.current)),
    ]


def _template(pool: str, template: TemplateStatus) -> list[RenderableType]:
    return [
        _line(f"{pool}/template"),
        _state(template.state),
        str(template.generation),
        str(template.pid),
        format_duration(template.age),
        "-",
        "-",
        format_size(template.memory),
        "-",
    ]


def _now(current: Sequence[Current]) -> str:
    """Return the oldest request, the one to worry about, and how many more there are."""
    if not current:
        return "-"
    oldest = max(current, key=lambda request: request.age)
    more = f"(+{len(current) - 1}) " if len(current) > 1 else ""
    return f"{format_duration(oldest.age)} {more}{oldest.what}"


def _table(wide: bool) -> Table:
    return Table(box=None, padding=(0, 2 if wide else 1, 0, 0), pad_edge=False, header_style="dim")


def _state(state: str) -> Text:
    return _line(state, STATE_STYLES.get(state, ""))


def _line(text: str, style: str = "") -> Text:
    """Return a cell that is cut off with an ellipsis where the terminal is too narrow, never wrapped.

    The column must not be ``no_wrap`` itself, or rich takes the missing width from all columns alike.
    """
    return Text(_safe(text), style, no_wrap=True, overflow="ellipsis")


def _lines(texts: Sequence[str]) -> Text:
    """Return a cell of several lines, which stay beside those of the next column."""
    return Text("\n").join(_line(text) for text in texts or ["-"])


def _safe(text: str) -> str:
    """Return text from clients and applications without anything that a terminal would obey."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
