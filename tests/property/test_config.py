"""The configuration: what is written is what is read, and nothing but a ConfigError comes of anything else."""

from __future__ import annotations

import json
import string
import tomllib

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prefork.config.lines import find_places
from prefork.config.load import load
from prefork.config.schema import (
    KINDS,
    STOP_SIGNALS,
    UNLIMITED,
    Http,
    Limits,
    Listen,
    Log,
    Master,
    Pool,
    Release,
    Unit,
    options,
)
from prefork.errors import ConfigError, Problem
from prefork.units import (
    Share,
    TcpAddress,
    UnitError,
    UnixAddress,
    format_duration,
    format_size,
    parse_address,
    parse_duration,
    parse_share,
    parse_size,
    write_size,
)

WORD = st.text(string.ascii_lowercase, min_size=1, max_size=8)
# What a basic string of TOML may hold as it is.
PRINTABLE = st.text(
    st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"]), max_size=20
)
CPUS = 3


def read(data, **more):
    surroundings = {"source": "s.toml", "directory": "/srv", "runtime_directory": "/run", "cpus": CPUS}
    return load(data, **surroundings, **({"environment": {}, "settings": ()} | more))


# A valid value of each unit: as it is written in TOML, and as the program gets it.


def quoted(text):
    return json.dumps(text, ensure_ascii=False)


def same_text(strategy):
    return strategy.map(lambda text: (quoted(text), text))


def counts(option):
    least, most = option.meta.ge, option.meta.le
    return st.integers(least, most).map(lambda number: (str(number), number))


def durations(option):
    least = 1 if option.meta.gt is not None else 0
    whole = st.integers(least, 366 * 86400)
    return (
        whole.map(lambda n: (str(n), n))
        | whole.map(lambda n: (quoted(f"{n // 3600}h{n // 60 % 60}m {n % 60} s"), n))
        | st.integers(1, 5000).map(lambda n: (quoted(f"{n}ms"), n / 1000))
        | st.floats(1e-3, 1e6).map(lambda n: (repr(n), n))
    )


def sizes(option):
    whole = st.integers(option.meta.ge, option.meta.le)
    return whole.map(lambda n: (str(n), n)) | whole.map(lambda n: (quoted(write_size(n)), n))


def limits():
    return st.integers(0, 2**40).map(lambda n: (str(n), n))


def cpus(numbers):
    """Draw one of the ways to write CPUs."""
    meant = tuple(sorted(numbers))
    ways = [str(list(numbers)), quoted(",".join(map(str, numbers)))]
    return st.sampled_from([*ways, quoted(f"0-{meant[-1]}")]).map(
        lambda written: (written, tuple(range(meant[-1] + 1)) if "-" in written else meant)
    )


VALUES = {
    Unit.COUNT: counts,
    Unit.WORKERS: lambda option: counts(option) | st.just(('"auto"', CPUS)),
    Unit.DURATION: durations,
    Unit.SIZE: sizes,
    Unit.SHARE: lambda _: (
        st.integers(1, 100).map(lambda n: (f'"{n}%"', Share(percent=n)))
        | st.integers(1, 100).map(lambda n: (str(n), Share(number=n)))
    ),
    Unit.MODE: lambda _: (
        st.integers(0, 0o777).map(lambda n: (f'"0{n:o}"', n))
        | st.integers(0, 0o777).map(lambda n: (f"0o{n:o}", n))
    ),
    Unit.ACCOUNT: lambda _: same_text(WORD) | st.integers(0, 65534).map(lambda n: (str(n), str(n))),
    Unit.CHOICE: lambda option: same_text(st.sampled_from(option.choices())),
    Unit.NAME: lambda _: same_text(WORD),
    Unit.APPLICATION: lambda _: same_text(
        st.builds("{}.{}:{}".format, *[WORD.map(lambda word: f"m{word}")] * 3)
    ),
    Unit.COMMAND: lambda _: st.lists(WORD | PRINTABLE.filter(bool), min_size=1, max_size=3).map(
        lambda words: (json.dumps(words, ensure_ascii=False), tuple(words))
    ),
    Unit.SIGNAL: lambda _: st.builds(
        lambda prefix, name: (quoted(prefix + name), name),
        st.sampled_from(["", "SIG"]),
        st.sampled_from(STOP_SIGNALS),
    ),
    Unit.LIMIT: lambda _: limits() | st.just(('"unlimited"', UNLIMITED)),
    Unit.SIZE_LIMIT: lambda _: limits() | st.integers(0, 2**40).map(lambda n: (quoted(write_size(n)), n)),
    Unit.CPUS: lambda _: st.sets(st.integers(0, 99), min_size=1, max_size=5).flatmap(cpus),
    Unit.VARIABLES: lambda _: st.dictionaries(WORD, PRINTABLE, max_size=3).map(
        lambda names: (
            f"{{ {', '.join(f'{name} = {quoted(text)}' for name, text in names.items())} }}",
            names,
        )
    ),
}


