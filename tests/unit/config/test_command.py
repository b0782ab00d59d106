"""Pools of external programs: what may be written of them, and what has no meaning for them."""

from __future__ import annotations

import pytest

from prefork.config.schema import Readiness
from tests.unit.config.reading import problems, read

NODE = '[pool.assets]\ncommand = ["node", "my assets.js"]\n'


def test_a_program_with_its_arguments_is_a_kind_of_pool_that_needs_no_listener():
    pool = read(NODE).pools["assets"]
    assert (pool.kind, pool.command, pool.application) == (
        "command",
        ("node", "my assets.js"),
        "node 'my assets.js'",
    )
    assert (pool.ready, pool.stop_signal, pool.listen) == (Readiness(), "TERM", ())


@pytest.mark.parametrize(
    ("written", "ready"),
    [
        ('"started"', Readiness()),
        ('"notify"', Readiness(notify=True)),
        ("{ seconds = 3 }", Readiness(seconds=3.0)),
        ('{ seconds = "1m" }', Readiness(seconds=60.0)),
        ("{ port = 9000 }", Readiness(port=9000)),
    ],
)
def test_a_program_is_ready_by_time_by_port_or_by_its_word(written, ready):
    assert read(f"{NODE}ready = {written}").pools["assets"].ready == ready


def test_a_part_of_readiness_may_come_from_the_command_line():
    found = read(f"{NODE}ready = {{ port = 9000 }}", settings=["pool.assets.ready.port=9001"])
    assert found.pools["assets"].ready == Readiness(port=9001)


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ('"ready"', None),
        ("9000", "write ready = { port = 9000 }"),
        ("true", None),
        ("{ port = 0 }", None),
        ("{ port = true }", None),
        ("{ port = 65536 }", None),
        ("{ seconds = 1, port = 1 }", None),
        ("{}", None),
    ],
)
def test_what_is_no_readiness_is_refused(written, hint):
    ((message, told),) = problems(f"{NODE}ready = {written}")
    assert message.startswith(":3: [pool.assets")
    assert 'expected "started", "notify", { seconds = 3 } or { port = 9000 }' in message
    assert told == hint


@pytest.mark.parametrize(
    ("written", "found", "hint"),
    [
        ("workers = 2", "one port for 2 workers: which of them accepts", 'workers = 1, or ready = "notify"'),
        ('listen = ["[::1]:9000"]', "9000, where prefork itself listens ([::1]:9000", 'ready = "started"'),
    ],
)
def test_a_port_that_does_not_tell_when_a_program_is_ready_is_refused(written, found, hint):
    ((message, told),) = problems(f"{NODE}ready = {{ port = 9000 }}\n{written}")
    assert "[pool.assets.ready] port: expected a port" in message
    assert f"found {found}" in message
    assert told == f"write {hint}"


@pytest.mark.parametrize("seconds", ["0", "-1", '"soon"'])
def test_a_program_is_ready_after_a_time_above_0(seconds):
    ((message, _),) = problems(f"{NODE}ready = {{ seconds = {seconds} }}")
    assert message.startswith(":3: [pool.assets.ready]: expected")
    assert "a duration" in message


@pytest.mark.parametrize("written", ["QUIT", "SIGQUIT"])
def test_a_stop_signal_has_its_name_with_or_without_sig(written):
    assert read(f'{NODE}stop_signal = "{written}"').pools["assets"].stop_signal == "QUIT"


@pytest.mark.parametrize(
    ("written", "expected", "hint"),
    [
        ("\"node 'a b'\"", "a list: a program and its arguments, found \"node 'a b'\"", '["node", "a b"]'),
        ('"node \'"', 'a list: a program and its arguments, found "node \'"', '["node", "assets.js"]'),
        ("[]", "a list of texts: a program and its arguments, found an empty list", '["node", "assets.js"]'),
        ('["a", 1]', "a list of texts: a program and its arguments", '["node", "assets.js"]'),
        ('[""]', "a program and its arguments, without the character 0", None),
        (r'["a", "\u0000"]', "a program and its arguments, without the character 0", None),
    ],
)
def test_what_is_no_command_is_refused(written, expected, hint):
    (message, told), *rest = problems(f"[pool.x]\ncommand = {written}\n")
    assert not rest
    assert message.startswith(f":2: [pool.x] command: expected {expected}")
    assert told == (hint and f"write command = {hint}")


@pytest.mark.parametrize(
    ("written", "hint"), [('"quit"', 'write stop_signal = "QUIT"'), ('"KILL"', None), ("3", None)]
)
def test_what_is_no_stop_signal_is_refused(written, hint):
    ((message, told),) = problems(f"{NODE}stop_signal = {written}")
    assert message.startswith(
        ":3: [pool.assets] stop_signal: expected one of TERM, QUIT, INT, HUP, USR1, USR2"
    )
    assert told == hint


@pytest.mark.parametrize(
    "written",
    [
        "threads = 2",
        "stall_timeout = 1",
        "request_timeout = 1",
        "read_timeout = 1",
        "max_connections = 1",
        'tls = { certificate = "c" }',
    ],
)
def test_what_only_workers_of_python_know_is_refused(written):
    ((message, hint),) = problems(NODE + written)
    key = written.split()[0]
    assert message.startswith(
        (f":3: [pool.assets] {key}: expected this", ":3: [pool.assets.tls]: expected this")
    )
    assert message.endswith("found a pool with command")
    assert hint == f"remove {key}"


@pytest.mark.parametrize("option", ["proxy_protocol = true", 'tls = { certificate = "c" }', "trusted = []"])
def test_what_a_listener_cannot_do_for_a_program_is_refused(option):
    ((message, _),) = problems(f'{NODE}listen = [{{ address = "127.0.0.1:1", {option} }}]')
    assert message.endswith("found a pool with command")


@pytest.mark.parametrize("option", ['ready = "notify"', 'stop_signal = "INT"'])
def test_other_kinds_have_no_use_for_what_is_a_programs(option):
    ((message, _),) = problems(f'[pool.web]\nlisten = ["127.0.0.1:1"]\nwsgi = "a:b"\n{option}')
    assert message.endswith("expected this in a pool with command only, found a pool with wsgi")


def test_a_prefork_that_another_one_runs_takes_no_setting_from_that_ones_marks():
    marks = {"PREFORK_POOL": "web", "PREFORK_SLOT": "0", "PREFORK_GENERATION": "1", "PREFORK_WORKER": "web/0"}
    assert read(NODE, environment=marks) == read(NODE)
