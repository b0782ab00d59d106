"""What a program says of itself before and after: its part, and its last words."""

from __future__ import annotations

import os

import pytest

from prefork.master.upgrade import VARIABLE, Role, last_words, role


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("rehearse 5 6", Role(5, 6)),
        ("succeed 5", Role(5, None)),
        ("", None),
        ("succeed", None),
        ("rehearse 5", None),
    ],
)
def test_a_program_learns_its_part_once(
    value: str, found: Role | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    assert role() == found
    assert VARIABLE not in os.environ
    assert role() is None


@pytest.mark.parametrize(
    ("output", "reason", "before"),
    [
        ("", "it says nothing", ""),
        ("Traceback:\n  File x\nImportError: no y\n\n", "ImportError: no y", "Traceback:\n  File x"),
        (
            "chatter\nTraceback:\nerror: a: b\nhint: c\nerror: d\n",
            "a: b\nhint: c\nd",
            "chatter\nTraceback:",
        ),
    ],
)
def test_last_words_are_told_from_what_was_said_before(output: str, reason: str, before: str) -> None:
    assert last_words(output) == (reason, before)
