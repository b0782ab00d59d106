"""A stream of bytes becomes lines: none is lost or torn, and none is longer than the limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefork.worker.output import Lines

LIMIT = 8


def lines(*pieces: bytes) -> list[str]:
    reader = Lines(LIMIT)
    return [line for piece in pieces for line in reader.feed(piece)] + reader.rest()


def test_lines_come_whole_however_they_are_cut_on_the_way():
    assert lines(b"on", b"e\ntw", b"o\r\n", b"\nrest") == ["one", "two", "", "rest"]


def test_a_line_that_is_too_long_comes_in_marked_pieces_before_its_end_is_there():
    reader = Lines(LIMIT)
    assert reader.feed(b"a" * 20) == ["a" * 8 + "…", "…" + "a" * 8 + "…"]
    assert reader.feed(b"b\nc\n") == ["…aaaab", "c"]


def test_a_line_of_just_the_limit_is_not_cut():
    assert lines(b"12345678\n12345678") == ["12345678", "12345678"]


def test_no_character_is_cut():
    assert lines("1234567€9\n".encode()) == ["1234567…", "…€9"]


def test_what_is_no_utf_8_is_shown_and_cut_all_the_same():
    assert lines(b"\xff\xfe\n") == [r"\xff\xfe"]
    assert lines(b"\x80" * 12) == [r"\x80" * 4 + "…", "…" + r"\x80" * 8]


def test_an_unfinished_line_can_be_shown_and_goes_on_with_marks():
    reader = Lines(LIMIT)
    assert reader.part() == []
    assert reader.feed(b"name\nab\xe2\x82") == ["name"]
    assert reader.part() == ["ab…"]
    assert reader.part() == []  # half a character waits for its other half
    assert reader.feed(b"\xac\n") == ["…€"]


@given(st.lists(st.text("aé€😀\n", max_size=30).map(str.encode), max_size=8))
def test_the_pieces_make_up_what_was_printed(pieces):
    whole = b"".join(pieces).decode("utf-8")
    found = lines(*pieces)
    joined = "\n".join(found).replace("…\n…", "")
    assert joined == whole.removesuffix("\n")
    assert all(len(line.replace("…", "").encode()) <= LIMIT for line in found)
