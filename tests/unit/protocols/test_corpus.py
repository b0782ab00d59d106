"""What other servers have misread is refused, and what only looks odd is read as it is meant."""

from __future__ import annotations

import pytest

from prefork.protocols.http1 import Grammar, Refusal
from tests.corpus import BAD_HEADS, GOOD, SMUGGLED, SMUGGLERS


def read_first(data: bytes, grammar: Grammar) -> tuple[str, str, str | None, bytes, bytes]:
    """Return method, path, X-Test and body of the first request, and what is left."""
    head = grammar.read_head(data)
    assert head is not None
    rest, content = data[head.size :], b""
    if head.body is not None:
        content, rest = head.body.feed(rest)
        assert head.body.is_done
    return head.line.method, head.line.path, head.fields.get("HTTP_X_TEST"), content, rest


def grammar() -> Grammar:
    return Grammar(8190, 100, 8190, 2**30)


@pytest.mark.parametrize(
    ("data", "status"),
    [pytest.param(data, status, id=name) for name, data, status, _ in [*SMUGGLERS, *BAD_HEADS]],
)
def test_bad_requests_are_refused_however_often_they_come(data: bytes, status: int) -> None:
    shared = grammar()
    for _ in range(2):
        with pytest.raises(Refusal) as caught:
            read_first(data + SMUGGLED, shared)
        assert caught.value.status == status


@pytest.mark.parametrize(
    ("data", "meant"), [pytest.param(data, meant, id=name) for name, data, meant in GOOD]
)
def test_odd_requests_are_read_as_they_are_meant(data: bytes, meant: tuple[object, ...]) -> None:
    *found, rest = read_first(data + SMUGGLED, grammar())
    assert tuple(found) == meant
    assert rest == SMUGGLED
