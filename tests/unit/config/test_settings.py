"""The command line wins over the environment, the environment over the file; mistakes name the setting."""

from __future__ import annotations

import pytest

from tests.unit.config.reading import WEB, problems, read

ECHO = '[pool.echo-2]\nlisten = ["127.0.0.1:7000"]\nhandler = "a:b"\n'


def test_the_command_line_wins_over_the_environment_and_that_over_the_file():
    text = WEB + "workers = 1\nthreads = 1\nsurge = 1\n"
    environment = {"PREFORK_POOL__WEB__WORKERS": "2", "PREFORK_POOL__WEB__THREADS": "2"}
    pool = read(text, environment=environment, settings=["pool.web.workers=3"]).pools["web"]
    assert (pool.workers, pool.threads, pool.surge.number) == (3, 2, 1)


def test_the_last_setting_of_a_key_wins():
    assert read(WEB, settings=["log.level=error", "log.level=debug"]).log.level == "debug"


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("workers=auto", "workers", 3),
        ("workers = 8", "workers", 8),
        ('workers="auto"', "workers", 3),
        ("boot_timeout=1m30s", "boot_timeout", 90),
        ("env.PORT=80", "env", {"PORT": "80"}),
        ("env.A=a=b", "env", {"A": "a=b"}),
        ('env={ A = "1" }', "env", {"A": "1"}),
        ("http.max_body=1", "max_body", 1),
    ],
)
def test_values_are_toml_or_else_text(setting, key, value):
    pool = read(WEB, settings=[f"pool.web.{setting}"]).pools["web"]
    assert getattr(pool.http if key == "max_body" else pool, key) == value


def test_text_that_looks_like_a_number_stays_text_where_text_is_wanted():
    config = read(WEB, settings=["master.name=2024", "master.umask=022", "log.file=1.50"])
    assert (config.master.name, config.master.umask, config.log.file) == ("2024", 0o22, "/srv/1.50")


def test_listeners_can_be_set():
    pool = read(WEB, settings=['pool.web.listen=["127.0.0.1:9000"]']).pools["web"]
    assert [str(listener.address) for listener in pool.listen] == ["127.0.0.1:9000"]


def test_pools_are_found_in_the_environment_whatever_their_case():
    text = WEB + ECHO
    environment = {"PREFORK_POOL__ECHO_2__WORKERS": "5", "PREFORK_POOL__WEB__ENV__Some_Key": "1"}
    config = read(text, environment=environment)
    assert config.pools["echo-2"].workers == 5
    assert config.pools["web"].env == {"Some_Key": "1"}


@pytest.mark.parametrize(
    ("setting", "message", "hint"),
    [
        ("pool.web.workers=four", 'expected a whole number or "auto", found "four"', "write workers = 4"),
        ("pool.web.workers=0", 'expected a whole number from 1 to 1000 or "auto", found 0', None),
        ("pool.web.wokers=4", 'expected a known key, found "wokers"', "did you mean workers?"),
        ("pool.wbe.workers=4", 'expected the name of a pool, found "wbe"', "did you mean web?"),
        ("pool.x.workers=4", 'expected the name of a pool, found "x"', "the pools are web"),
        ("pool.web.workers.x=4", 'expected a whole number or "auto", found a table', "write workers = 4"),
        (
            "pool.web.wsgi.x=4",
            'expected the name of a key, found "pool.web.wsgi.x"',
            "wsgi is a value, not a table",
        ),
        ("pool.web=4", "expected a table, found 4", None),
        ("workers=4", 'expected a known table, found "workers"', "workers belongs in [pool.NAME]"),
        (
            "pool.web.workers",
            'expected KEY=VALUE, found "pool.web.workers"',
            "write --set pool.NAME.workers=4",
        ),
        ("=4", 'expected KEY=VALUE, found "=4"', "write --set pool.NAME.workers=4"),
        (
            "pool.web.boot_timeout=-1",
            'expected seconds as a number, or a duration like "1m30s", found -1',
            None,
        ),
        ("pool.web.listen=[80]", "expected an address, or a table with one, found 80", None),
    ],
)
def test_a_mistake_on_the_command_line_names_it(setting, message, hint):
    assert problems(WEB, settings=[setting]) == [(f"--set {setting}: {message}", hint)]


def test_a_setting_of_several_lines_is_one_text():
    assert problems(WEB, settings=["log.level=1\nx = 2"]) == [
        (
            '--set log.level=1\\nx = 2: expected one of "debug", "info", "warning", "error", found "1\\nx = 2"',
            None,
        )
    ]


@pytest.mark.parametrize(
    ("name", "raw", "message", "hint"),
    [
        (
            "PREFORK_POOL__WEB__WORKERS",
            "four",
            'expected a whole number or "auto", found "four"',
            "write workers = 4",
        ),
        ("PREFORK_POOL__WBE__WORKERS", "4", 'expected the name of a pool, found "wbe"', "did you mean web?"),
        ("PREFORK_LOG__LEVL", "info", 'expected a known key, found "levl"', "did you mean level?"),
        (
            "PREFORK_WORKERS",
            "4",
            'expected PREFORK_MASTER__KEY, PREFORK_LOG__KEY, PREFORK_HOOKS__KEY or PREFORK_POOL__NAME__KEY, found "PREFORK_WORKERS"',
            None,
        ),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(name, raw, message, hint):
    assert problems(WEB, environment={name: raw}) == [(f"environment {name}: {message}", hint)]


def test_a_variable_that_could_mean_two_pools_is_refused():
    text = WEB + ECHO + ECHO.replace("echo-2", "echo_2").replace("7000", "7001")
    assert problems(text, environment={"PREFORK_POOL__ECHO_2__WORKERS": "2"}) == [
        (
            "environment PREFORK_POOL__ECHO_2__WORKERS: expected the name of one pool, found the same name for echo-2 and echo_2",
            "use --set, or rename one",
        )
    ]
