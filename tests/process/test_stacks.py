"""Stacks that people asked for are not taken for the place of a crash."""

from __future__ import annotations

import json

from tests.faulty import ask, begin, pool
from tests.process.conftest import Start


def test_stacks_of_before_are_no_place_of_a_crash(start: Start) -> None:
    server = start('[log]\nformat = "json"\n' + pool())
    server.wait_for("generation 1 serves")
    with begin(server, "hold"):
        assert "in hold" in server.run("stacks").stdout
    ask(server, "crash")
    (line,) = server.wait_for("ended: ")
    message = json.loads(line)["message"]
    assert "in crash" in message
    assert "in hold" not in message
