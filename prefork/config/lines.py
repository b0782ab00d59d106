"""Where each key of a TOML text stands: tomllib tells values but no positions.

A scanner for text that tomllib has accepted already. It follows the structure (headers, keys, values) and leaves all
judgement to tomllib, so whatever is not one of the structural characters is skipped.
"""

from __future__ import annotations

import re
import tomllib

import msgspec

Path = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[\s,]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE = re.compile(r"[^\s.=\[\]{},#\"']+")
_SCALAR = re.compile(r"[^,\]}#\n]*")
_STRINGS = re.compile(
    r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}'
    r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)


class Place(msgspec.Struct, frozen=True):
    """A line, from 1, and how a plain value (number, date, boolean) is written there."""

    line: int
    written: str = ""


def find_places(text: str) -> dict[Path, Place]:
    """Return the place of each table, key and list item of a valid TOML text."""
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line = 1
        self.places: dict[Path, Place] = {}
        self.lengths: dict[Path, int] = {}

    def scan(self) -> dict[Path, Place]:
        table: Path = ()
        self._skip(_BLANK)
        while self.at < len(self.text):
            if self.text.startswith("[", self.at):
                table = self._header()
            else:
                self._pair(table)
            self._skip(_BLANK)
        return self.places

    def _header(self) -> Path:
        many = self.text.startswith("[[", self.at)
        self._move(2 if many else 1)
        path = self._within_lists(self._keys())
        for length in range(1, len(path)):
            self._note(path[:length])
        if many:
            number = self.lengths.get(path, 0)
            self.lengths[path] = number + 1
            self._note(path)
            path = (*path, number)
        # A parent may have been noted for its child, which stands first: its own header says more.
        self.places[path] = Place(self.line)
        self._skip(_BLANK)
        self._move(2 if many else 1)
        return path

    def _within_lists(self, keys: Path) -> Path:
        """Return the path below the latest item of each list of tables on the way."""
        path: Path = ()
        for position, key in enumerate(keys):
            path = (*path, key)
            if path in self.lengths and position < len(keys) - 1:
                path = (*path, self.lengths[path] - 1)
        return path

    def _pair(self, table: Path) -> None:
        keys = self._keys()
        for length in range(1, len(keys)):
            self._note(table + keys[:length])
        self._note(table + keys)
        self._move(1)  # the equals sign
        self._value(table + keys)

    def _keys(self) -> Path:
        """Read a key, dotted or not, up to the equals sign or bracket after it."""
        keys: list[str] = []
        while True:
            self._skip(_SPACE)
            quoted = _STRINGS.match(self.text, self.at)
            token = quoted or _BARE.match(self.text, self.at)
            assert token is not None, f"no key at offset {self.at}"
            self._move(len(token[0]))
            keys.append(_unquote(token[0]) if quoted else token[0])
            self._skip(_SPACE)
            if not self.text.startswith(".", self.at):
                return tuple(keys)
            self._move(1)

    def _value(self, path: Path) -> None:
        self._skip(_SPACE)
        string = _STRINGS.match(self.text, self.at)
        if string is not None:
            self._move(len(string[0]))
        elif self.text.startswith("[", self.at):
            self._list(path)
        elif self.text.startswith("{", self.at):
            self._inline_table(path)
        else:
            written = _SCALAR.match(self.text, self.at)
            assert written is not None
            self.places[path] = Place(self.line, written[0].strip())
            self._move(len(written[0]))

    def _list(self, path: Path) -> None:
        self._move(1)
        self._skip(_BLANK)
        number = 0
        while not self.text.startswith("]", self.at):
            self._note((*path, number))
            self._value((*path, number))
            self._skip(_BLANK)
            number += 1
        self._move(1)

    def _inline_table(self, path: Path) -> None:
        self._move(1)
        self._skip(_BLANK)
        while not self.text.startswith("}", self.at):
            self._pair(path)
            self._skip(_BLANK)
        self._move(1)

    def _note(self, path: Path) -> None:
        self.places.setdefault(path, Place(self.line))

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.at)
        assert match is not None
        self._move(len(match[0]))

    def _move(self, length: int) -> None:
        self.line += self.text.count("\n", self.at, self.at + length)
        self.at += length


def _unquote(key: str) -> str:
    return next(iter(tomllib.loads(f"{key} = 0")))
