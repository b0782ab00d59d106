"""The control socket's language: nothing that is sent to the master can make it stumble."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from prefork.control.messages import (
    Answer,
    Fault,
    Request,
    RequestError,
    decode_answer,
    decode_request,
    encode,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "web", "4"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=3,
)
# Any text that Python can hold, lone surrogates included: file names and tracebacks may have them.
TEXT = st.text(st.characters(exclude_categories=()), max_size=20)


def accept_or_refuse(line: bytes) -> Request | None:
    refusal = ""
    try:
        return decode_request(line)
    except RequestError as error:
        refusal = str(error)
    assert 0 < len(refusal) < 1000
    return None


@given(st.binary(max_size=100))
def test_any_bytes_are_a_request_or_refused(line: bytes) -> None:
    accept_or_refuse(line)


@given(
    st.sampled_from([b"[", b'{"id":', b'{"id":1,"command":"stop","arguments":{"now":[']),
    st.integers(1, 30_000),
)
def test_any_nesting_is_refused(opening: bytes, depth: int) -> None:
    assert accept_or_refuse((opening * depth)[:65536]) is None


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "id": JSON,
            "command": st.sampled_from(["status", "scale", "stop", "stacks"]) | JSON,
            "arguments": st.dictionaries(st.sampled_from(["pool", "workers", "now", "worker"]), JSON) | JSON,
            "more": JSON,
        },
    )
)
def test_a_request_that_is_accepted_has_all_arguments_of_its_command(written: object) -> None:
    request = accept_or_refuse(json.dumps(written).encode())
    if request is not None:
        expected = {"scale": {"pool", "workers"}, "stop": {"now"}, "stacks": {"worker"}, "status": set()}
        assert set(request.arguments) == expected[request.command]


@given(TEXT, st.none() | TEXT, st.dictionaries(TEXT, TEXT))
def test_any_answer_is_one_line_that_can_be_read(text: str, hint: str | None, result: dict[str, str]) -> None:
    for answer in (
        Answer(1, progress=text),
        Answer(1, result=result),
        Answer(1, error=Fault(text, hint, text)),
    ):
        line = encode(answer)
        assert line.index(b"\n") == len(line) - 1
        assert decode_answer(line).id == 1
