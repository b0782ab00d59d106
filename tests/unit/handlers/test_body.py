from __future__ import annotations

import io
import os
import resource
import tempfile
from collections.abc import Iterator

import pytest

from prefork.handlers import body as bodies
from prefork.handlers.body import MEMORY, Body, MemoryFile, choose_storage

ROOM = MEMORY + 10_000


@pytest.fixture
def _little_room() -> Iterator[None]:
    """Let files be no larger than ROOM, which fails as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_small_body_stays_in_memory() -> None:
    body = Body()
    body.add(b"abc")
    body.add(b"def")
    stream = body.read_back()
    assert isinstance(stream, io.BytesIO)
    assert (stream.read(), body.size) == (b"abcdef", 6)


def test_a_body_of_one_piece_or_none_is_read_like_any_other() -> None:
    for pieces in ([], [b"abc"], [b"abc", b""]):
        body = Body()
        for piece in pieces:
            body.add(piece)
        assert body.read_back().read() == b"".join(pieces)
        body.close()


def test_a_large_body_goes_to_a_file_without_a_name() -> None:
    body = Body()
    body.add(b"a" * MEMORY)
    body.add(b"b")
    stream = body.read_back()
    assert isinstance(stream.fileno(), int)
    assert stream.read() == b"a" * MEMORY + b"b"
    assert body.size == MEMORY + 1
    body.close()
    assert stream.closed


@pytest.mark.parametrize(
    ("size", "now", "is_slow"),
    [
        (0, 110, False),
        (0, 111, True),
        (500, 111, False),
        (499, 111, True),
        (5000, 120, False),
        (5000, 121, True),
    ],
)
def test_a_body_is_slow_that_has_fewer_bytes_than_its_time_allows(
    size: int, now: float, is_slow: bool
) -> None:
    body = Body(began=100.0)
    body.add(b"a" * size)
    assert body.is_slow(now, rate=500, grace=10) is is_slow
    assert not body.is_slow(now, rate=0, grace=10)


@pytest.mark.usefixtures("_little_room")
@pytest.mark.parametrize("size", [100, 9000])
def test_a_full_disk_shows_while_pieces_come_and_never_later(size: int) -> None:
    body = Body()
    body.add(b"a" * (ROOM - 50))
    body.add(b"b" * 50)
    assert body.read_back().read() == b"a" * (ROOM - 50) + b"b" * 50
    body.close()
    full = Body()
    full.add(b"a" * (ROOM - 50))
    with pytest.raises(OSError, match="too large"):
        full.add(b"b" * size)
    full.close()


@pytest.fixture
def _no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no folder be writable, and bodies in memory take three times as much as one of them may have without."""

    def fail() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", fail)
    monkeypatch.setattr(bodies, "_open_file", bodies._open_temporary)  # to be restored
    monkeypatch.setattr(bodies, "MEMORY_FILES", 3 * ROOM)


def test_with_a_folder_nothing_is_said() -> None:
    assert choose_storage() is None


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memfd_create(2) here")
@pytest.mark.usefixtures("_no_folder")
def test_without_a_folder_bodies_share_a_bounded_part_of_memory() -> None:
    warning = choose_storage()
    assert warning is not None
    assert (
        "No usable temporary directory found in ['/tmp']: bodies above 64 KiB are kept in memory" in warning
    )
    gathered = [Body() for _ in range(4)]
    for body in gathered[:3]:
        body.add(b"a" * MEMORY)
        body.add(b"b" * (ROOM - MEMORY))
    gathered[3].add(b"c" * MEMORY)
    with pytest.raises(OSError, match="No space left"):
        gathered[3].add(b"d")
    gathered[3].close()
    stream = gathered[0].read_back()
    assert stream.read() == b"a" * MEMORY + b"b" * (ROOM - MEMORY)
    stream.close()
    stream.close()  # gives its memory back once
    again = Body()
    again.add(b"e" * ROOM)
    assert again.read_back().read() == b"e" * ROOM
    gathered[1].close()
    del gathered, again, body  # whatever is not closed is closed by its end
    assert MemoryFile._taken == 0


@pytest.mark.usefixtures("_no_folder")
def test_without_a_folder_and_memfd_large_bodies_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    assert "bodies above 64 KiB are refused" in (choose_storage() or "")
