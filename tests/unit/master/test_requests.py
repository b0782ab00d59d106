"""Stacks that are asked for while a clock has struck."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from prefork.control.messages import Request
from prefork.master.requests import Requests
from prefork.supervisor.worker import State
from prefork.worker import channel


class Child:
    """A worker's process that notes what it is sent."""

    pid = 42

    def __init__(self) -> None:
        self.signals: list[int] = []

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


class Charge(SimpleNamespace):
    def stacks_text(self) -> str:
        return bytes(self.stacks).decode()


def ask_stacks(state: State) -> tuple[Any, list[dict[str, Any]]]:
    """Ask for the stacks of a worker that has shown some; return it and the results."""
    name = SimpleNamespace(name="web/0")
    ours, theirs = channel.pair()
    charge = Charge(
        birth=7, generation=1, identity=name, child=Child(), channel=ours, stacks=bytearray(b"there")
    )
    keeper = SimpleNamespace(everybody=lambda: [SimpleNamespace(birth=7, state=state)])
    results: list[dict[str, Any]] = []

    def later(_seconds: float, function: Any) -> None:
        charge.stacks += b"" if charge.stacks else b"here"
        function()

    requests = Requests(
        cast(Any, SimpleNamespace(charges={7: charge})),
        cast(Any, SimpleNamespace(keepers={"web": keeper}, departing=[])),
        cast(Any, None),
        cast(Any, None),
        cast(Any, None),
        later,
        cast(Any, None),
    )
    requests.handle(
        Request(1, "stacks", {"worker": None}), cast(Any, SimpleNamespace(result=results.append, error=print))
    )
    ours.close()
    theirs.close()
    return charge, results


def test_what_a_strike_collects_is_shown_and_left_alone() -> None:
    charge, (result,) = ask_stacks(State.DUMPING)
    assert result["workers"][0]["stack"] == "there"
    assert charge.stacks == b"there"
    assert charge.child.signals == []


def test_what_was_answered_is_forgotten() -> None:
    charge, (result,) = ask_stacks(State.READY)
    assert result["workers"][0]["stack"] == "here"
    assert charge.stacks == b""
    assert len(charge.child.signals) == 1
