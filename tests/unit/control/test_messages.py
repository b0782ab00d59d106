"""Control messages: round trips, defaults, and lines that are no requests."""

from __future__ import annotations

import json

import pytest

from prefork.control.messages import (
    Answer,
    Fault,
    Request,
    RequestError,
    decode_answer,
    decode_request,
    encode,
)


@pytest.mark.parametrize(
    "request_",
    [
        Request(1, "status", {}),
        Request(2, "reload", {"pools": ["web"]}),
        Request(3, "scale", {"pool": "web", "workers": 4}),
        Request(4, "stop", {"now": True}),
        Request(5, "stacks", {"worker": "web/2"}),
    ],
)
def test_a_request_is_one_line_and_comes_back_equal(request_: Request) -> None:
    line = encode(request_)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode_request(line) == request_


@pytest.mark.parametrize(
    "answer",
    [
        Answer(1, progress="web: 2 of 4 workers of generation 3 ready"),
        Answer(1, result={}),
        Answer(1, result={"generation": 4, "seconds": 1.2}),
        Answer(None, error=Fault("no")),
        Answer(1, error=Fault("two\nlines", "a hint", 'Traceback …\n  File "ö.py"')),
    ],
)
def test_an_answer_is_one_line_and_comes_back_equal(answer: Answer) -> None:
    line = encode(answer)
    assert line.count(b"\n") == 1
    assert decode_answer(line) == answer


def test_an_error_is_written_with_all_its_keys() -> None:
    assert json.loads(encode(Answer(1, error=Fault("no")))) == {
        "id": 1,
        "error": {"message": "no", "hint": None, "traceback": "", "again": False},
    }


def test_missing_arguments_get_their_defaults() -> None:
    assert decode_request(b'{"id": 1, "command": "stop"}').arguments == {"now": False}
    assert decode_request(b'{"id": 1, "command": "stacks"}').arguments == {"worker": None}


@pytest.mark.parametrize(
    ("line", "identity", "said"),
    [
        (b"", None, "expected a request, found ''"),
        (b"GET / HTTP/1.1\r", None, "expected a request, found 'GET / HTTP/1.1"),
        (b"\xff\xfe", None, "expected a request"),
        (b"[]", None, "expected a request"),
        (b'{"id": 7, "command": "stop", "arguments": {"now": ' + b"[" * 60000, None, "recursion depth"),
        (b'{"id": "x", "command": "stop"}', None, "expected a request"),
        (b'{"id": 7}', 7, "missing required field `command`"),
        (b'{"id": 7, "command": "stop", "argument": {}}', 7, "unknown field `argument`"),
        (b'{"id": 7, "command": "stop", "arguments": {"later": true}}', 7, "unknown field `later`"),
        (
            b'{"id": 7, "command": "scale", "arguments": {"pool": "web"}}',
            7,
            "missing required field `workers`",
        ),
        (b'{"id": 7, "command": "scale", "arguments": {"pool": "web", "workers": "4"}}', 7, "Expected `int`"),
        (
            b'{"id": 7, "command": "stpo"}',
            7,
            "unknown command 'stpo', expected one of status, reload, restart",
        ),
    ],
)
def test_a_line_that_is_no_request_is_refused_with_what_can_be_known(
    line: bytes, identity: int | None, said: str
) -> None:
    with pytest.raises(RequestError) as caught:
        decode_request(line)
    assert caught.value.id == identity
    assert said in str(caught.value)


def test_a_long_bad_line_is_quoted_in_part() -> None:
    with pytest.raises(RequestError) as caught:
        decode_request(b"x" * 1000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "line", [b'{"id": 1}\n', b'{"id": 1, "progress": "x", "result": {}}\n', b"rubbish\n", b"\xff\n"]
)
def test_a_line_that_is_no_answer_raises_valueerror(line: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_answer(line)


def test_text_that_json_cannot_carry_is_sent_readable() -> None:
    answer = decode_answer(encode(Answer(1, result={"name": "caf\udce9", "pools": [{"a\udcff": 1}]})))
    assert answer.result == {"name": "caf\\udce9", "pools": [{"a\\udcff": 1}]}
