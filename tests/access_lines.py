"""Reads lines of the access log back, knowing no more than the template: what the log's readers have to be able to."""

from __future__ import annotations

import json
import re
from typing import Any

from prefork.config.access import TEMPLATES, parse_template

SHAPES = {
    "time": r"\d\d/[A-Z][a-z][a-z]/\d{4}:\d\d:\d\d:\d\d \+0000",
    "iso_time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z",
    "unix_time": r"\d+\.\d{3}",
    "seconds": r"\d+\.\d{6}",
    "worker": r"[A-Za-z0-9_-]+/\d+",
}
ESCAPED = re.compile(r"\\x([0-9A-F]{2})")


def read_line(line: str, template: str) -> dict[str, str | None]:
    """Return the fields of one line; None for what is missing. Fails if the line is none of this template."""
    pieces = parse_template(TEMPLATES.get(template, template))
    pattern = re.escape(pieces[0])
    for number, (name, after) in enumerate(zip(pieces[1::2], pieces[2::2], strict=True)):
        pattern += f"(?P<f{number}>{_value(name, after)}){re.escape(after)}"
    found = re.fullmatch(pattern, line)
    assert found is not None, f"not a line of {template}: {line!r}"
    return {name: unescape(found[f"f{number}"]) for number, name in enumerate(pieces[1::2])}


def read_json(line: str) -> dict[str, Any]:
    """Return the object of one line."""
    assert line.isascii()
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def unescape(text: str) -> str | None:
    r"""Return a value as the client sent it, a character per byte; ``\...`` says that its end is cut off."""
    if text in ("-", "\\-"):
        return None
    whole = text.removesuffix("\\...")
    assert re.fullmatch(r"(?:[^\\]|\\x[0-9A-F]{2})*", whole), text
    return ESCAPED.sub(lambda code: chr(int(code[1], 16)), whole)


def _value(name: str, after: str) -> str:
    """Return a pattern of all that the value may be: nothing that ends it, or an escape of it."""
    if name in SHAPES:
        return SHAPES[name]
    stop = re.escape(after[0]) if after else r"\n"
    return rf'\\-|(?:\\x[0-9A-F]{{2}}|(?!{stop})[^\\"\n])*(?:\\\.\.\.)?'
