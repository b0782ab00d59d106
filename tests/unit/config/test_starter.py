"""The files that people start from are right, and say all there is.

When test_the_reference_is_up_to_date fails after a change of the schema, write it anew:

    .venv/bin/python -c "from prefork.config.starter import *; print(full_toml(), end='')" > conf/full.toml
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prefork.config.schema import Hooks, Http, Limits, Listen, Log, Master, Pool, Scale, Tls, options
from prefork.config.starter import full_toml, starter
from tests.unit.config.reading import WEB, read

CONF = Path(__file__).parents[3] / "conf"
STRUCTS = (Master, Log, Hooks, Pool, Limits, Http, Listen, Tls, Scale)


def test_the_reference_is_up_to_date():
    assert (CONF / "full.toml").read_text() == full_toml()


def test_the_reference_shows_the_real_defaults():
    full = read(full_toml(), source="server.toml")
    plain = read(WEB.replace("shop.web:app", "prefork.examples.hello:app"), source="server.toml")
    assert full.pools["web"] == plain.pools["web"]
    assert (full.master, full.log) == (plain.master, plain.log)
    assert full.pools["echo"].listen[0].backlog == plain.pools["web"].listen[0].backlog


def uncommented():
    """Return the reference with its examples in force, but those that the other kind of pool has no use for."""
    text = re.sub(r"^# (\w+ = |\[)", r"\1", full_toml(), flags=re.MULTILINE)
    text = text.replace('handler = "shop.echo:handle"', "", 1).replace('task = "shop.mail:send_queued"', "")
    text = text.replace('command = ["node", "assets.js"]', "", 1)
    return text.replace('trusted = ["10.0.0.0/8"]', "")  # of a listener that a pool with a handler has


def test_the_examples_in_the_reference_are_valid():
    config = read(uncommented())
    assert (config.master.name, config.master.umask, config.pools["web"].env) == (
        "shop",
        0o27,
        {"LANG": "C.UTF-8"},
    )
    assert config.pools["echo"].listen[0].mode == 0o660


@pytest.mark.parametrize("struct", STRUCTS)
def test_the_reference_has_every_key_with_its_documentation(struct):
    text = full_toml()
    for name, option in options(struct).items():
        if (struct, name) not in ((Pool, "limits"), (Pool, "http"), (Pool, "tls"), (Pool, "scale")):
            assert re.search(rf"^(# )?{name} = .* # {re.escape(option.meta.description)}", text, re.MULTILINE)


def test_the_starter_is_valid():
    pool = read(starter()["server.toml"]).pools["web"]
    assert pool.wsgi == "app:application"


def test_the_starters_application_answers():
    namespace: dict = {}
    exec(starter()["app.py"], namespace)  # as the file that a person gets, not as a module of this project
    started = []
    body = namespace["application"]({"PATH_INFO": "/x"}, lambda *head: started.append(head))
    assert b"".join(body) == b"Hello! You asked for /x\n"
    assert started[0][0] == "200 OK"
    assert dict(started[0][1])["Content-Length"] == "24"


def test_the_quick_start_is_valid():
    config = read((CONF / "server.toml").read_bytes())
    found = {pool.application: str(pool.listen[0].address) for pool in config.pools.values()}
    assert found == {
        "prefork.examples.hello:app": "127.0.0.1:8000",
        "prefork.examples.echo:handle": "127.0.0.1:7000",
    }
