"""Whatever a client sends, each line of the access log reads back as what it sent, in every format."""

from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st

from prefork.config.access import FIELDS, TEMPLATES, parse_template
from prefork.handlers.access import Clock, Entry, Format, RawHead, RawLine, Server, compile_format
from prefork.protocols.http1 import Block, Head, RequestLine
from tests.access_lines import read_json, read_line

CLOCK = Clock(0.0, 1795366800.0)
SERVER = Server("web", 0, 1, 4711)
WRITTEN_OUT: dict[str, Format] = {name: compile_format(name, SERVER, CLOCK) for name in (*TEMPLATES, "json")}

# A character per byte, whatever it is; more often what a log's reader could take for something else.
values = st.text(
    st.one_of(st.sampled_from('"\\- \n\r\tx|]0\x00\x7f\xff'), st.characters(max_codepoint=255)), max_size=30
)
targets = st.text(st.sampled_from(string.ascii_letters + "\"\\'|{}<>%?&-"), max_size=20).map("/{}".format)
names = st.sampled_from([name for name in FIELDS if name != "header.NAME"] + ["header.x-any"])
# What follows a field has to end it: a figure's digits are not escaped.
literals = st.text(st.sampled_from("\" |[]<>\\{}%-x'\t"), min_size=1, max_size=3)

KEYS = {
    "referer": "HTTP_REFERER",
    "agent": "HTTP_USER_AGENT",
    "host": "HTTP_HOST",
    "header.x-any": "HTTP_X_ANY",
}
TEXTS = (*KEYS, "client", "request_id", "request", "method", "target", "path", "protocol")


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    entry = Entry(draw(st.sampled_from(["", "192.0.2.1", "fe80::1%eth0"])), "50000")
    if draw(st.booleans()):
        line = RequestLine("GET", draw(targets), "HTTP/1.1")
    else:
        entry.head = RawHead(draw(values).encode("latin-1"))
        return _answered(entry, draw)
    keys = st.sampled_from(sorted(KEYS.values()))
    fields = draw(st.dictionaries(keys, values))
    entry.head = Head(line, Block(b"", fields, 0), fields, 100)
    return _answered(entry, draw)


def _answered(entry: Entry, draw: st.DrawFn) -> Entry:
    entry.status = draw(st.integers(200, 599))
    entry.sent = draw(st.integers(0, 2**40))
    entry.request_id = draw(st.sampled_from(["", "0123456789abcdef-17", "a", "-", "-._Z9"]))
    return entry


def shown(entry: Entry, name: str) -> str | None:
    """Return what a field of text has to read back as."""
    if name in KEYS:
        return entry.head.fields.get(KEYS[name])
    if name in ("client", "request_id"):
        return getattr(entry, name) or None
    if name == "request":
        line = entry.head.line
        text = line.text if isinstance(line, RawLine) else f"{line.method} {line.target} {line.protocol}"
        return text or None
    return getattr(entry.head.line, name) or None


@given(entries(), st.sampled_from(sorted(TEMPLATES)))
def test_common_and_combined_read_back(entry: Entry, name: str) -> None:
    line = WRITTEN_OUT[name](entry)
    assert line.endswith("\n")
    found = read_line(line[:-1], name)
    for field in set(found) & set(TEXTS):
        assert found[field] == shown(entry, field)
    assert (found["status"], found["bytes"]) == (str(entry.status), str(entry.sent))


@given(entries(), st.lists(st.tuples(names, literals), min_size=1, max_size=6))
def test_templates_read_back(entry: Entry, parts: list[tuple[str, str]]) -> None:
    template = "".join(f"{{{name}}}" + after.replace("{", "{{").replace("}", "}}") for name, after in parts)
    line = compile_format(template, SERVER, CLOCK)(entry)
    assert line.count("\n") == 1
    assert line.isascii()
    found = read_line(line[:-1], template)
    assert set(found) == set(parse_template(template)[1::2])
    for name in set(found) & set(TEXTS):
        assert found[name] == shown(entry, name)


@given(entries())
def test_json_reads_back(entry: Entry) -> None:
    found = read_json(WRITTEN_OUT["json"](entry))
    for name in ("client", "method", "target", "protocol", "referer", "agent", "host", "request_id"):
        assert found[name] == shown(entry, name)


@given(entries(), st.sampled_from([*TEMPLATES, "json", "{agent}|{header.x-any}"]), st.integers(2000, 4096))
def test_a_short_line_is_short_and_reads_back(entry: Entry, name: str, longest: int) -> None:
    entry.head.fields = {key: value * 100 for key, value in entry.head.fields.items()}
    line = compile_format(name, SERVER, CLOCK, longest)(entry)
    assert len(line) <= longest
    assert line.count("\n") == 1
    agent = read_json(line)["agent"] if name == "json" else read_line(line[:-1], name).get("agent")
    whole = entry.head.fields.get("HTTP_USER_AGENT")
    if agent is not None:
        assert whole is not None
        assert whole.startswith(agent.removesuffix("…"))
