"""What the access log may show of a request, and how a template names it: ``{client} "{request}" {status}``.

The fields are declared here once: validation, conf/full.toml and the formatter (handlers/access.py) go by this table.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Final

from prefork.units import UnitError

OFF: Final = "off"
JSON: Final = "json"

FIELDS: Final = {
    "client": "the client's address; - on a Unix socket",
    "client_port": "the client's port",
    "user": "user name from Basic authentication, whether verified or not",
    "time": "end of the response, in UTC: 22/Nov/2026:17:00:00 +0000",
    "iso_time": "the same as 2026-11-22T17:00:00.123Z",
    "unix_time": "the same in seconds since 1970: 1795366800.123",
    "request": "request line as received",
    "method": "GET, POST …",
    "target": "request target as received, including the query",
    "path": "path of the target, decoded",
    "query": "query of the target, without the question mark",
    "protocol": "HTTP/1.1 or HTTP/1.0",
    "status": "status of the response; 499: nothing was sent, usually because the client had disconnected",
    "bytes": "bytes of the response body that were sent: fewer than all if the client disconnected",
    "sent": "bytes of the response, including its head",
    "received": "bytes of the request, including its head",
    "referer": "header Referer",
    "agent": "header User-Agent",
    "host": "header Host",
    "header.NAME": "any header of the request, such as {header.accept-language}",
    "microseconds": "time from the first byte of the request to the end of the response",
    "seconds": "the same as 0.001234",
    "waited": "microseconds that the request waited for a thread",
    "request_id": "header X-Request-ID if it is valid, else a new id, which the application receives as that header",
    "worker": "worker that served it: web/2",
    "pool": "the worker's pool",
    "slot": "the worker's slot",
    "generation": "the worker's generation",
    "pid": "pid of the worker",
}
COMMON: Final = '{client} - {user} [{time}] "{request}" {status} {bytes}'
TEMPLATES: Final = {"common": COMMON, "combined": COMMON + ' "{referer}" "{agent}"'}
NAMES: Final = (*TEMPLATES, JSON)

_TOKEN = re.compile(r"(?P<twice>\{\{|\}\})|\{(?P<field>[^{}]*)\}|(?P<single>[{}])|[^{}]+")
_HEADER = re.compile(r"header\.[A-Za-z0-9-]{1,64}", re.ASCII)
_MAX_TEMPLATE = 1024


def check_format(text: str) -> str:
    """Return the value of ``access_format`` if it is one. Raises UnitError."""
    if text not in NAMES:
        if "{" not in text:
            near = get_close_matches(text.lower(), NAMES, 1)
            raise UnitError(_expected(), text, f'did you mean "{near[0]}"?' if near else None)
        parse_template(text)
    return text


def parse_template(text: str) -> tuple[str, ...]:
    """Return a template's pieces: a literal, the name of a field, a literal … and a literal at last.

    Two fields must be told apart by what stands between them. Raises UnitError.
    """
    if len(text) > _MAX_TEMPLATE or not text.replace("\t", " ").isprintable():
        raise UnitError(f"a line of at most {_MAX_TEMPLATE} printable characters", text)
    pieces = [""]
    for token in _TOKEN.finditer(text):
        if token["single"]:
            raise UnitError(
                "fields in braces", text, "write {{ for a brace that begins no field, }} likewise"
            )
        if token["field"] is None:
            pieces[-1] += token[0][0] if token["twice"] else token[0]
            continue
        if len(pieces) > 1 and not pieces[-1]:
            hint = "put a space, or quotes, between them"
            raise UnitError("something between two fields", f"{{{pieces[-2]}}}{token[0]}", hint)
        pieces += [_known(token["field"]), ""]
    return tuple(pieces)


def _known(name: str) -> str:
    if _HEADER.fullmatch(name) or (name in FIELDS and name != "header.NAME"):
        return name
    near = get_close_matches(name.lower(), FIELDS, 1)
    raise UnitError("a known field", f"{{{name}}}", f"did you mean {{{near[0]}}}?" if near else _all())


def _all() -> str:
    return "the fields are " + ", ".join(FIELDS)


def _expected() -> str:
    return ", ".join(f'"{name}"' for name in NAMES) + ', or a template such as "{client} {status}"'
