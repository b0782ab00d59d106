"""Values from outside of the file: ``--set pool.web.workers=8`` and ``PREFORK_POOL__WEB__WORKERS=8``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefork.config.convert import nearest
from prefork.config.document import Document
from prefork.units import shown

PREFIX = "PREFORK_"
TABLES = ("MASTER", "LOG", "HOOKS")
# What programs are told by the prefork that runs them; one of them may be another prefork. Settings have a "__".
MARKS = {"PREFORK_POOL", "PREFORK_SLOT", "PREFORK_GENERATION", "PREFORK_WORKER"}


def apply_settings(document: Document, settings: Sequence[str]) -> None:
    """Put the values of ``--set KEY=VALUE`` into the document; the last one of a key wins."""
    for setting in settings:
        origin = f"--set {setting}"
        name, equals, raw = setting.partition("=")
        path = tuple(step.strip() for step in name.split("."))
        if not equals or not all(path):
            document.refuse(origin, "KEY=VALUE", shown(setting), "write --set pool.NAME.workers=4")
        elif path[0] == "pool" and len(path) > 1 and path[1] not in _pools(document):
            near = nearest(path[1], _pools(document))
            document.refuse(origin, "the name of a pool", shown(path[1]), _pool_hint(document, near))
        else:
            document.override(path, raw.strip(), origin)


def apply_environment(document: Document, environment: Mapping[str, str]) -> None:
    """Put the values of all ``PREFORK_…`` variables into the document, in the order of their names."""
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in MARKS:
            _apply_variable(document, name, environment[name])


def _apply_variable(document: Document, name: str, raw: str) -> None:
    origin = f"environment {name}"
    table, _, key = name.removeprefix(PREFIX).partition("__")
    if table in TABLES and key:
        document.override((table.lower(), *key.lower().split("__")), raw, origin)
    elif table == "POOL" and key:
        _apply_pool_variable(document, key, raw, origin)
    else:
        expected = "PREFORK_MASTER__KEY, PREFORK_LOG__KEY, PREFORK_HOOKS__KEY or PREFORK_POOL__NAME__KEY"
        document.refuse(origin, expected, shown(name))


def _apply_pool_variable(document: Document, key: str, raw: str, origin: str) -> None:
    matching = [pool for pool in _pools(document) if key.startswith(f"{_variable(pool)}__")]
    longest = max(map(len, matching), default=0)
    pools = [pool for pool in matching if len(pool) == longest]
    if len(pools) == 1:
        document.override(("pool", pools[0], *_steps(key[longest + 2 :])), raw, origin)
    elif pools:
        both = " and ".join(pools)
        document.refuse(
            origin, "the name of one pool", f"the same name for {both}", "use --set, or rename one"
        )
    else:
        found = key.partition("__")[0].lower()
        document.refuse(
            origin, "the name of a pool", shown(found), _pool_hint(document, nearest(found, _pools(document)))
        )


def _steps(key: str) -> tuple[str, ...]:
    """Return the path of a pool's key; the names of environment variables keep their case."""
    first, *rest = key.split("__")
    return ("env", "__".join(rest)) if first == "ENV" and rest else tuple(key.lower().split("__"))


def _pools(document: Document) -> list[str]:
    pools = document.values.get("pool")
    return list(pools) if isinstance(pools, dict) else []


def _variable(pool: str) -> str:
    return pool.upper().replace("-", "_")


def _pool_hint(document: Document, near: str | None) -> str | None:
    if near is not None:
        return f"did you mean {near}?"
    return f"the pools are {', '.join(_pools(document))}" if _pools(document) else None
