from __future__ import annotations

import logging
import re
from email.utils import formatdate

import pytest

from prefork.handlers import response
from prefork.handlers.response import TABLE_HEAD_SIZE, TABLE_HEADS, TABLE_SIZE, http_date, read_head


def test_a_status_becomes_a_line() -> None:
    found, bare = read_head("404 Not Found", []), read_head("200", [])
    assert (found.status, found.head) == (404, b"HTTP/1.1 404 Not Found\r\n")
    assert (bare.status, bare.head) == (200, b"HTTP/1.1 200 \r\n")


@pytest.mark.parametrize(
    "status", ["", "OK", "20 OK", "2000 OK", "200OK", "100 Continue", "200 OK\r\nA: b", "200 \x00"]
)
def test_a_bad_status_is_a_value_error(status: str) -> None:
    with pytest.raises(ValueError, match="expected a status like '200 OK'"):
        read_head(status, [])


def test_a_status_in_bytes_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="expected a status as str, found bytes"):
        read_head(b"200 OK", [])  # type: ignore[arg-type]


def test_fields_become_lines_and_facts() -> None:
    for _ in range(2):  # the second time from the table
        fields = read_head(
            "200 OK",
            [
                ("A", "b"),
                ("content-length", "5"),
                ("Connection", "Close"),
                ("Keep-Alive", "1"),
                ("Date", "now"),
            ],
        )
        assert fields.head == b"HTTP/1.1 200 OK\r\nA: b\r\nDate: now\r\n"
        assert (fields.length, fields.length_line) == (5, b"content-length: 5\r\n")
        assert (fields.asks_close, fields.has_date, fields.has_server) == (True, True, False)


@pytest.mark.parametrize(
    "pair",
    [
        ("A", "b\r\nC: d"),
        ("A", "b\n"),
        ("A", "\x00"),
        ("A", "\u20ac"),
        ("A\r\n", "b"),
        ("A B", "b"),
        ("", "b"),
        ("\xe4", "b"),
        ("Content-Length", "five"),
        ("Content-Length", "-1"),
        ("Content-Length", ""),
        ("Transfer-Encoding", "gzip, chunked"),
    ],
)
def test_a_bad_field_is_a_value_error_however_often(pair: tuple[str, str]) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match=r".+"):
            read_head("200 OK", [pair])


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([(b"A", "b")], "(b'A', 'b')"),
        ([("A", 1)], "('A', 1)"),
        ([("A", b"b")], "('A', b'b')"),
        ([("A", [])], "('A', [])"),
        ([("A", "b"), ("A",)], "('A',)"),
        ([("A", "b", "c")], "('A', 'b', 'c')"),
        ([("A", "b"), ["C", "d"]], "['C', 'd']"),
        (["A: b"], "'A: b'"),
        ((("A", "b"),), "tuple"),
        (None, "NoneType"),
    ],
)
def test_a_wrong_type_is_a_type_error_that_says_what_was_found(headers: object, found: str) -> None:
    for _ in range(2):
        with pytest.raises(TypeError) as caught:
            read_head("200 OK", headers)  # type: ignore[arg-type]
        assert "expected a" in str(caught.value)
        assert str(caught.value).endswith(f"found {found}")


@pytest.mark.parametrize(
    "name",
    ["Keep-Alive", "TE", "Trailer", "Upgrade", "Proxy-Connection", "Proxy-Authenticate", "transfer-encoding"],
)
def test_what_an_upstream_said_about_its_connection_is_dropped_with_one_warning(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response, "_dropped", set())
    monkeypatch.setattr(logging.getLogger("prefork"), "propagate", True)
    values = ["chunked", "Chunked"]
    heads = [read_head("200 OK", [("A", "b"), (name, value)]).head for value in values * 2]
    assert heads == [b"HTTP/1.1 200 OK\r\nA: b\r\n"] * 4
    assert [record.getMessage() for record in caplog.records] == [
        f"dropped the header {name.lower()}: chunked of the application: it is about the connection (PEP 3333)"
    ]
    assert read_head("200 OK", [("Connection", "Upgrade, Keep-Alive")]).head == b"HTTP/1.1 200 OK\r\n"


class Evil(str):
    """Text that says something else about itself than it holds."""

    __slots__ = ()

    def _other(self, *_: object) -> str:
        return "evil\r\nSet-Cookie: a=b"

    __str__ = __format__ = __getitem__ = lower = encode = _other  # type: ignore[assignment]

    def __int__(self) -> int:
        return 666


def test_what_a_subclass_of_str_holds_is_checked_and_sent() -> None:
    for _ in range(2):
        headers = [(Evil("A"), Evil("b")), ("Content-Length", Evil("5"))]
        fields = read_head(Evil("200 Fine"), headers)  # type: ignore[arg-type]
        assert fields.head == b"HTTP/1.1 200 Fine\r\nA: b\r\n"
        assert (fields.length, fields.length_line) == (5, b"Content-Length: 5\r\n")
    with pytest.raises(ValueError, match="without control characters"):
        read_head("200 OK", [("A", Evil("b\r\nC: d"))])


def test_two_lengths_must_agree() -> None:
    assert read_head("200", [("Content-Length", "5"), ("content-length", "5")]).length == 5
    with pytest.raises(ValueError, match="two Content-Length headers, 5 and 6"):
        read_head("200", [("Content-Length", "5"), ("Content-Length", "6")])


def test_the_tables_are_bounded() -> None:
    for number in range(TABLE_SIZE + 10):
        read_head(f"200 {number}", [("A", str(number))])
    assert len(response._fields) <= TABLE_SIZE
    assert len(response._statuses) <= TABLE_SIZE
    assert len(response._heads) <= TABLE_HEADS


def test_a_large_head_is_not_kept() -> None:
    headers = [(f"A-{number}", "b" * 200) for number in range(10)]
    fields = read_head("200 OK", headers)
    assert len(fields.head) > TABLE_HEAD_SIZE
    assert fields not in response._heads.values()


def test_the_same_head_is_read_once_and_another_is_not_taken_for_it() -> None:
    headers = [("A", "b"), ("C", "d")]
    assert read_head("200 OK", headers) is read_head("200 OK", list(headers))
    assert read_head("200 OK", headers[::-1]).head == b"HTTP/1.1 200 OK\r\nC: d\r\nA: b\r\n"
    assert read_head("201 OK", headers).status == 201


def test_an_answer_of_the_servers_own_is_whole() -> None:
    answer = response.plain(413, "too large", close=True)
    assert re.fullmatch(
        rb"HTTP/1\.1 413 [A-Za-z ]+\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 10\r\n"
        rb"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\nServer: prefork\r\nConnection: close\r\n\r\n"
        rb"too large\n",
        answer,
    )
    assert response.plain(500, "x", close=False, body=False).endswith(b"\r\n\r\n")


@pytest.mark.parametrize("second", [0, 86399, 784111777, 951782400, 1795366800, 4102444799])
def test_a_date_is_as_everybody_else_writes_it(second: int) -> None:
    assert http_date(second) == formatdate(second, usegmt=True)
