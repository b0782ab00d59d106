"""What is wrong although each value by itself is right: options that contradict each other."""

from __future__ import annotations

from collections.abc import Sequence

from prefork.config.access import OFF
from prefork.config.convert import nearest
from prefork.config.document import Document
from prefork.config.lines import Path
from prefork.config.order import circle, predecessors
from prefork.config.schema import KINDS, Config, Listen, Option, Pool, options
from prefork.units import Address, InheritedAddress, TcpAddress, UnixAddress, shown

Listeners = Sequence[tuple[Path, Listen]]
# Kinds that serve until they are told to leave.
SERVING = ("handler", "wsgi")
# Why a pool with such a restart is never missed: it cannot be essential.
NEVER_MISSED = {"always": "such a pool never ends for good", "once": "it ends before the server serves"}

# By Python, by the dynamic linker (ld.so(8)), by the C library's allocator (mallopt(3)) and jemalloc; but see READ_LATER.
READ_AT_START = ("PYTHON", "LD_", "MALLOC_", "GLIBC_TUNABLES")
# sys.breakpointhook(), asyncio and traceback look these up whenever they need them.
READ_LATER = ("PYTHONBREAKPOINT", "PYTHONASYNCIODEBUG", "PYTHON_COLORS")


def check_conflicts(document: Document, config: Config, listeners: Listeners) -> None:
    """Note every contradiction in the document.

    Options with a wrong value have their default in ``config``; what was written is asked from the document,
    so that one mistake is not told twice. ``listeners`` are all of them, with their paths in the document.
    """
    if "pool" not in document.values or document.values["pool"] == {}:
        document.complain((), "at least one [pool.NAME]", "none", "prefork init writes a file to start from")
    for pool in config.pools.values():
        _check_kind(document, pool)
        _check_listeners(document, pool)
        _check_figures(document, pool)
        _check_ends(document, pool)
        _check_names_after(document, config, pool)
        _check_scale(document, pool)
        _check_ready_port(document, config, pool)
        _check_environment(document, pool)
    _check_order(document, config)
    for path, listener in listeners:
        _check_permissions(document, path, listener)
    _check_addresses(document, listeners)
    _check_overlaps(document, listeners)
    _check_paths(document, config, listeners)
    _check_access(document, config)


def _check_kind(document: Document, pool: Pool) -> None:
    path: Path = ("pool", pool.name)
    table = document.values["pool"][pool.name]
    kinds = [kind for kind in KINDS if kind in table]
    if len(kinds) == 1:
        _check_foreign(document, path, kinds[0])
        _check_foreign_doors(document, pool, kinds[0])
        return
    hint = "remove one of them" if kinds else 'write wsgi = "module:application"'
    found = " and ".join(kinds) or "none"
    document.complain(path, f"exactly one of {', '.join(KINDS)}", found, hint)


def _check_foreign(document: Document, path: Path, kind: str) -> None:
    """Refuse options that mean nothing to this kind of pool, as nobody would look at them."""
    table = document.values["pool"][path[1]]
    for option in options(Pool).values():
        if option.name in table and not option.suits(kind):
            _complain_of_foreign(document, (*path, option.name), option, kind)


def _check_foreign_doors(document: Document, pool: Pool, kind: str) -> None:
    """Refuse options of listeners that mean nothing to this kind of pool."""
    path: Path = ("pool", pool.name, "listen")
    listeners = document.values["pool"][pool.name].get("listen")
    for number, listener in enumerate(listeners if isinstance(listeners, list) else ()):
        for option in options(Listen).values():
            if isinstance(listener, dict) and option.name in listener and not option.suits(kind):
                _complain_of_foreign(document, (*path, number, option.name), option, kind)


def _complain_of_foreign(document: Document, path: Path, option: Option, kind: str) -> None:
    only = option.told("kind")
    expected = f"this in a pool with {only} only" if only else "this in a pool of another kind"
    document.complain(path, expected, f"a pool with {kind}", f"remove {option.name}", about=path)


