"""The estate: what one program of the master leaves to the next, as JSON in which every value names its type.

So the two may be of different versions: fields that the next one does not know are dropped, those that it does not find
have their defaults. Open files are handed over by descriptor; a socket, a child and a scoreboard come back as such.
"""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Callable
from enum import Enum
from fractions import Fraction
from types import ModuleType
from typing import Any

import msgspec

from prefork import log, units
from prefork.config import schema
from prefork.errors import CommandError
from prefork.master import charge, farewells, listeners, machine, notices, server
from prefork.scoreboard import Board, UnreadableBoard
from prefork.supervisor import actions, events, pool, scaling, trial, worker
from prefork.supervisor import server as supervisor
from prefork.system import privileges
from prefork.system.process import Child
from prefork.worker import farewell

# To be raised when an estate of before can be read, but does not mean the same any more.
# 2: a pool has its release; without one its next worker would start in no folder of its own, and import nothing.
VERSION = 2
# The commands of another version may not find the server that runs; a signal always does.
NEW_START = (
    "this upgrade takes a new start: end the server by its service manager, or with TERM, then prefork run"
)
# Whose structs and enums can be part of an estate.
HOMES: dict[str, ModuleType] = {
    module.__name__: module
    for module in (
        schema,
        units,
        log,
        privileges,
        actions,
        events,
        pool,
        scaling,
        trial,
        worker,
        supervisor,
        charge,
        farewells,
        listeners,
        machine,
        notices,
        server,
        farewell,
    )
}
GROUPS: dict[str, Callable[[list[Any]], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}


class Descriptor(msgspec.Struct, frozen=True):
    """The number of an open file that is to stay open; comes back as a plain number.

    A struct whose own fields are such numbers names them in ``DESCRIPTORS``.
    """

    number: int


class UnreadableError(CommandError):
    """An estate that this version of prefork cannot make sense of."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the running server's state cannot be taken over: {reason}", NEW_START)


def encode(value: Any) -> tuple[bytes, list[int]]:
    """Return a value as JSON, and the numbers of the open files in it.

    Raises CommandError if something in it cannot be handed over.
    """
    writer = _Writer()
    root = writer.write(value)
    document = {"version": VERSION, "table": writer.table, "root": root}
    return msgspec.json.encode(document), writer.descriptors


def decode(data: bytes, *, live: bool) -> tuple[Any, list[int]]:
    """Return the value that was encoded, and the numbers of the open files in it.

    Args:
        data: what ``encode`` has returned.
        live: whether the descriptors are open here; if not, None stands for sockets, children and scoreboards.

    Raises UnreadableError.

    """
    try:
        document = msgspec.json.decode(data)
        if document["version"] != VERSION:
            raise UnreadableError(
                f"it is of another prefork: expected version {VERSION}, found {document['version']}"
            )
        reader = _Reader(live)
        for entry in document["table"]:
            reader.table.append(reader.read(entry))
        return reader.read(document["root"]), reader.descriptors
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UnreadableError(f"{type(error).__name__}: {error}") from error


class _Writer:
    """Structs, and what is open, are written once, into a table: workers share their pool and its scoreboard."""

    def __init__(self) -> None:
        self.table: list[Any] = []
        self.descriptors: list[int] = []
        self._places: dict[int, int] = {}

    def write(self, value: Any) -> Any:
        """Return a value in terms of JSON."""
        if isinstance(value, Enum):
            return _named(f"enum {type(value).__module__}.{type(value).__qualname__}", value.name)
        if isinstance(value, str):
            return _text(value)
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, Descriptor):
            return self._descriptor(value.number)
        if isinstance(value, msgspec.Struct | Board | Child | socket.socket):
            return self._see(value)
        return self._write_container(value)

    def _write_container(self, value: Any) -> Any:
        kind = type(value).__name__
        if isinstance(value, list):
            return [self.write(item) for item in value]
        if type(value) in GROUPS.values():
            return _named(kind, [self.write(item) for item in value])
        if isinstance(value, dict):
            return _named("dict", [[self.write(key), self.write(item)] for key, item in value.items()])
        if isinstance(value, bytes | bytearray):
            return _named(kind, base64.b64encode(value).decode())
        if isinstance(value, Fraction):
            return _named(kind, str(value))
        raise CommandError(f"the running server's state cannot be handed over: {value!r} is of no known kind")

    def _see(self, value: Any) -> Any:
        if id(value) not in self._places:
            written = self._write_object(value)
            self._places[id(value)] = len(self.table)
            self.table.append(written)
        return _named("entry", self._places[id(value)])

    def _write_object(self, value: Any) -> Any:
        if isinstance(value, socket.socket):
            return _named("socket", self._descriptor(value.fileno()))
        if isinstance(value, Child):
            return _named("child", value.pid)
        if isinstance(value, Board):
            return _named("board", self._board(value))
        kind = type(value)
        fields = msgspec.structs.asdict(value)
        numbers = {name: fields.pop(name) for name in getattr(kind, "DESCRIPTORS", ())}
        written = {name: self.write(item) for name, item in fields.items()}
        written |= {name: self._descriptor(number) for name, number in numbers.items()}
        return _named(f"struct {kind.__module__}.{kind.__qualname__}", written)

    def _board(self, board: Board) -> dict[str, Any] | None:
        if isinstance(board, UnreadableBoard):
            return None
        if board.descriptor is None:
            raise CommandError("upgrades in place need memfd_create(2), which this system does not have")
        return {
            "memory": self._descriptor(board.descriptor),
            "rows": board.rows,
            "lanes": board.lanes,
            "taken": board.taken(),
            "layout": list(board.layout),
        }

    def _descriptor(self, number: int | None) -> Any:
        if number is None:
            return None
        self.descriptors.append(number)
        return _named("descriptor", number)


class _Reader:
    def __init__(self, live: bool) -> None:
        self.table: list[Any] = []
        self.descriptors: list[int] = []
        self._live = live

    def read(self, value: Any) -> Any:
        """Return what was written."""
        if isinstance(value, list):
            return [self.read(item) for item in value]
        if not isinstance(value, dict):
            return value
        kind, content = value["is"], value["of"]
        word, _, name = kind.partition(" ")
        if word == "struct":
            return self._struct(_find(name), content)
        if word == "enum":
            return _find(name)[content]
        if kind in ("socket", "child", "board"):
            return self._open(kind, content)
        return self._read_container(kind, content)

    def _read_container(self, kind: str, content: Any) -> Any:
        match kind:
            case "entry":
                return self.table[content]
            case "descriptor":
                self.descriptors.append(content)
                return content
            case "dict":
                return {self.read(key): self.read(item) for key, item in content}
            case "text":
                return base64.b64decode(content).decode("utf-8", "surrogatepass")
            case "bytes":
                return base64.b64decode(content)
            case "bytearray":
                return bytearray(base64.b64decode(content))
            case "Fraction":
                return Fraction(content)
            case _:
                return GROUPS[kind](self.read(content))

    def _struct(self, kind: Any, content: dict[str, Any]) -> Any:
        found = {name: self.read(item) for name, item in content.items()}
        return kind(**{name: item for name, item in found.items() if name in kind.__struct_fields__})

    def _open(self, kind: str, content: Any) -> Any:
        if kind == "child":
            return Child(content) if self._live else None
        if kind == "board":
            return self._board(content)
        number = self.read(content)
        if not self._live:
            return None
        found = socket.socket(fileno=number)
        found.setblocking(False)
        return found

    def _board(self, content: dict[str, Any] | None) -> Board | None:
        memory: int | None = self.read(content["memory"]) if content else None
        if not self._live:
            return None
        if content and tuple(content["layout"]) == Board.layout:
            return Board(content["rows"], content["lanes"], memory, content["taken"])
        if memory is not None:
            self.descriptors.remove(memory)
            os.close(memory)
        return UnreadableBoard()


def _text(value: str) -> Any:
    """Return a string in terms of JSON, which cannot carry a file name that is not UTF-8 as Python has it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return _named("text", base64.b64encode(value.encode("utf-8", "surrogatepass")).decode())
    return value


def _named(kind: str, content: Any) -> dict[str, Any]:
    return {"is": kind, "of": content}


def _find(name: str) -> Any:
    home, _, kind = name.rpartition(".")
    return getattr(HOMES[home], kind)
