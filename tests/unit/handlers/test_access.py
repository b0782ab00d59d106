"""Lines of the access log."""

from __future__ import annotations

import base64
import json
import re
import time

import pytest

from prefork.config.access import FIELDS, TEMPLATES
from prefork.handlers.access import Clock, Entry, Ids, RawHead, Server, compile_format, wants_id
from prefork.protocols.http1 import Grammar, Head
from tests.access_lines import read_json, read_line

SERVER = Server("web", 2, 7, 4711)
MOMENT = 1795366800.125  # 2026-11-22T17:00:00.125Z
GRAMMAR = Grammar(8190, 100, 8190, 2**30)


def head_of(target: str = "/a?b=c", *fields: str) -> Head:
    lines = [f"GET {target} HTTP/1.1", "Host: example.org", *fields, "", ""]
    head = GRAMMAR.read_head("\r\n".join(lines).encode("latin-1"))
    assert head is not None
    return head


def entry_of(*fields: str, target: str = "/a?b=c") -> Entry:
    head = head_of(target, *fields)
    entry = Entry("192.0.2.1", "50000")
    entry.head = head
    entry.status, entry.head_size, entry.sent, entry.received = 200, 100, 142, 7
    entry.since, entry.done, entry.waited, entry.request_id = 1000.0, 1000.25, 0.001, "abc"
    entry.request_id = "abc"
    return entry


def line_of(text: str, entry: Entry, longest: int | None = None) -> str:
    return compile_format(text, SERVER, Clock(1000.25, MOMENT), longest)(entry)


def test_common_and_combined_are_as_everybody_knows_them() -> None:
    credentials = base64.b64encode(b"joe:secret").decode()
    entry = entry_of(f"Authorization: Basic {credentials}", "Referer: http://a/", "User-Agent: curl/8 (x)")
    common = '192.0.2.1 - joe [22/Nov/2026:17:00:00 +0000] "GET /a?b=c HTTP/1.1" 200 42'
    assert line_of("common", entry) == common + "\n"
    assert line_of("combined", entry) == common + ' "http://a/" "curl/8 (x)"\n'
    assert line_of("combined", entry_of()).endswith(' "-" "-"\n')


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("fields", [(), ('Referer: "\\x', "User-Agent: -", "Authorization: Basic eA==")])
def test_what_is_written_out_is_what_the_template_says(name: str, fields: tuple[str, ...]) -> None:
    written_out = line_of(name, entry_of(*fields))
    assert written_out == line_of(TEMPLATES[name] + " ", entry_of(*fields)).replace(" \n", "\n")


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "header.NAME"])
def test_every_field_has_a_value(name: str) -> None:
    entry = entry_of("Authorization: Basic eDp5", "Referer: r", "User-Agent: u")
    assert re.fullmatch(r"<[^-].*>\n", line_of(f"<{{{name}}}>", entry))


def test_figures_are_what_they_say() -> None:
    text = "{status} {bytes} {sent} {received} {microseconds} {seconds} {waited} {client_port} {worker} {pool} {slot} {generation} {pid}"
    size = entry_of().head.size + 7
    assert line_of(text, entry_of()) == f"200 42 142 {size} 250000 0.250000 1000 50000 web/2 web 2 7 4711\n"


def test_moments_are_what_they_say() -> None:
    text = "{time}|{iso_time}|{unix_time}"
    assert line_of(text, entry_of()) == "22/Nov/2026:17:00:00 +0000|2026-11-22T17:00:00.125Z|1795366800.125\n"


def test_parts_of_the_request_line_are_what_they_say() -> None:
    text = "{method} {target} {path} {query} {protocol} {host}"
    line = line_of(text, entry_of(target="/%41%0a?x=%20"))
    assert line == "GET /%41%0a?x=%20 /A\\x0A x=%20 HTTP/1.1 example.org\n"


def test_any_field_of_the_request_can_be_shown() -> None:
    entry = entry_of("Accept-Language: en", "Content-Type: text/plain")
    assert line_of("{header.accept-Language} {header.content-type} {header.x}", entry) == "en text/plain -\n"


def test_literals_may_hold_percents_and_braces() -> None:
    assert line_of("100%s {{{status}}} %%", entry_of()) == "100%s {200} %%\n"


def test_a_value_does_not_contain_what_ends_it() -> None:
    entry = entry_of("User-Agent: a|b c-d")
    assert line_of("{agent}|{agent} {agent}-", entry) == "a\\x7Cb c-d|a|b\\x20c-d a|b c\\x2Dd-\n"


def test_a_hyphen_is_not_taken_for_nothing() -> None:
    assert line_of("{agent} {referer}", entry_of("User-Agent: -")) == "\\x2D -\n"


@pytest.mark.parametrize(
    "value", ["Bearer eDp5", "Basic", "Basic !!!", "Basic eA==", "Basic \xff", "basic  ", "Basic e"]
)
def test_what_is_no_basic_authentication_names_no_user(value: str) -> None:
    assert line_of("{user}.", entry_of(f"Authorization: {value}")) == "-.\n"


