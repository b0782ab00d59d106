"""Files for people to start from: what ``prefork init`` writes, and the reference conf/full.toml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from prefork.config.access import FIELDS, TEMPLATES
from prefork.config.schema import (
    Hooks,
    Http,
    Limits,
    Listen,
    Log,
    Master,
    Option,
    Pool,
    Scale,
    Tls,
    Unit,
    options,
)

COLUMN = 42

SERVER_TOML = """\
# prefork's configuration. Run it from this folder:     prefork run server.toml
# Check it and load the application:                    prefork check server.toml
# While it runs:    prefork status server.toml          prefork reload server.toml (or a HUP)
# All keys:         prefork schema

[master]
control = "run/server.sock"       # control socket, used by status, reload and stop

[log]
level = "info"                    # debug, info, warning, error

[pool.web]                        # a pool: identical workers that share their listeners
listen = ["127.0.0.1:8000"]       # also "[::1]:8000", "0.0.0.0:80", "unix:run/web.sock"
wsgi = "app:application"          # module:attribute, found in this folder
workers = 2                       # a number, or "auto": one per usable CPU
threads = 1                       # requests that a worker handles at the same time
request_timeout = 30              # then its stack is logged and the worker replaced; 0: no limit
"""

APP_PY = '''\
"""A WSGI application (PEP 3333): replace it with your own, Django's, Flask's …"""


def application(environ, start_response):
    """Answer every request."""
    body = f"Hello! You asked for {environ['PATH_INFO']}\\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
    return [body]
'''

FULL_HEAD = """\
# Every key with its default and its documentation; a key without a default is a comment with an example.
# Generated from prefork/config/schema.py: see tests/unit/config/test_starter.py.
#
# Durations are seconds, or text like "1m30s" or "500ms". Sizes are bytes, or text like "64KiB" or "1GiB".
# Relative paths start at this file's folder, or at master.directory if it is set. Environment variables
# (PREFORK_POOL__WEB__WORKERS=8) override the file, and the command line (--set pool.web.workers=8) overrides both.
"""


def starter() -> dict[str, str]:
    """Return the files of a new project that runs at once: text by file name."""
    return {"server.toml": SERVER_TOML, "app.py": APP_PY}


def full_toml() -> str:
    """Return conf/full.toml: every key with its default and its documentation."""
    web = {"listen": '["127.0.0.1:8000"]', "wsgi": '"prefork.examples.hello:app"'}
    lines = [
        *_table("[master]", Master),
        *_table("[log]", Log),
        *_fields(),
        *_table("[hooks]", Hooks),
        "# Any number of pools, named with letters, digits, - and _. Each has exactly one of handler, wsgi, task and command.",
        *_table("[pool.web]", Pool, web, "wsgi"),
        *_table("[pool.web.limits]", Limits),
        *_table("[pool.web.http]", Http),
        *_table("# [pool.web.tls]", Tls),
        "[pool.echo]",
        'handler = "prefork.examples.echo:handle"',
        "",
        "# A listener can also be a table, with options of its own.",
        *_table("[[pool.echo.listen]]", Listen, {"address": '"unix:run/echo.sock"'}),
        "# Number of workers by load, instead of workers = N.",
        *_table("[pool.echo.scale]", Scale, {"max": "4"}),
        "[pool.ticker]",
        'task = "prefork.examples.ticker:run"',
        "",
        "[pool.assets]",
        *(
            _line(option, option.sample())
            for option in (options(Pool)["command"], *_only_for("command", "wsgi"))
        ),
    ]
    return "\n".join([FULL_HEAD, *lines]).rstrip() + "\n"


def _table(
    header: str, struct: type[msgspec.Struct], values: Mapping[str, str] | None = None, kind: str = ""
) -> Iterator[str]:
    """Yield the lines of a table; ``values`` are written where there is no default to write.

    ``kind`` is that of the pool; options that only another kind has are left out.
    """
    yield header
    for option in options(struct).values():
        if kind and not option.suits(kind):
            continue
        if option.unit is not Unit.TABLE or option.told("example"):  # the others have headers of their own
            yield _line(option, (values or {}).get(option.name, option.written_default()))
    yield ""


def _only_for(kind: str, other: str) -> Iterator[Option]:
    """Yield the options that pools of this kind have, and pools of another kind have not."""
    return (option for option in options(Pool).values() if option.suits(kind) and not option.suits(other))


def _fields() -> Iterator[str]:
    """Yield what a template for the access log may show."""
    yield f"# An example of a template is '{TEMPLATES['common']}' (common); {{{{ and }}}} are literal braces."
    yield "# Lines can always be parsed, whatever a client sends: inside a value, quotes, backslashes, the character that"
    yield "# follows the field in the template, and anything but printable ASCII are escaped as \\xHH, byte by byte."
    yield "# A missing value is -."
    for name, text in FIELDS.items():
        yield f"#   {f'{{{name}}}':<16} {text}"
    yield ""


def _line(option: Option, value: str) -> str:
    pair = f"{option.name} = {value}" if value else f"# {option.name} = {option.sample()}"
    return f"{pair:<{COLUMN}} # {option.documentation()}"
