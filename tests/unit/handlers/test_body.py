from __future__ import annotations

import io
import resource
from collections.abc import Iterator

import pytest

from prefork.handlers.body import MEMORY, Body

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