def test_json_is_an_object_per_line() -> None:
    entry = entry_of('Referer: \xe9"\\')
    line = line_of("json", entry)
    assert line.count("\n") == 1
    assert read_json(line) == {
        "time": "2026-11-22T17:00:00.125Z",
        "client": "192.0.2.1",
        "method": "GET",
        "target": "/a?b=c",
        "protocol": "HTTP/1.1",
        "status": 200,
        "bytes": 42,
        "sent": 142,
        "received": entry.head.size + 7,
        "referer": '\xe9"\\',
        "agent": None,
        "host": "example.org",
        "microseconds": 250000,
        "waited": 1000,
        "request_id": "abc",
        "pool": "web",
        "slot": 2,
        "generation": 7,
        "pid": 4711,
    }


def test_what_is_no_request_line_is_shown_as_it_came() -> None:
    entry = entry_of()
    entry.head = RawHead(b'\r\n\x16\x03"\\ x\r\nmore')
    assert ' "\\x16\\x03\\x22\\x5C x" ' in line_of("combined", entry)
    assert line_of("{method} {target}", entry) == "- -\n"
    assert read_json(line_of("json", entry))["method"] is None
    entry.head = RawHead(b"GET /?q HTTP/1.1\r\nHost\r\n")
    assert line_of("{method} {path} {query} {protocol}", entry) == "GET / q HTTP/1.1\n"
    entry.head = RawHead(b"x" * 100_000)
    assert len(line_of("common", entry)) < 3000


@pytest.mark.parametrize(
    "text", ["common", "combined", "{client} {target} {agent} {status}|{worker}", "json"]
)
def test_a_line_can_be_kept_short(text: str) -> None:
    entry = entry_of("User-Agent: " + '\xff"' * 3000, "Referer: " + "\\" * 7000, target="/" + "x" * 8000)
    line = line_of(text, entry, longest=4096)
    assert len(line.encode()) <= 4096
    assert len(line) > 1000
    if text == "json":
        found = read_json(line)
        assert found["target"].endswith("xxx…")
        assert found["agent"].startswith('\xff"\xff')
    else:
        name = "request" if text[0] == "c" else "target"
        value = read_line(line[:-1], text)[name]
        assert value is not None
        assert value.endswith("xxx")
        assert "xxx\\..." in line


def test_the_text_of_a_second_is_made_once_and_follows_the_wall_clock() -> None:
    clock = Clock(50.0, MOMENT)
    assert clock.until == pytest.approx(50.875)
    clock.tell(50.9, MOMENT + 0.9)
    assert (clock.text, clock.iso(50.9)) == ("22/Nov/2026:17:00:01 +0000", "2026-11-22T17:00:01.025Z")
    clock.tell(51.0, MOMENT - 3600)
    assert clock.text == "22/Nov/2026:16:00:00 +0000"


def test_a_log_line_of_each_second_is_right_by_the_libraries_own_account() -> None:
    for wall in (0.0, 951782400.0, 1709164799.999, MOMENT):
        assert Clock(0.0, wall).text == time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(wall))


@pytest.mark.parametrize("text", ["common", "combined", "json", '"{method} {path}" "{agent}" {user} {host}'])
def test_what_is_kept_with_a_head_is_written_again(text: str) -> None:
    """By the same format, and not by another one; what is long is not kept."""
    make, other = (compile_format(text, SERVER, Clock(0.0, MOMENT), longest) for longest in (None, 1500))
    for agent in ("a", "a" * 2000):
        entry = entry_of(f"User-Agent: {agent}", "Authorization: Basic YTpi")
        first = make(entry)
        assert [make(entry), other(entry) == first, make(entry)] == [
            first,
            agent == "a" or text == "common",
            first,
        ]
        assert entry.head.block.told is None or len(str(entry.head.block.told)) < 1000


def test_a_host_that_the_target_names_is_shown_whatever_was_kept() -> None:
    grammar = Grammar(8190, 100, 8190, 1000)
    make = compile_format("json", SERVER, Clock(0.0, MOMENT))
    hosts = []
    for line in ("GET / HTTP/1.1", "GET http://b/ HTTP/1.1", "GET / HTTP/1.1") * 2:
        entry = Entry("", "")
        head = grammar.read_head(f"{line}\r\nHost: a\r\n\r\n".encode())
        assert head is not None
        entry.head = head
        hosts.append(json.loads(make(entry))["host"])
    assert hosts == ["a", "b", "a"] * 2


def test_a_request_gets_an_id_unless_it_brings_a_safe_one() -> None:
    ids = Ids()
    bad = ([], *([f"X-Request-ID: {value}"] for value in ("", "a b", 'x"y', "a" * 129, "\xe9")))
    made = [ids.identify(head_of("/", *fields)) for fields in bad]
    assert len(set(made)) == len(made)
    assert all(re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", made_one) for made_one in made)
    assert ids.identify(head_of("/", "X-Request-ID: Good._-1")) == "Good._-1"


def test_ids_are_made_only_if_they_are_shown() -> None:
    shown = [
        text
        for text in ("common", "combined", "json", "{request_id}", "{header.x-request-id}")
        if wants_id(text)
    ]
    assert shown == ["json", "{request_id}"]


def test_json_is_what_the_json_module_reads() -> None:
    assert json.loads(line_of("json", entry_of("User-Agent: a\t\x85\xff")))["agent"] == "a\t\x85\xff"
