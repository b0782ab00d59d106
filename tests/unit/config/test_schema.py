"""Each option is declared completely, and the JSON Schema says what the loader says."""

from __future__ import annotations

import json

import msgspec
import pytest

from prefork.config.convert import convert
from prefork.config.schema import (
    Hooks,
    Http,
    Limits,
    Listen,
    Log,
    Master,
    Pool,
    Tls,
    Unit,
    json_schema,
    options,
)

COMPOSITE = (Unit.LISTENERS, Unit.TABLE, Unit.VARIABLES)
STRUCTS = (Master, Log, Hooks, Listen, Pool, Limits, Http, Tls)
OPTIONS = [option for struct in STRUCTS for option in options(struct).values()]
PLAIN = [option for option in OPTIONS if option.unit not in COMPOSITE]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_each_option_has_one_line_of_documentation_and_something_to_show(option):
    assert 0 < len(option.meta.description) < 90
    assert option.unit is Unit.TABLE or option.sample()
    assert (
        option.default is not None
        or option.told("otherwise")
        or option.unit in (Unit.APPLICATION, Unit.COMMAND)
    )


@pytest.mark.parametrize("option", PLAIN, ids=lambda option: option.name)
def test_each_sample_and_default_is_accepted(option):
    for written in filter(None, (option.sample(), option.written_default())):
        value = msgspec.toml.decode(f"x = {written}")["x"]
        converted = convert(option, value, written, cpus=1)
        assert written != option.written_default() or converted == option.default


def test_only_a_pools_name_and_release_are_no_keys():
    undeclared = {
        field
        for struct in STRUCTS
        for field in struct.__struct_encode_fields__
        if field not in options(struct)
    }
    assert undeclared == {"name", "release"}


def tables(schema):
    yield schema
    for inner in schema.values():
        for found in inner if isinstance(inner, list) else [inner]:
            if isinstance(found, dict):
                yield from tables(found)


def test_the_schema_is_json_and_closed():
    schema = json.loads(json.dumps(json_schema()))
    closed = [table for table in tables(schema) if "properties" in table and table.get("type") == "object"]
    assert len(closed) == 13
    assert all(table["additionalProperties"] is False for table in closed)


def test_the_schema_tells_types_ranges_defaults_and_documentation():
    pool = json_schema()["properties"]["pool"]["patternProperties"]["^[A-Za-z0-9_-]{1,64}$"]["properties"]
    assert pool.keys() == options(Pool).keys()
    assert pool["workers"]["anyOf"] == [{"type": "integer", "minimum": 1, "maximum": 1000}, {"const": "auto"}]
    assert pool["boot_timeout"]["default"] == 60
    assert pool["boot_timeout"]["anyOf"][0] == {"type": "number", "exclusiveMinimum": 0, "maximum": 31622400}
    assert pool["surge"]["default"] == "25%"
    assert pool["http"]["properties"]["max_body"]["default"] == "1GiB"
    assert pool["wsgi"]["description"].startswith("WSGI application (PEP 3333)")
    assert "default" not in pool["wsgi"]