def _check_listeners(document: Document, pool: Pool) -> None:
    path: Path = ("pool", pool.name, "listen")
    if _serves(document, pool) and document.values["pool"][pool.name].get("listen", []) == []:
        hint = 'write listen = ["127.0.0.1:8000"]'
        document.complain(path, "at least one address", "none", hint, about=path)


def _serves(document: Document, pool: Pool) -> bool:
    """Return whether a pool is there for clients alone; one of a kind that is not may be written wrongly."""
    return not any(kind in document.values["pool"][pool.name] for kind in KINDS if kind not in SERVING)


def _check_figures(document: Document, pool: Pool) -> None:
    if pool.max_connections < pool.threads:
        path = ("pool", pool.name, "max_connections")
        expected = f"at least as many as there are threads ({pool.threads})"
        document.complain(path, expected, str(pool.max_connections))


def _check_ends(document: Document, pool: Pool) -> None:
    """Refuse ends that never come, or come at once, where that cannot be meant."""
    path: Path = ("pool", pool.name)
    if pool.restart == "once" and _serves(document, pool):
        expected, found = "this in a pool whose work has an end", f"a pool with {pool.kind}"
        hint = "a task that runs once is a pool of its own: [pool.NAME] with task and restart"
        document.complain((*path, "restart"), expected, found, hint)
    if pool.essential and pool.restart in NEVER_MISSED:
        expected = 'restart = "on-failure" or "never" with it'
        document.complain((*path, "essential"), expected, f'"{pool.restart}": {NEVER_MISSED[pool.restart]}')


def _check_names_after(document: Document, config: Config, pool: Pool) -> None:
    for number, name in enumerate(pool.after):
        path: Path = ("pool", pool.name, "after", number)
        if name == pool.name:
            document.complain(path, "the name of another pool", f"{shown(name)}, which is this one itself")
        elif name not in config.pools:
            near = nearest(name, config.pools)
            hint = f"did you mean {near}?" if near else f"the pools are {', '.join(config.pools)}"
            document.complain(path, "the name of a pool", shown(name), hint)


def _check_order(document: Document, config: Config) -> None:
    """Refuse pools that would wait for each other for ever."""
    order = predecessors(config.pools)
    found = circle(order)
    if not found:
        return
    first = next(name for name in found if config.pools[name].after)
    at = found.index(first)
    chain = " after ".join([*found[at:], *found[:at], first])
    once = any(config.pools[name].restart == "once" for name in found)
    hint = 'every pool comes after those with restart = "once" that do not come after it' if once else None
    document.complain(("pool", first, "after"), "pools in an order", f"a circle: {chain}", hint)


def _check_scale(document: Document, pool: Pool) -> None:
    scale = pool.scale
    if scale is None:
        return
    if "workers" in document.values["pool"][pool.name]:
        path: Path = ("pool", pool.name, "workers")
        expected = "either workers or a table scale, which says how many there are by load"
        document.complain(path, expected, "both", "remove workers")
    if pool.restart != "always":
        path = ("pool", pool.name, "restart")
        expected = '"always" beside a table scale: who has ended for good would be counted as idle'
        document.complain(path, expected, shown(pool.restart), "remove restart, or scale")
    for name in ("min", "spare"):
        if getattr(scale, name) > scale.max:
            expected = f"at most as many as max ({scale.max})"
            document.complain(("pool", pool.name, "scale", name), expected, str(getattr(scale, name)))


def _check_ready_port(document: Document, config: Config, pool: Pool) -> None:
    """Refuse a port that accepts before the program has started: nobody could tell when that one is ready."""
    port = pool.ready.port
    if port is None:
        return
    path: Path = ("pool", pool.name, "ready", "port")
    if pool.workers > 1:
        found = f"one port for {pool.workers} workers: which of them accepts there cannot be told"
        document.complain(path, "a port of one worker", found, 'write workers = 1, or ready = "notify"')
    for other in config.pools.values():
        for listen in other.listen:
            if isinstance(listen.address, TcpAddress) and listen.address.port == port:
                found = f"{port}, where prefork itself listens ({listen.address}, pool {other.name})"
                document.complain(path, "a port that the program binds", found, 'write ready = "started"')