@st.composite
def tables(draw, struct, without=()):
    """Draw some of a table's options: what is written, and what is meant, by key."""
    able = {
        name: option
        for name, option in options(struct).items()
        if option.unit in VALUES and name not in without
    }
    chosen = draw(st.lists(st.sampled_from(sorted(able)), unique=True)) if able else []
    return {name: draw(VALUES[able[name].unit](able[name])) for name in chosen}


@st.composite
def pools(draw):
    """Draw a valid pool, without its listeners."""
    kind = draw(st.sampled_from(KINDS))
    foreign = [name for name, option in options(Pool).items() if not option.suits(kind)]
    table = draw(tables(Pool, without=[*KINDS, "max_connections", *foreign]))
    if kind in ("handler", "wsgi") and table.get("restart", ("", ""))[1] == "once":
        del table["restart"]
    if kind not in ("task", "command") and table.get("restart", ("", ""))[1] == "once":
        del table["restart"]
    table[kind] = draw(VALUES[options(Pool)[kind].unit](None))
    http = draw(tables(Http)) if kind == "wsgi" else {}
    return table, http, draw(tables(Limits))


@st.composite
def listeners(draw, number):
    """Draw a listener whose address is its own."""
    host, path = draw(st.ip_addresses()), draw(WORD)
    tcp = TcpAddress(str(host), number + 1)
    if draw(st.booleans()):
        return quoted(str(tcp)), Listen(address=tcp)
    table = draw(tables(Listen)) | {
        "address": (quoted(f"unix:{path}{number}"), UnixAddress(f"/srv/{path}{number}"))
    }
    return inline(table), Listen(**meant(table))


def inline(table):
    return f"{{ {', '.join(f'{key} = {written}' for key, (written, _) in table.items())} }}"


def meant(table):
    return {key: value for key, (_, value) in table.items()}


def lines(header, table):
    return [header, *(f"{key} = {written}" for key, (written, _) in table.items())]


@st.composite
def files(draw):
    """Draw a valid file: its lines, and the tables that were meant."""
    master, log = draw(tables(Master)), draw(tables(Log))
    names = draw(
        st.lists(st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True), min_size=1, max_size=3, unique=True)
    )
    text = [*lines("[master]", master), *lines("[log]", log)]
    wanted = {}
    for position, name in enumerate(names):
        table, http, limited = draw(pools())
        if "task" not in table:
            listen = [draw(listeners(position * 10 + number)) for number in range(draw(st.integers(1, 3)))]
            table["listen"] = (
                f"[{', '.join(written for written, _ in listen)}]",
                tuple(one for _, one in listen),
            )
        text += lines(f"[pool.{name}]", table) + (lines(f"[pool.{name}.http]", http) if http else [])
        text += lines(f"[pool.{name}.limits]", limited)
        inner = {"http": Http(**meant(http)), "limits": msgspec.convert(meant(limited), Limits)}
        wanted[name] = Pool(name=name, **meant(table) | inner)
    return text, meant(master), meant(log), wanted


@given(files())
@settings(max_examples=60)
def test_what_is_written_is_what_is_read(file):
    text, master, log, wanted = file
    config = read("\n".join(text).encode())
    assert {key: getattr(config.master, key) for key in master} == master
    assert {key: getattr(config.log, key) for key in log} == log
    # A release is no key; tests/unit/config/test_load.py has it.
    assert [msgspec.structs.replace(pool, release=Release()) for pool in config.pools.values()] == list(
        wanted.values()
    )
    assert list(config.pools) == list(wanted)


@given(files(), st.data())
@settings(max_examples=60)
def test_a_mistyped_key_is_refused_at_its_line(file, data):
    text = file[0]
    places = [number for number, line in enumerate(text) if " = " in line]
    number = data.draw(st.sampled_from(places))
    key, _, rest = text[number].partition(" = ")
    at, letter = (
        data.draw(st.integers(0, len(key))),
        data.draw(st.sampled_from(string.ascii_lowercase + "_-")),
    )
    mistyped = data.draw(st.sampled_from([key[:at] + letter + key[at:], key[:at] + key[at + 1 :]]))
    assume(mistyped not in {"", key})
    assume(not any(mistyped in options(struct) for struct in (Master, Log, Pool, Limits, Http)))
    text[number] = f"{mistyped} = {rest}"
    with pytest.raises(ConfigError) as caught:
        read("\n".join(text).encode())
    messages = [problem.message for problem in caught.value.problems]
    assert any(
        message.startswith(f"s.toml:{number + 1}: [")
        and message.endswith(f': expected a known key, found "{mistyped}"')
        for message in messages
    )


def survives(data, **more):
    """Read rubbish; what is said about it fits into one line for each problem."""
    problems = []
    try:
        read(data, **more)
    except ConfigError as error:
        problems = error.problems or [Problem("none\n")]
    assert all(problem.message.isprintable() for problem in problems)


