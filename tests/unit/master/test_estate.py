"""The estate: whatever the master knows reads back, by other versions as far as they can; what is open stays open."""

from __future__ import annotations

import json
import os
import socket
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest

from prefork.config.load import load
from prefork.config.schema import Pool
from prefork.errors import CommandError
from prefork.log import Identity, Outlets
from prefork.master.estate import Descriptor, UnreadableError, decode, encode
from prefork.master.server import Death
from prefork.scoreboard import Board, State, UnreadableBoard
from prefork.supervisor.events import Clock
from prefork.supervisor.worker import Life
from prefork.supervisor.worker import State as LifeState
from prefork.units import Share, TcpAddress
from tests.unit.supervisor.building import pool

FULL = Path(__file__).parents[3] / "conf" / "full.toml"


def there_and_back(value: Any) -> Any:
    return decode(encode(value)[0], live=False)[0]


def altered(value: Any, *, struct: type, change: Any) -> bytes:
    """Return an estate as another version would have written it: with other fields of a struct."""
    document = json.loads(encode(value)[0])
    name = f"struct {struct.__module__}.{struct.__qualname__}"
    for entry in document["table"]:
        if entry["is"] == name:
            change(entry["of"])
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        4,
        0.1,
        "web/2 ü",
        os.fsdecode(b"/srv/\xff"),
        [1, [2]],
        (1, ("a", None)),
        {1.5, 2.5},
        frozenset({("web", TcpAddress("::1", 0), 1), TcpAddress("127.0.0.1", 80)}),
        {("web", 1): {"a": [1]}, "is": "of"},
        b"\x00\xff",
        bytearray(b"stacks"),
        Share(percent=Fraction(100, 3)),
        LifeState.DRAINING,
        Clock.STALL,
        Death(Identity("web/0", 42, 3), "crashed: SIGSEGV", 5.25),
        Life(7, pool(), 0, 2, struck={1.5}, strike=None, traceback="Traceback:\n"),
    ],
)
def test_values_read_back(value: Any) -> None:
    found = there_and_back(value)
    assert found == value
    assert type(found) is type(value)


def test_every_key_of_the_configuration_reads_back() -> None:
    config = load(
        FULL.read_bytes(),
        source="full.toml",
        directory="/srv",
        runtime_directory="/run",
        cpus=2,
        environment={},
        settings=[],
    )
    assert there_and_back(config) == config


def test_what_is_shared_stays_shared_and_is_written_once() -> None:
    shared = pool()
    data, _ = encode([Life(number, shared, number, 1) for number in range(100)])
    found, _ = decode(data, live=False)
    assert {id(life.pool) for life in found} == {id(found[0].pool)}
    assert data.count(b"boot_timeout") == 1


def test_fields_that_the_next_version_does_not_know_are_dropped() -> None:
    data = altered(pool(), struct=Pool, change=lambda fields: fields.update(sparkle=5))
    assert decode(data, live=False)[0] == pool()


def test_fields_that_the_last_version_did_not_know_have_their_defaults() -> None:
    data = altered(pool(threads=4), struct=Pool, change=lambda fields: fields.pop("threads"))
    assert decode(data, live=False)[0] == pool()


def test_a_field_that_is_needed_and_not_there_is_refused() -> None:
    data = altered(pool(), struct=Pool, change=lambda fields: fields.pop("name"))
    with pytest.raises(UnreadableError, match="name"):
        decode(data, live=False)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"version": 0, "table": [], "root": 1}', "expected version 2, found 0"),
        (b'{"version": 1, "table": [], "root": 1}', "expected version 2, found 1"),
        (b'{"version": 2, "table": [], "root": {"is": "struct os.Sparkle", "of": {}}}', "os"),
        (b'{"version": 2, "table": [], "root": {"is": "entry", "of": 5}}', "IndexError"),
        (b'{"version": 2, "table": [], "root": {"is": "spark", "of": 5}}', "spark"),
        (b'{"version": 2', "DecodeError"),
        (b"[]", "TypeError"),
    ],
)
def test_what_makes_no_sense_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason) as caught:
        decode(data, live=False)
    assert caught.value.hint is not None


def test_what_cannot_be_written_down_is_refused() -> None:
    with pytest.raises(CommandError, match="is of no known kind"):
        encode({"a": lambda: None})


def test_open_files_are_counted_and_come_back_as_numbers() -> None:
    data, descriptors = encode([Descriptor(17), Outlets(2, None), Outlets(5, 6)])
    found, again = decode(data, live=False)
    assert found == [17, Outlets(2, None), Outlets(5, 6)]
    assert sorted(descriptors) == sorted(again) == [2, 5, 6, 17]


def moved(data: bytes, descriptors: list[int]) -> bytes:
    """Do as execve(2) does: the open files are the same, and whatever held them is gone."""
    document = json.loads(data)
    places = {number: os.dup(number) for number in descriptors}

    def move(value: Any) -> Any:
        if isinstance(value, dict) and value.get("is") == "descriptor":
            return {"is": "descriptor", "of": places[value["of"]]}
        if isinstance(value, dict):
            return {key: move(item) for key, item in value.items()}
        return [move(item) for item in value] if isinstance(value, list) else value

    return msgspec.json.encode(move(document))


def test_a_socket_goes_on() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        found, _ = decode(moved(*encode(ours)), live=True)
        with found:
            theirs.send(b"still there")
            assert found.recv(100) == b"still there"
            assert (found.type, found.getblocking()) == (socket.SOCK_SEQPACKET, False)


def test_a_board_goes_on_with_its_rows() -> None:
    board = Board(rows=4, lanes=2)
    numbers = [board.claim() for _ in range(3)]
    board.release(numbers.pop(1))
    row = board.row(numbers[1])
    (found, same), (memory,) = decode(moved(*encode([board, board])), live=True)
    assert found is same
    assert found.taken() == numbers
    row.set_state(State.READY)
    row.set_connections(17)
    assert found.read(numbers[1]).connections == 17
    assert (found.claim(), found.claim()) == (1, 3)
    found.close()
    board.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memory)


def test_a_board_that_is_laid_out_in_another_way_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(rows=4, lanes=2)
    board.row(board.claim()).set_connections(17)
    data = moved(*encode(board))
    monkeypatch.setattr(Board, "layout", (99,))
    found, descriptors = decode(data, live=True)
    assert isinstance(found, UnreadableBoard)
    assert found.read(0).connections == 0
    found.release(0)
    assert descriptors == []
    again, _ = decode(moved(*encode(found)), live=True)
    assert isinstance(again, UnreadableBoard)
    board.close()


def test_nothing_is_opened_in_a_rehearsal() -> None:
    board = Board(rows=1, lanes=1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert decode(encode([board, ours])[0], live=False)[0] == [None, None]
    board.close()
