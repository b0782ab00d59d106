"""Whom a pool's workers run as, and what each may use: the values, and the line for each mistake."""

from __future__ import annotations

import pytest

from prefork.config.schema import UNLIMITED
from tests.unit.config.reading import WEB, problems, read


def test_a_pool_has_no_limits_and_nobody_of_its_own_unless_it_says_so():
    pool = read(WEB).pools["web"]
    assert pool.user is pool.group is pool.umask is pool.directory is pool.nice is None
    assert (pool.cpu_affinity, pool.no_new_privs) == ((), False)
    assert all(getattr(pool.limits, field) is None for field in pool.limits.__struct_fields__)


def test_a_pools_directory_starts_at_the_masters():
    config = read('[master]\ndirectory = "shop"\n' + WEB + 'directory = "web"\n')
    assert config.pools["web"].directory == "/srv/shop/web"
    assert config.pools["web"].listen[0].address == read(WEB).pools["web"].listen[0].address


@pytest.mark.parametrize("written", ["[3, 1, 1]", '"1,3"', '" 1 , 3-3"'])
def test_cpus_are_a_list_or_ranges(written):
    assert read(WEB + f"cpu_affinity = {written}").pools["web"].cpu_affinity == (1, 3)


def test_limits_have_the_names_of_the_manual():
    text = '[pool.web.limits]\nas = "4GiB"\ncore = "unlimited"\nnofile = 4096\nstack = 8192\n'
    found = read(WEB + text).pools["web"].limits
    assert (found.as_, found.core, found.nofile, found.stack) == (2**32, UNLIMITED, 4096, 8192)


def test_limits_can_be_set_from_the_command_line():
    config = read(WEB, settings=["pool.web.limits.nofile=unlimited", "pool.web.cpu_affinity=0-2"])
    assert config.pools["web"].limits.nofile == UNLIMITED
    assert config.pools["web"].cpu_affinity == (0, 1, 2)


WRONG = [
    ('nice = "5"', 'nice: expected a whole number, found "5"', "write nice = 5"),
    ("nice = 20", "nice: expected a whole number from -20 to 19, found 20", None),
    (
        "cpu_affinity = 0",
        'cpu_affinity: expected a list of CPUs, or text like "0-3,6", found 0',
        "write cpu_affinity = [0, 1]",
    ),
    (
        'cpu_affinity = ["0"]',
        'cpu_affinity: expected a list of CPUs, or text like "0-3,6", found a list',
        "write cpu_affinity = [0, 1]",
    ),
    ("cpu_affinity = []", "cpu_affinity: expected numbers of CPUs from 0 to 1023, found an empty list", None),
    ("cpu_affinity = [-1]", "cpu_affinity: expected numbers of CPUs from 0 to 1023, found a list", None),
    ('cpu_affinity = "3-1"', 'cpu_affinity: expected numbers of CPUs from 0 to 1023, found "3-1"', None),
    (
        "limits.nofile = -1",
        'limits.nofile: expected a number from 0, or "unlimited", found -1',
        'write nofile = "unlimited"',
    ),
    (
        'limits.nofile = "many"',
        'limits.nofile: expected a whole number, or "unlimited", found "many"',
        "write nofile = 4096",
    ),
    (
        'limits.as = "4G"',
        'limits.as: expected bytes as a whole number, or a size like "64MiB", or "unlimited", found "4G"',
        'write "4GiB" (steps of 1024) or "4GB" (steps of 1000)',
    ),
    ("limits.files = 3", 'limits: expected a known key, found "files"', "did you mean nofile?"),
    ("limits = 3", "limits: expected a table, found 3", None),
]


@pytest.mark.parametrize(("line", "message", "hint"), WRONG, ids=[line for line, *_ in WRONG])
def test_a_mistake_is_told_with_its_place(line, message, hint):
    ((found, given),) = problems(WEB + line + "\n")
    place = found.replace("[pool.web.limits] ", "[pool.web] limits.").replace(
        "[pool.web.limits]:", "[pool.web] limits:"
    )
    assert (place, given) == (f":4: [pool.web] {message}", hint)


def test_it_is_known_where_those_values_were_written_that_only_the_machine_can_judge():
    config = read('[master]\ndirectory = "/x"\n' + WEB + 'user = "mail"\n', settings=["pool.web.directory=d"])
    assert config.place("master", "directory") == "conf/server.toml:2: [master] directory"
    assert config.place("pool", "web", "user") == "conf/server.toml:6: [pool.web] user"
    assert config.place("pool", "web", "directory") == "--set pool.web.directory=d"
    assert config.place("master", "user") == "[master] user"


def test_further_folders_to_import_from_start_at_the_masters_directory_and_come_last():
    config = read(
        '[master]\ndirectory = "shop"\n' + WEB + 'directory = "web"\npythonpath = ["lib", "/opt/lib"]\n'
    )
    assert config.pools["web"].pythonpath == ("/srv/shop/lib", "/opt/lib")
    assert [folder.name for folder in config.pools["web"].release.imports] == [
        "/srv/shop/web",
        "/srv/shop",
        "/srv/shop/lib",
        "/opt/lib",
    ]


TOO_LATE = "found one that is read only when a program starts: workers are forked, not started anew"


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("PYTHONPATH", "lib:/opt/lib", 'write pythonpath = ["lib", "/opt/lib"] in [pool.web]'),
        ("PYTHONHASHSEED", "0", "set it for the whole server: PYTHONHASHSEED=0 prefork run …"),
        ("LD_PRELOAD", "x.so", "set it for the whole server: LD_PRELOAD=x.so prefork run …"),
        ("MALLOC_ARENA_MAX", "2", "set it for the whole server: MALLOC_ARENA_MAX=2 prefork run …"),
    ],
)
def test_variables_that_only_a_new_program_reads_are_refused_where_none_is_started(name, value, hint):
    written = f'env = {{ {name} = "{value}", LANG = "C.UTF-8" }}\n'
    expected = f":4: [pool.web.env] {name}: expected a variable that a running Python reads, {TOO_LATE}"
    assert problems(WEB + written) == [(expected, hint)]
    program = f'[pool.web]\ncommand = ["x"]\n{written}'
    assert read(program).pools["web"].env == {name: value, "LANG": "C.UTF-8"}


def test_variables_that_python_looks_up_again_are_no_mistake():
    assert read(WEB + 'env = { PYTHONBREAKPOINT = "0", TZ = "UTC" }\n').pools["web"].env["TZ"] == "UTC"
