from __future__ import annotations

import io

from prefork.handlers.body import MEMORY, Body


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
