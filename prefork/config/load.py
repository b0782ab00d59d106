"""TOML -> Config, or every problem of the file at once, each in words that a person can act on.

A value that is wrong is noted and then left out, so that its default takes its place and reading goes on: by the end
all problems are known, and none of them twice.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from prefork.config.access import OFF
from prefork.config.conflicts import check_conflicts
from prefork.config.convert import convert, nearest
from prefork.config.document import Document, Setting, read
from prefork.config.lines import Path
from prefork.config.schema import (
    POOL_NAME,
    Config,
    Folder,
    Hooks,
    Http,
    Limits,
    Listen,
    Log,
    Master,
    Option,
    Pool,
    Release,
    Scale,
    Tls,
    Unit,
    options,
)
from prefork.config.settings import apply_environment, apply_settings
from prefork.units import Address, UnitError, UnixAddress, check_unix_path, printable, short_hash, shown

TABLES = ("master", "log", "hooks", "pool")
HOMES = {
    "[master]": Master,
    "[log]": Log,
    "[hooks]": Hooks,
    "[pool.NAME]": Pool,
    "[pool.NAME.limits]": Limits,
    "[pool.NAME.http]": Http,
    "[pool.NAME.tls]": Tls,
    "[pool.NAME.scale]": Scale,
    "listen = [{ address = … }]": Listen,
}
# Whether such a value is right is not known before somebody looks at the machine.
JUDGED_LATER = {Unit.ACCOUNT, Unit.PATH, Unit.PATTERNS}
# Here it matters whether the default was chosen.
ASKED_LATER = {"replace"}
VARIABLE = re.compile(r"[^=\0]+")
UNNAMED = re.compile(r"[^A-Za-z0-9._-]+|^[^A-Za-z0-9]+", re.ASCII)


def load(
    data: bytes | dict[str, Any],
    *,
    source: str,
    directory: str,
    runtime_directory: str,
    cpus: int,
    environment: Mapping[str, str],
    settings: Sequence[str],
    file: str | None = None,
) -> Config:
    """Return the configuration in a TOML file, with absolute paths.

    Args:
        data: the file's content; or the values that it would give, which are altered.
        source: its path as the user wrote it, for messages and for the server's name; or who gives the values.
        directory: where the command was started, absolute.
        runtime_directory: the folder of the control socket, unless the file names one; absolute.
        cpus: what ``workers = "auto"`` stands for.
        environment: the process's; ``PREFORK_POOL__WEB__WORKERS`` and the like override the file.
        settings: ``pool.web.workers=8`` and the like; they override both.
        file: the absolute path of what holds the configuration, which may be a program; None for ``source``.

    Raises ConfigError with all problems.

    """
    document = (
        read(data, printable(source)) if isinstance(data, bytes) else Document(data, {}, printable(source))
    )
    apply_environment(document, environment)
    apply_settings(document, settings)
    file = file or posixpath.normpath(posixpath.join(directory, source))
    home = posixpath.dirname(file) if isinstance(data, bytes) else directory
    control = posixpath.join(runtime_directory, f"{{}}-{short_hash(file)}.sock")
    reader = _Reader(document, source, directory, home, control, cpus)
    config = reader.config()
    check_conflicts(document, config, reader.listeners)
    document.finish()
    return config


class _Reader:
    """Reads the tables.

    Args:
        started_in: the folder where the command was started.
        home: where relative paths start, unless ``master.directory`` says otherwise.
        control: the default control socket, with a place for the server's name.

    """

    def __init__(
        self, document: Document, source: str, started_in: str, home: str, control: str, cpus: int
    ) -> None:
        self.listeners: list[tuple[Path, Listen]] = []
        self._document = document
        self._source = source
        self._started_in = started_in
        self._home = home
        self._directory = home
        self._control = control
        self._cpus = cpus
        self._origins: dict[str, str] = {}

    def config(self) -> Config:
        for key in self._document.values:
            if key not in TABLES:
                self._unknown((key,), TABLES, "a known table")
        master = self._master()
        log = Log(**self._resolved(self._table(("log",), Log), "file", "access"))
        hooks = Hooks(**self._table(("hooks",), Hooks))
        return Config(master=master, log=log, pools=self._pools(master), hooks=hooks, origins=self._origins)

    def _master(self) -> Master:
        found = self._table(("master",), Master)
        self._directory = self._path(found.get("directory", "."))
        name = found.setdefault("name", name_for(posixpath.basename(self._source).removesuffix(".toml")))
        found.setdefault("control", self._control.format(name))
        if "directory" in found:
            found["directory"] = self._directory
        master = Master(**self._resolved(found, "control", "pid_file"))
        self._is_socket(("master", "control"), master.control)
        return master

    def _pools(self, master: Master) -> dict[str, Pool]:
        pools = self._document.values.get("pool", {})
        if not isinstance(pools, dict):
            self._document.complain(("pool",), "tables [pool.NAME]", _shown(pools))
            return {}
        return {name: self._pool(name, master) for name in pools if self._is_pool(name, pools[name])}

    def _is_pool(self, name: str, value: Any) -> bool:
        path: Path = ("pool", name)
        if not re.fullmatch(POOL_NAME, name, re.ASCII):
            expected = 'a pool\'s name of at most 64 letters, digits, "-" and "_"'
            self._document.complain(path, expected, shown(name))
        elif not isinstance(value, dict):
            hint = f"write [pool.NAME] above {name}" if name in options(Pool) else None
            self._document.complain(path, "a table", _shown(value), hint)
        else:
            return True
        return False

    def _pool(self, name: str, master: Master) -> Pool:
        found = self._table(("pool", name), Pool)
        found["reload_on_change"] = tuple(map(self._path, found.get("reload_on_change", ())))
        found["pythonpath"] = tuple(map(self._path, found.get("pythonpath", ())))
        resolved = self._resolved(found, "directory")
        release = self._release(resolved.get("directory"), master, found["pythonpath"])
        return Pool(name=name, release=release, **resolved)

    def _release(self, own: str | None, master: Master, further: tuple[str, ...]) -> Release:
        """Return where a pool's workers start, and what comes first on their sys.path.

        ``own`` is the pool's directory, ``further`` are the folders that it names beside that.
        """
        shared = [master.directory] if master.directory else [self._home, self._started_in]
        folders = [*([own] if own else []), *shared, *further]
        start = own or master.directory or self._started_in
        return Release(Folder(start), tuple(map(Folder, dict.fromkeys(folders))))

    def _table(self, path: Path, struct: type[msgspec.Struct], table: Any = None) -> dict[str, Any]:
        """Return the values of a table that are right; the table at ``path`` unless it is given."""
        table = self._find(path) if table is None else table
        if not isinstance(table, dict):
            self._document.complain(path, "a table", _shown(table))
            return {}
        known = options(struct)
        for key in table:
            if key not in known:
                self._unknown((*path, key), known, "a known key")
        values = {key: self._value((*path, key), known[key], table[key]) for key in table if key in known}
        return {key: value for key, value in values.items() if value is not msgspec.UNSET}

    def _find(self, path: Path) -> Any:
        value: Any = self._document.values
        for key in path:
            value = value.get(key, {})
        return value

    def _unknown(self, path: Path, known: Iterable[str], expected: str) -> None:
        key = str(path[-1])
        homes = [home for home, struct in HOMES.items() if key in options(struct)]
        near = nearest(key, known)
        hint = f"did you mean {near}?" if near else None
        if homes:
            hint = f"{key} belongs in {' or '.join(homes)}"
        self._document.complain(path, expected, shown(key), hint, about=path[:-1])

    def _value(self, path: Path, option: Option, value: Any) -> Any:
        if option.unit in JUDGED_LATER or option.name in ASKED_LATER:
            self._origins[".".join(map(str, path))] = self._document.place(path)
        if option.unit is Unit.LISTENERS:
            return self._listeners(path, value)
        if option.unit is Unit.VARIABLES:
            return self._variables(path, value)
        if option.unit is Unit.TABLE:
            return self._subtable(path, option, value)
        return self._plain(path, option, value)

    def _subtable(self, path: Path, option: Option, value: Any) -> Any:
        if option.table is Tls:
            return self._tls(path, value)
        if option.table is Scale:
            return self._scale(path, value)
        return msgspec.convert(self._table(path, option.table, value), option.table)

    def _scale(self, path: Path, value: Any) -> Any:
        found = self._table(path, Scale, value)
        if isinstance(value, dict) and "max" not in value:
            self._document.complain(path, "a table with a max", "none", "write max = 8")
        return Scale(**found) if "max" in found else msgspec.UNSET

    def _tls(self, path: Path, value: Any) -> Any:
        found = self._table(path, Tls, value)
        if isinstance(value, dict) and "certificate" not in value:
            hint = 'write certificate = "cert.pem"'
            self._document.complain(path, "a table with a certificate", "none", hint)
        if "certificate" not in found:
            return msgspec.UNSET
        for name in ("certificate", "key"):
            found[name] = tuple(self._path(text) for text in found.get(name, ()))
        keys, certificates = len(found["key"]), len(found["certificate"])
        if keys not in (0, certificates):
            expected = f"as many keys as there are certificates ({certificates})"
            self._document.complain((*path, "key"), expected, str(keys))
            return msgspec.UNSET
        return Tls(**self._resolved(found, "client_ca"))

    def _plain(self, path: Path, option: Option, value: Any) -> Any:
        try:
            if isinstance(value, Setting):
                return self._setting(option, value)
            if isinstance(value, dict):  # keys of it may come from outside
                value = {
                    key: item.value if isinstance(item, Setting) else item for key, item in value.items()
                }
            return convert(option, value, self._document.written(path), self._cpus)
        except UnitError as error:
            self._wrong(path, error)
            return msgspec.UNSET

    def _setting(self, option: Option, setting: Setting) -> Any:
        """Return a converted value from outside, which may be meant as text though it looks like a number."""
        try:
            return convert(option, setting.value, setting.raw, self._cpus)
        except UnitError:
            with contextlib.suppress(UnitError):
                return convert(option, setting.raw, setting.raw, self._cpus)
            raise

    def _wrong(self, path: Path, error: UnitError) -> None:
        self._document.complain(path, error.expected, error.found, error.hint)

    def _listeners(self, path: Path, value: Any) -> tuple[Listen, ...]:
        if not isinstance(value, list):
            written = shown(value if isinstance(value, str) else "127.0.0.1:8000")
            self._document.complain(path, "a list of addresses", _shown(value), f"write listen = [{written}]")
            return ()
        items = (self._listener((*path, number), item) for number, item in enumerate(value))
        return tuple(item for item in items if item is not None)

    def _listener(self, path: Path, value: Any) -> Listen | None:
        if isinstance(value, str):
            found = {"address": self._plain(path, options(Listen)["address"], value)}
        elif isinstance(value, dict):
            found = self._table(path, Listen, value)
            if value.keys() <= options(Listen).keys() - {"address"}:
                hint = 'write address = "127.0.0.1:8000"'
                self._document.complain(path, "a table with an address", "none", hint)
        else:
            self._document.complain(path, "an address, or a table with one", shown(value))
            return None
        address = self._address(path, found.pop("address", msgspec.UNSET))
        if address is None:
            return None
        listener = Listen(address=address, **found)
        self.listeners.append((path, listener))
        return listener

    def _address(self, path: Path, address: Address | msgspec.UnsetType) -> Address | None:
        """Return an address with its path made absolute, or None if there is no right one."""
        if isinstance(address, msgspec.UnsetType):
            return None
        if not isinstance(address, UnixAddress):
            return address
        absolute = self._path(address.path)
        return UnixAddress(absolute) if self._is_socket(path, absolute) else None

    def _is_socket(self, path: Path, text: str) -> bool:
        try:
            check_unix_path(text)
        except UnitError as error:
            self._wrong(path, error)
            return False
        return True

    def _variables(self, path: Path, value: Any) -> dict[str, str]:
        if not isinstance(value, dict):
            self._document.complain(
                path, "a table of texts", _shown(value), 'write env = { LANG = "C.UTF-8" }'
            )
            return {}
        return {name: self._variable((*path, name), name, value[name]) for name in value}

    def _variable(self, path: Path, name: str, value: Any) -> str:
        text = value.raw if isinstance(value, Setting) else value
        if not VARIABLE.fullmatch(name):
            self._document.complain(path, 'the name of a variable, without "="', shown(name))
        elif not isinstance(text, str):
            number = isinstance(text, int | float) and not isinstance(text, bool)
            self._document.complain(
                path, "text", shown(text), f'write {name} = "{shown(text)}"' if number else None
            )
        elif "\0" in text:
            self._document.complain(path, "text without the character 0", shown(text))
        return text if isinstance(text, str) else ""

    def _resolved(self, values: dict[str, Any], *names: str) -> dict[str, Any]:
        """Return the values of a table with the paths among them made absolute."""
        plain = {name: values[name] for name in names if values.get(name, "-") != "-"}
        paths = {name: self._path(text) for name, text in plain.items() if (name, text) != ("access", OFF)}
        return values | paths

    def _path(self, text: str) -> str:
        return posixpath.normpath(posixpath.join(self._directory, text))


def _shown(value: Any) -> str:
    return shown(value.value if isinstance(value, Setting) else value)


def name_for(stem: str) -> str:
    """Return a server's name for a file's."""
    return UNNAMED.sub("-", stem).strip("-")[:64] or "prefork"
