"""Which deaths the kernel's OOM killer is to blame for."""

from __future__ import annotations

import pytest

from prefork.master import oom
from prefork.master.oom import OomKills


class Counter:
    def __init__(self, value: int | None) -> None:
        self.value = value

    def __call__(self) -> int | None:
        return self.value


def test_each_of_several_kills_at_once_explains_one_death() -> None:
    counter = Counter(7)
    kills = OomKills(counter)
    assert not kills.explain()
    counter.value = 9
    assert [kills.explain() for _ in range(3)] == [True, True, False]


def test_old_kills_of_others_explain_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter(0)
    kills = OomKills(counter)
    counter.value = 5
    assert kills.explain()
    monkeypatch.setattr(oom, "FRESH", 0.0)
    assert not kills.explain()


def test_a_kernel_that_does_not_count_explains_nothing() -> None:
    assert not OomKills(Counter(None)).explain()