def _check_environment(document: Document, pool: Pool) -> None:
    """Refuse variables that are read when a program starts: a worker that runs Python is forked from one that has started."""
    if pool.kind == "command":
        return
    for name, value in pool.env.items():
        if not name.startswith(READ_AT_START) or name in READ_LATER:
            continue
        hint = f"set it for the whole server: {name}={value} prefork run …"
        if name == "PYTHONPATH":
            folders = ", ".join(shown(folder) for folder in value.split(":") if folder)
            hint = f"write pythonpath = [{folders}] in [pool.{pool.name}]"
        path: Path = ("pool", pool.name, "env", name)
        found = "one that is read only when a program starts: workers are forked, not started anew"
        document.complain(path, "a variable that a running Python reads", found, hint)


def _check_permissions(document: Document, path: Path, listener: Listen) -> None:
    if isinstance(listener.address, UnixAddress):
        return
    for key in ("mode", "owner", "group"):
        if getattr(listener, key) is not None:
            expected, found = f"{key} at a Unix socket only", f"the address {listener.address}"
            document.complain((*path, key), expected, found, f"remove {key}")
    if (
        isinstance(listener.address, InheritedAddress)
        and listener.backlog != options(Listen)["backlog"].default
    ):
        found = f"the address {listener.address}"
        document.complain(
            (*path, "backlog"),
            "backlog at an address that prefork binds",
            found,
            "write Backlog= into the .socket unit",
        )


def _check_addresses(document: Document, listeners: Listeners) -> None:
    known: dict[Address, Path] = {}
    for path, listener in listeners:
        address = listener.address
        if address in known:
            first = known[address]
            owner = f"{document.where(first)}: {document.name(first)}"
            document.complain(path, "an address of its own", f"{address}, which has {owner}")
        elif not isinstance(address, TcpAddress) or address.port:  # the kernel gives each port 0 another one
            known[address] = path


def _check_overlaps(document: Document, listeners: Listeners) -> None:
    """Refuse an address beside the one that stands for all of this machine's: the kernel does not bind both."""
    for path, listener in listeners:
        for other, wide in listeners:
            if (
                isinstance(listener.address, TcpAddress)
                and isinstance(wide.address, TcpAddress)
                and wide.address.includes(listener.address)
            ):
                owner = f"{document.where(other)}: {document.name(other)}"
                found = f"{listener.address}, which is one of {wide.address} of {owner}"
                document.complain(path, "an address of its own", found, "remove one of the two")


def _check_access(document: Document, config: Config) -> None:
    if (
        config.log.access != OFF
        and config.pools
        and all(pool.kind != "wsgi" for pool in config.pools.values())
    ):
        path = ("log", "access")
        expected, hint = "a pool with wsgi: no other knows of requests", 'write access = "off"'
        document.complain(path, expected, "none", hint, about=path)


def _check_paths(document: Document, config: Config, listeners: Listeners) -> None:
    """Refuse two files of the server at one path: the second would replace the first."""
    paths: list[tuple[Path, str]] = [
        (path, listener.address.path)
        for path, listener in listeners
        if isinstance(listener.address, UnixAddress)
    ]
    known = {text: path for path, text in paths}
    master = config.master
    for path, text in (
        (("log", "file"), config.log.file),
        (("log", "access"), config.log.access),
        (("master", "control"), master.control),
        (("master", "pid_file"), master.pid_file),
    ):
        if text in known:
            first = known[text]
            found = f"{text}, which is {document.name(first)}"
            document.complain(path, "a path of its own", found, about=path)
        elif text not in (None, "-", OFF):
            known[text] = path