@given(
    st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
def test_any_bytes_are_a_configuration_or_a_config_error(data):
    survives(data)


KEYS = (
    st.sampled_from(
        [name for struct in (Master, Log, Pool, Limits, Http, Listen) for name in options(struct)]
    )
    | WORD
)
SCALARS = (
    st.integers().map(str)
    | st.floats().map(lambda number: repr(number))
    | st.sampled_from(["true", "false", "1979-05-27", "1979-05-27 07:32:00", "07:32:00", "0x" + "f" * 5000])
    | st.text(max_size=12).map(json.dumps).filter(lambda text: "\\ud" not in text)
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(KEYS, inner, max_size=3).map(
            lambda items: f"{{ {', '.join(f'{key} = {item}' for key, item in items.items())} }}"
        )
    ),
    max_leaves=8,
)
HEADERS = st.sampled_from(
    [
        "[master]",
        "[log]",
        "[pool.a]",
        "[pool.a.http]",
        "[pool.a.limits]",
        "[pool.b]",
        "[[pool.a.listen]]",
        "[pool]",
        "[x]",
    ]
)


@given(st.lists(st.tuples(HEADERS, st.dictionaries(KEYS, ANYTHING, max_size=5)), max_size=4))
def test_any_value_of_any_key_is_right_or_a_config_error(parts):
    text = "\n".join(
        line for header, table in parts for line in [header, *(f"{k} = {v}" for k, v in table.items())]
    )
    survives(text.encode())


PATHS = st.lists(
    st.sampled_from(["pool", "web", "master", "log", "http", "env", "listen"]) | KEYS, max_size=5
)
RAW = st.text(max_size=12) | ANYTHING


@given(
    st.lists(st.builds("{}={}".format, PATHS.map(".".join), RAW) | st.text(max_size=20), max_size=3),
    st.dictionaries(PATHS.map(lambda path: f"PREFORK_{'__'.join(path).upper()}"), RAW, max_size=3),
)
def test_any_setting_is_right_or_a_config_error(arguments, environment):
    data = b'[pool.web]\nlisten = ["127.0.0.1:1"]\nwsgi = "a:b"\n'
    survives(data, settings=arguments, environment=environment)


def paths(value, path=()):
    """Yield the paths of all that is in a document."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*path, key)
        yield from paths(inner, (*path, key))


NAMES = st.sampled_from(["a", "b", "a.b", '"q.k"', "'l k'", '"x#="', "1-2"])
VALUE = st.recursive(
    st.sampled_from(
        ['"""\n a = 1 \\""" \n"""', "'''\n'' ]\n'''", '"#]"', "''", "1", "1.5e3", "1979-05-27 07:32:00"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(
            lambda items: "\n".join(["[ # ]", *(f"{item} ," for item in items), "]"])
        )
        | st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
        | st.dictionaries(NAMES, inner, max_size=2).map(
            lambda items: f"{{ {', '.join(f'{key} = {item}' for key, item in items.items())} }}"
        )
    ),
    max_leaves=6,
)
PAIR = st.tuples(NAMES, VALUE).map(" = ".join)
HEADER = st.builds("{}{}{}".format, st.just("["), NAMES, st.just("] # [c]")) | NAMES.map(
    lambda name: f"[[ {name} ]]"
)


@given(st.lists(PAIR | HEADER, max_size=8).map("\n".join))
def test_the_place_of_everything_in_a_document_is_known(text):
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        assume(False)
    places = find_places(text)
    assert set(paths(document)) == set(places)
    rows = text.split("\n")
    for path, place in places.items():
        assert not isinstance(path[-1], str) or path[-1] in rows[place.line - 1]


@given(st.floats(min_value=0, max_value=1e8))
def test_a_written_duration_reads_back_within_its_precision(seconds):
    precision = (
        0.0006
        if seconds < 1
        else 0.06
        if seconds < 60
        else 1
        if seconds < 3600
        else 31
        if seconds < 86400
        else 1801
    )
    assert abs(parse_duration(format_duration(seconds)) - seconds) <= precision


@given(st.integers(min_value=0, max_value=2**60))
def test_a_size_written_for_the_program_reads_back_exactly(size):
    assert parse_size(write_size(size)) == size


@given(st.integers(min_value=0, max_value=2**49))
def test_a_size_written_for_people_reads_back_nearly(size):
    assert abs(parse_size(format_size(size)) - size) <= max(1, size * 0.05)


@given(st.integers(1, 100), st.integers(0, 10_000))
def test_a_share_is_the_smallest_whole_number_that_suffices(percent, total):
    part = parse_share(f"{percent}%").of(total)
    assert part * 100 >= percent * total
    assert part == 1 or (part - 1) * 100 < percent * total


@given(st.ip_addresses(), st.integers(0, 65535))
def test_a_tcp_address_reads_back(host, port):
    address = TcpAddress(str(host), port)
    assert parse_address(str(address)) == address


@given(st.text())
def test_any_text_is_an_address_or_refused(text):
    try:
        address = parse_address(text)
    except UnitError:
        return
    assert parse_address(str(address)) == address
