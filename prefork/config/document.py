"""The configuration as it was written: the file, and over it the environment and the command line.

Keeps where each value came from, so that every complaint about it can say so.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

import msgspec

from prefork.config.lines import Path, Place, find_places
from prefork.errors import ConfigError, Problem
from prefork.units import printable, shown

_POSITION = re.compile(r" \((?:at line (\d+), column \d+|at end of document)\)$")
_PLAIN = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_LAST = 10**9


class Setting(msgspec.Struct, frozen=True):
    """A plain value from outside of the file; ``raw`` is how it was written, for options whose value is text."""

    value: Any
    raw: str


class Document:
    """All values, where each came from, and what is wrong with them.

    Attributes:
        values: the tables as nested dictionaries; plain values from outside of the file are Settings.

    """

    def __init__(self, values: dict[str, Any], places: Mapping[Path, Place], source: str) -> None:
        self.values = values
        self._source = source
        self._origins: dict[Path, Place | str] = dict(places)
        self._problems: list[tuple[int, Problem]] = []

    def override(self, path: Path, raw: str, origin: str) -> None:
        """Put the value written as ``raw`` into its place; ``origin`` tells people where it was set."""
        table = self.values
        for length, key in enumerate(path[:-1], 1):
            table = table.setdefault(str(key), {})
            if not isinstance(table, dict):
                name = ".".join(map(str, path))
                self.refuse(origin, "the name of a key", shown(name), f"{key} is a value, not a table")
                return
            self._origins.setdefault(path[:length], origin)
        table[str(path[-1])] = read_setting(raw)
        for known in [known for known in self._origins if known[: len(path)] == path]:
            del self._origins[known]
        self._origins[path] = origin

    def written(self, path: Path) -> str:
        """Return a plain value just as the file has it, or nothing where it does not come from the file."""
        origin = self._origins.get(path)
        return origin.written if isinstance(origin, Place) else ""

    def where(self, path: Path) -> str:
        """Return where the value at ``path``, or what stands nearest to it, was written."""
        origin = self._origin(path)
        if isinstance(origin, Place):
            return f"{self._source}:{origin.line}"
        return origin or self._source

    def place(self, path: Path, about: Path | None = None) -> str:
        """Return where the value at ``path`` was written, and its name, or the name of what it is about."""
        place = self.where(path)
        if isinstance(self._origin(path), str):
            return place
        return ": ".join(filter(None, (place, self.name(path if about is None else about))))

    def complain(
        self, path: Path, expected: str, found: str, hint: str | None = None, about: Path | None = None
    ) -> None:
        """Note a problem at ``path`` of the document; ``about`` names what it is about, if not just that."""
        origin = self._origin(path)
        place = self.place(path, about)
        line = origin.line if isinstance(origin, Place) else _LAST if origin else 0
        self._note(line, f"{place}: expected {expected}, found {found}", hint)

    def refuse(self, origin: str, expected: str, found: str, hint: str | None = None) -> None:
        """Note a problem with a setting that has no place in the document."""
        self._note(_LAST, f"{origin}: expected {expected}, found {found}", hint)

    def finish(self) -> None:
        """Raise ConfigError if anything is wrong: with all problems, in the order of the file, settings last."""
        if self._problems:
            raise ConfigError([problem for _, problem in sorted(self._problems, key=lambda item: item[0])])

    def name(self, path: Path) -> str:
        """Return ``[pool.web] listen[1].mode`` for a path, for people."""
        value: Any = self.values
        depth = 0
        for key in path:
            if not isinstance(value, dict):
                break
            value = value.get(key)
            depth += isinstance(value, dict)
        header = f"[{'.'.join(_quoted(str(step)) for step in path[:depth])}]" if depth else ""
        text = "".join(f"[{step}]" if isinstance(step, int) else f".{_quoted(step)}" for step in path[depth:])
        return " ".join(filter(None, (header, text.removeprefix("."))))

    def _note(self, line: int, message: str, hint: str | None) -> None:
        self._problems.append((line, Problem(printable(message), printable(hint) if hint else None)))

    def _origin(self, path: Path) -> Place | str | None:
        for length in range(len(path), 0, -1):
            if path[:length] in self._origins:
                return self._origins[path[:length]]
        return None


def read(data: bytes, source: str) -> Document:
    """Return the document in a file's bytes. Raises ConfigError where it is no TOML."""
    text = _decode(data, source)
    try:
        return Document(tomllib.loads(text), find_places(text), source)
    except RecursionError as error:
        problem = Problem(f"{source}: expected a configuration, found brackets nested too deeply")
        raise ConfigError([problem]) from error
    except ValueError as error:  # mostly TOMLDecodeError; int() raises a plain one beyond 4300 digits
        raise ConfigError([_syntax_problem(str(error), text, source)]) from error


def read_setting(raw: str) -> Any:
    """Return what a value from the command line or the environment stands for: TOML, or else the text itself."""
    try:
        found = tomllib.loads(f"value = {raw}")
    except (ValueError, RecursionError):
        return raw
    if len(found) != 1 or "\n" in raw:
        return raw
    value = found["value"]
    return value if isinstance(value, str | list | dict) else Setting(value, raw)


def _decode(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")  # TOML 1.1 lets editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"{source}:{line}: expected UTF-8, found the byte 0x{data[error.start]:02x}"
        raise ConfigError([Problem(message, "save the file as UTF-8")]) from error


def _syntax_problem(message: str, text: str, source: str) -> Problem:
    position = _POSITION.search(message)
    last = text.rstrip().count("\n") + 1
    line = f":{position[1] or last}" if position else ""
    reason = _POSITION.sub("", message)
    unquoted = reason == "Invalid value" and position and position[1]
    hint = 'text is written in quotes: key = "text"' if unquoted else None
    return Problem(f"{source}{line}: not valid TOML: {reason[:1].lower()}{reason[1:]}", hint)


def _quoted(key: str) -> str:
    return key if _PLAIN.fullmatch(key) else shown(key)
