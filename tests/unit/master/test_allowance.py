"""How much the master listens to one worker."""

from __future__ import annotations

from prefork.master.allowance import MOST, SPAN, Allowance


def test_so_much_is_taken_in_a_span_and_no_more():
    allowance = Allowance()
    assert all(allowance.take(100.0) for _ in range(MOST))
    assert not allowance.take(100.0 + SPAN / 2)
    assert allowance.take(100.0 + SPAN)


def test_the_first_excess_is_told_from_later_ones():
    allowance = Allowance()
    assert [allowance.note_excess() for _ in range(3)] == [True, False, False]
