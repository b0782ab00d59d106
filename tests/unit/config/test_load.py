"""Loading: the values that the program gets, and for each mistake the line that a person gets."""

from __future__ import annotations

import pytest

from prefork.config.schema import (
    Folder,
    Http,
    Limits,
    Listen,
    Log,
    Master,
    Pool,
    Release,
    Scale,
    Tls,
    options,
)
from prefork.units import Share, TcpAddress, UnixAddress, short_hash
from tests.unit.config.reading import WEB, problems, read


def web(line, **more):
    """Return the only problem of the pool web with one more line, its fourth."""
    (problem,) = problems(WEB + line + "\n", **more)
    return problem


def test_a_small_file_gets_its_defaults():
    config = read(WEB, file=None)
    pool = config.pools["web"]
    assert config.master.name == "server"
    assert config.master.directory is None
    assert pool.release == Release(Folder("/srv"), (Folder("/srv/conf"), Folder("/srv")))
    assert config.master.control == f"/run/user/1/server-{short_hash('/srv/conf/server.toml')}.sock"
    assert config.master.pid_file is config.master.user is config.master.umask is None
    assert (config.log.level, config.log.format, config.log.file) == ("info", "text", "-")
    assert (pool.name, pool.kind, pool.application) == ("web", "wsgi", "shop.web:app")
    assert pool.listen == (Listen(address=TcpAddress("127.0.0.1", 8000)),)
    assert (pool.workers, pool.threads, pool.surge, pool.env) == (1, 1, Share(percent=25), {})
    clocks = (
        pool.boot_timeout,
        pool.stall_timeout,
        pool.request_timeout,
        pool.graceful_timeout,
        pool.drain_delay,
    )
    assert clocks == (60, 30, 30, 30, 0)
    assert (pool.keepalive_timeout, pool.read_timeout, pool.write_timeout) == (75, 10, 30)
    assert pool.max_connections == 1000
    assert pool.http == Http(max_request_line=8190, max_headers=100, max_header_size=8190, max_body=2**30)


def test_values_are_read_in_their_units():
    pool = read(
        WEB
        + """
        workers = "auto"
        boot_timeout = "1m30s"
        surge = 2
        env = { LANG = "C.UTF-8" }
        http = { max_body = "10kB" }
        """
    ).pools["web"]
    assert (pool.workers, pool.boot_timeout, pool.surge) == (3, 90, Share(number=2))
    assert (pool.env, pool.http.max_body) == ({"LANG": "C.UTF-8"}, 10_000)


def test_a_worker_is_recycled_by_requests_size_and_age():
    pool = read(
        WEB + 'max_requests = 1000\nmax_requests_jitter = 50\nmax_memory = "512MiB"\nmax_age = "1d"'
    ).pools["web"]
    assert (pool.max_requests, pool.max_memory, pool.max_age) == (1000, 2**29, 86400)
    assert pool.max_requests_jitter == Share(number=50)


@pytest.mark.parametrize("none", ["0", '"0%"'])
def test_jitter_may_be_none(none):
    assert read(WEB + f"max_requests_jitter = {none}").pools["web"].max_requests_jitter.part_of(1000) == 0


def test_a_pool_scales_between_two_numbers():
    table = '[pool.web.scale]\nmax = "auto"\nidle_for = "5m"\n'
    scale = read(WEB + table, cpus=3).pools["web"].scale
    assert scale == Scale(min=1, max=3, spare=1, idle_for=300, max_memory=0)
    assert read(WEB).pools["web"].scale is None


@pytest.mark.parametrize(
    ("table", "size_at_rest", "first_size"),
    [("max = 4", 1, 1), ("min = 2\nmax = 4\nspare = 3", 3, 3), ("min = 0\nmax = 4\nspare = 2", 0, 1)],
)
def test_a_pool_that_scales_rests_with_its_fewest_workers(table, size_at_rest, first_size):
    pool = read(WEB + f"[pool.web.scale]\n{table}\n").pools["web"]
    assert pool.scale.at_rest == size_at_rest
    assert pool.first_size == first_size


SCALES = [
    (
        "workers = 4\n[pool.web.scale]\nmax = 8",
        "workers: expected either workers or a table scale, which says how",
    ),
    ("[pool.web.scale]\nmin = 2", "[pool.web.scale]: expected a table with a max, found none"),
    ("[pool.web.scale]\nmin = 9\nmax = 8", "min: expected at most as many as max (8), found 9"),
    ("[pool.web.scale]\nspare = 9\nmax = 8", "spare: expected at most as many as max (8), found 9"),
    ("[pool.web.scale]\nmax = 0", 'max: expected a whole number from 1 to 1000 or "auto", found 0'),
    ("[pool.web.scale]\nmax = 2\nidle_for = 0", "idle_for: expected a duration above 0"),
    (
        'restart = "never"\n[pool.web.scale]\nmax = 2',
        '[pool.web] restart: expected "always" beside a table scale',
    ),
    ("[pool.web.scale]\nmax = 2\nworkers = 3", 'expected a known key, found "workers"'),
]


@pytest.mark.parametrize(("lines", "message"), SCALES)
def test_a_scale_that_makes_no_sense_is_refused(lines, message):
    assert message in web(lines)[0]


@pytest.mark.parametrize("kind", ['task = "a:b"', 'command = ["a"]'])
@pytest.mark.parametrize("line", ["max_requests = 5", "scale = { max = 2 }"])
def test_what_serves_no_requests_has_no_number_of_them(kind, line):
    (problem,) = problems(f"[pool.work]\n{kind}\n{line}\n")
    assert "expected this in a pool of another kind" in problem[0]


def test_auto_stays_within_what_a_pool_may_have():
    assert read(WEB + 'workers = "auto"', cpus=5000).pools["web"].workers == 1000


def test_pools_keep_the_order_of_the_file():
    text = "".join(f'[pool.{name}]\nlisten = ["127.0.0.1:0"]\nhandler = "a:b"\n' for name in "zab")
    assert list(read(text).pools) == ["z", "a", "b"]


def test_relative_paths_start_at_the_masters_directory():
    config = read(
        '[master]\ndirectory = "app"\ncontrol = "run/c.sock"\npid_file = "../x.pid"\n[log]\nfile = "log/a"\n'
        '[pool.web]\nlisten = ["unix:run/web.sock", "unix:/run/web.sock"]\nwsgi = "a:b"\n'
    )
    assert config.master.directory == "/srv/app"
    assert config.master.control == "/srv/app/run/c.sock"
    assert config.master.pid_file == "/srv/x.pid"
    assert config.log.file == "/srv/app/log/a"
    addresses = [listener.address for listener in config.pools["web"].listen]
    assert addresses == [UnixAddress("/srv/app/run/web.sock"), UnixAddress("/run/web.sock")]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("shop.toml", "shop"),
        ("/etc/my shop.toml", "my-shop"),
        ("shop.conf", "shop.conf"),
        (".toml", "prefork"),
    ],
)
def test_the_server_is_named_after_the_file(source, name):
    assert read(WEB, source=source).master.name == name


@pytest.mark.parametrize("written", ['"0660"', '"660"', '"0o660"', "0o660"])
def test_permissions_are_octal(written):
    text = f'[pool.web]\nlisten = [{{ address = "unix:x", mode = {written} }}]\nwsgi = "a:b"'
    assert read(text).pools["web"].listen[0].mode == 0o660


def test_accounts_may_be_numbers():
    assert read(WEB + '[master]\nuser = 33\ngroup = "www-data"').master.user == "33"


# What is wrong, in the fourth line of a file.
WRONG = [
    (
        'max_requests_jitter = "101%"',
        ':4: [pool.web] max_requests_jitter: expected a whole number from 0, or a share from "0%" to "100%", found "101%"',
        None,
    ),
    (
        'surge = "0%"',
        ':4: [pool.web] surge: expected a whole number from 1, or a share from "1%" to "100%", found "0%"',
        None,
    ),
    (
        'workers = "four"',
        ':4: [pool.web] workers: expected a whole number or "auto", found "four"',
        "write workers = 4",
    ),
    (
        'workers = "8"',
        ':4: [pool.web] workers: expected a whole number or "auto", found "8"',
        "write workers = 8",
    ),
    (
        "workers = 0",
        ':4: [pool.web] workers: expected a whole number from 1 to 1000 or "auto", found 0',
        None,
    ),
    (
        "workers = 2.0",
        ':4: [pool.web] workers: expected a whole number or "auto", found 2.0',
        "write workers = 4",
    ),
    ("threads = true", ":4: [pool.web] threads: expected a whole number, found true", "write threads = 1"),
    ("threads = 257", ":4: [pool.web] threads: expected a whole number from 1 to 256, found 257", None),
    ("wokers = 4", ':4: [pool.web]: expected a known key, found "wokers"', "did you mean workers?"),
    (
        "max_body = 4",
        ':4: [pool.web]: expected a known key, found "max_body"',
        "max_body belongs in [pool.NAME.http]",
    ),
    (
        "max_headers = 4",
        ':4: [pool.web]: expected a known key, found "max_headers"',
        "max_headers belongs in [pool.NAME.http]",
    ),
    (
        "backlog = 4",
        ':4: [pool.web]: expected a known key, found "backlog"',
        "backlog belongs in listen = [{ address = … }]",
    ),
    ("xyzzy = 4", ':4: [pool.web]: expected a known key, found "xyzzy"', None),
    ("[mastre]", ': expected a known table, found "mastre"', "did you mean master?"),
    ("[log]\nlevl = 1", ':5: [log]: expected a known key, found "levl"', "did you mean level?"),
    (
        'boot_timeout = "30"',
        ':4: [pool.web] boot_timeout: expected seconds as a number, or a duration like "1m30s", found "30"',
        'write 30 or "30s"',
    ),
    (
        "boot_timeout = 0",
        ":4: [pool.web] boot_timeout: expected a duration above 0 and up to 366 d, found 0",
        None,
    ),
    (
        'stall_timeout = "400d"',
        ':4: [pool.web] stall_timeout: expected a duration from 0 to 366 d, found "400d"',
        None,
    ),
    (
        'surge = "0%"',
        ':4: [pool.web] surge: expected a whole number from 1, or a share from "1%" to "100%", found "0%"',
        None,
    ),
    (
        "surge = 1001",
        ":4: [pool.web] surge: expected a whole number from 1 to 1000, or a share, found 1001",
        None,
    ),
    (
        '[pool.web.http]\nmax_body = "64M"',
        ':5: [pool.web.http] max_body: expected bytes as a whole number, or a size like "64MiB", found "64M"',
        'write "64MiB" (steps of 1024) or "64MB" (steps of 1000)',
    ),
    (
        "http = { max_request_line = 10 }",
        ":4: [pool.web.http] max_request_line: expected a size from 64B to 64KiB, found 10",
        None,
    ),
    ("http = 3", ":4: [pool.web] http: expected a table, found 3", None),
    ("env = 3", ":4: [pool.web] env: expected a table of texts, found 3", 'write env = { LANG = "C.UTF-8" }'),
    ("[pool.web.env]\nPORT = 80", ":5: [pool.web.env] PORT: expected text, found 80", 'write PORT = "80"'),
    (
        'env = { "A=B" = "" }',
        ':4: [pool.web.env] "A=B": expected the name of a variable, without "=", found "A=B"',
        None,
    ),
    (
        'env = { A = "\\u0000" }',
        ':4: [pool.web.env] A: expected text without the character 0, found "\\u0000"',
        None,
    ),
    (
        "[log]\nlevel = 3",
        ':5: [log] level: expected one of "debug", "info", "warning", "error", found 3',
        None,
    ),
    (
        '[log]\nlevel = "warn"',
        ':5: [log] level: expected one of "debug", "info", "warning", "error", found "warn"',
        'write level = "warning"',
    ),
    ('[log]\nfile = ""', ':5: [log] file: expected text, found ""', 'write file = "-"'),
    (
        '[master]\nname = "a b"',
        ':5: [master] name: expected at most 64 letters, digits, ".", "-" and "_", found "a b"',
        None,
    ),
    (
        '[master]\nuser = "a b"',
        ':5: [master] user: expected the name or the number of an account, found "a b"',
        None,
    ),
    (
        "[master]\numask = 22",
        ":5: [master] umask: expected octal permissions as text, found 22",
        'write umask = "0022"',
    ),
    (
        '[master]\numask = "999"',
        ':5: [master] umask: expected octal permissions as text, found "999"',
        'write umask = "0027"',
    ),
    (
        "[master]\numask = 0o1777",
        ':5: [master] umask: expected permissions from "0000" to "0777", found 1023',
        None,
    ),
    (
        f'[master]\ncontrol = "{"x" * 110}"',
        f':5: [master] control: expected a socket\'s path of at most 107 bytes, found "/srv/{"x" * 110}"',
        "this one has 115 bytes",
    ),
    (
        '[pool."a b"]',
        ':4: [pool."a b"]: expected a pool\'s name of at most 64 letters, digits, "-" and "_", found "a b"',
        None,
    ),
    (
        "max_connections = 2\nthreads = 3",
        ":4: [pool.web] max_connections: expected at least as many as there are threads (3), found 2",
        None,
    ),
]


@pytest.mark.parametrize(("line", "message", "hint"), WRONG, ids=[line for line, *_ in WRONG])
def test_a_mistake_is_told_with_its_place_what_was_expected_and_what_was_found(line, message, hint):
    expected = message if message.startswith(":") and message[1].isdigit() else f":4{message}"
    assert web(line) == (expected, hint)


@pytest.mark.parametrize("name", ["a:b", "a.b:c.d", "a:b()", "a:b.c('x:y', [1], key={'z': None})"])
def test_an_application_is_an_attribute_or_a_call_with_literals(name):
    text = f'[pool.web]\nlisten = ["127.0.0.1:8000"]\nwsgi = "{name}"'
    assert read(text).pools["web"].wsgi == name


@pytest.mark.parametrize(
    ("written", "message", "hint"),
    [
        ("wsgi = 3", "expected text, found 3", 'write wsgi = "shop.web:app"'),
        (
            'wsgi = "shop.web.app"',
            'expected "module:attribute", found "shop.web.app"',
            'write wsgi = "shop.web:app"',
        ),
        (
            'wsgi = "shop/web.py"',
            'expected "module:attribute", found "shop/web.py"',
            'write wsgi = "shop.web:app"',
        ),
        ('wsgi = "shop"', 'expected "module:attribute", found "shop"', 'write wsgi = "shop:app"'),
        ('wsgi = "a:b("', 'expected "module:attribute", found "a:b("', 'write wsgi = "a:b()"'),
        ('wsgi = "a:b()()"', 'expected "module:factory()", found "a:b()()"', 'write wsgi = "a:b()"'),
        (
            'wsgi = "a:b(DEBUG)"',
            'expected literals as a factory\'s arguments, found "a:b(DEBUG)"',
            'write wsgi = "a:b()"',
        ),
        (
            'wsgi = "a:b(**{})"',
            'expected literals as a factory\'s arguments, found "a:b(**{})"',
            'write wsgi = "a:b()"',
        ),
        (
            'handler = "a:b()"',
            'expected "module:attribute": only wsgi calls a factory, found "a:b()"',
            'write handler = "a:b"',
        ),
    ],
)
def test_a_wrong_application_is_told_once(written, message, hint):
    text = f'[pool.web]\nlisten = ["127.0.0.1:8000"]\n{written}'
    assert problems(text) == [(f":3: [pool.web] {written.split()[0]}: {message}", hint)]


@pytest.mark.parametrize(
    ("written", "message", "hint"),
    [
        (
            '"127.0.0.1:80"',
            ' listen: expected a list of addresses, found "127.0.0.1:80"',
            'write listen = ["127.0.0.1:80"]',
        ),
        ("80", " listen: expected a list of addresses, found 80", 'write listen = ["127.0.0.1:8000"]'),
        ("[]", " listen: expected at least one address, found none", 'write listen = ["127.0.0.1:8000"]'),
        ("[80]", " listen[0]: expected an address, or a table with one, found 80", None),
        (
            "[{}]",
            " listen[0]: expected a table with an address, found none",
            'write address = "127.0.0.1:8000"',
        ),
        ('[{ adress = "1" }]', ' listen[0]: expected a known key, found "adress"', "did you mean address?"),
        (
            '["x"]',
            ' listen[0]: expected "IP:PORT", "[IPv6]:PORT", "unix:PATH" or "fd:NAME", found "x"',
            None,
        ),
        (
            '[{ address = "unix:a", backlog = 0 }]',
            " listen[0].backlog: expected a whole number from 1 to 65535, found 0",
            None,
        ),
        (
            '[{ address = "unix:a", mode = 660 }]',
            " listen[0].mode: expected octal permissions as text, found 660",
            'write mode = "0660"',
        ),
        (
            '[{ address = "127.0.0.1:80", mode = "0660" }]',
            " listen[0].mode: expected mode at a Unix socket only, found the address 127.0.0.1:80",
            "remove mode",
        ),
        (
            f'["unix:{"x" * 104}"]',
            f' listen[0]: expected a socket\'s path of at most 107 bytes, found "/srv/{"x" * 104}"',
            "this one has 109 bytes",
        ),
    ],
)
def test_a_wrong_listener_is_told_once(written, message, hint):
    assert problems(f'[pool.web]\nlisten = {written}\nwsgi = "a:b"') == [(f":2: [pool.web]{message}", hint)]


def test_a_pool_needs_one_kind_and_a_listener():
    assert problems("\n[pool.web]\n") == [
        (
            ":2: [pool.web]: expected exactly one of handler, wsgi, task, command, found none",
            'write wsgi = "module:application"',
        ),
        (
            ":2: [pool.web] listen: expected at least one address, found none",
            'write listen = ["127.0.0.1:8000"]',
        ),
    ]
    assert problems(WEB + 'handler = "a:b"') == [
        (
            ":1: [pool.web]: expected exactly one of handler, wsgi, task, command, found handler and wsgi",
            "remove one of them",
        )
    ]


def test_options_of_another_kind_of_pool_are_refused():
    text = '[pool.echo]\nlisten = ["127.0.0.1:7000"]\nhandler = "a:b"\nread_timeout = 1\n[pool.echo.http]\n'
    assert problems(text) == [
        (
            ":4: [pool.echo] read_timeout: expected this in a pool with wsgi only, found a pool with handler",
            "remove read_timeout",
        ),
        (
            ":5: [pool.echo.http]: expected this in a pool with wsgi only, found a pool with handler",
            "remove http",
        ),
    ]


def test_no_two_listeners_share_an_address():
    text = WEB + '[pool.b]\nlisten = ["127.0.0.1:8000", "unix:x", "unix:./x"]\nwsgi = "a:b"\n'
    assert problems(text) == [
        (
            ":5: [pool.b] listen[0]: expected an address of its own, found 127.0.0.1:8000, which has conf/server.toml:2: [pool.web] listen[0]",
            None,
        ),
        (
            ":5: [pool.b] listen[2]: expected an address of its own, found unix:/srv/x, which has conf/server.toml:5: [pool.b] listen[1]",
            None,
        ),
    ]


def test_a_port_chosen_by_the_kernel_is_another_one_each_time():
    text = '[pool.a]\nlisten = ["127.0.0.1:0", "127.0.0.1:0"]\nhandler = "a:b"\n'
    assert len(read(text).pools["a"].listen) == 2


def test_no_two_files_of_the_server_share_a_path():
    text = '[master]\ncontrol = "a"\npid_file = "b"\n[log]\nfile = "b"\n[pool.a]\nlisten = ["unix:a"]\nwsgi = "a:b"\n'
    assert problems(text) == [
        (":2: [master] control: expected a path of its own, found /srv/a, which is [pool.a] listen[0]", None),
        (":3: [master] pid_file: expected a path of its own, found /srv/b, which is [log] file", None),
    ]


def test_all_problems_are_told_at_once_in_the_order_of_the_file():
    text = '[pool.web]\nworkers = "x"\nlisten = ["y"]\nwsgi = "z"\n[log]\nlevel = "z"\n[master]\nnmae = 1\n'
    lines = [message.split(":")[1] for message, _ in problems(text, settings=["x"])]
    assert lines == ["2", "3", "4", "6", "8", ' expected KEY=VALUE, found "x"']


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", ": expected at least one [pool.NAME], found none", "prefork init writes a file to start from"),
        ("pool = 3", ":1: pool: expected tables [pool.NAME], found 3", None),
        (
            "[pool]\nworkers = 3",
            ":2: [pool] workers: expected a table, found 3",
            "write [pool.NAME] above workers",
        ),
        ("log = 3\n" + WEB, ":1: log: expected a table, found 3", None),
        ("a = 1\nb = c\n", ":2: not valid TOML: invalid value", 'text is written in quotes: key = "text"'),
        ("a = 1\n\nb = [1\n\n", ":3: not valid TOML: unclosed array", None),
        (b"a = 1\nb = '\xff'", ":2: expected UTF-8, found the byte 0xff", "save the file as UTF-8"),
        ("a = " + "[" * 5000, ": expected a configuration, found brackets nested too deeply", None),
    ],
)
def test_what_is_no_configuration_is_told_as_such(text, message, hint):
    assert problems(text) == [(message, hint)]


def test_a_byte_order_mark_is_no_mistake():
    assert read(b"\xef\xbb\xbf" + WEB.encode()) == read(WEB)


KEYS_OF_LATER_ISSUES = [
    "asgi",
    "proxy_protocol",
    "trusted",
    "root_path",
    "slow_request",
]


@pytest.mark.parametrize("key", KEYS_OF_LATER_ISSUES)
def test_keys_without_a_meaning_yet_are_not_accepted(key):
    assert web(f"{key} = 1")[0] == f':4: [pool.web]: expected a known key, found "{key}"'


@pytest.mark.parametrize("struct", [Master, Log, Pool, Limits, Http])
def test_a_number_too_long_to_be_printed_is_no_value_of_any_key(struct):
    header = {
        Master: "[master]",
        Log: "[log]",
        Pool: "",
        Http: "[pool.web.http]",
        Limits: "[pool.web.limits]",
    }[struct]
    known = [name for name in options(struct) if name not in ("wsgi", "listen")]
    text = WEB + "\n".join([header, *(f"{name} = 0x{'f' * 5000}" for name in known)])
    wrong = [message for message, _ in problems(text) if message.endswith("found a huge number")]
    assert len(wrong) == len(known)


def test_a_variable_with_a_number_too_long_to_be_printed_is_refused():
    assert (
        web(f"env = {{ A = 0x{'f' * 5000} }}")[0]
        == ":4: [pool.web.env] A: expected text, found a huge number"
    )


def tls(table):
    """Return what a pool's table tls is read as."""
    return read(f"{WEB}[pool.web.tls]\n{table}\n").pools["web"].tls


def test_tls_has_one_pair_or_several_and_relative_paths():
    assert tls('certificate = "a.pem"\nkey = "/k/a.pem"\nclient_ca = "ca.pem"') == Tls(
        certificate=("/srv/a.pem",), key=("/k/a.pem",), client_ca="/srv/ca.pem"
    )
    several = tls('certificate = ["a.pem", "b.pem"]\nkey = ["a.key", "b.key"]')
    assert several.pairs() == (("/srv/a.pem", "/srv/a.key"), ("/srv/b.pem", "/srv/b.key"))
    assert tls('certificate = "both.pem"').pairs() == (("/srv/both.pem", "/srv/both.pem"),)


def test_a_listeners_own_tls_comes_before_the_pools():
    listen = '["127.0.0.1:8000", { address = "127.0.0.1:8443", tls = { certificate = "own.pem" } }]'
    text = f'[pool.web]\nlisten = {listen}\nwsgi = "a:b"\n'
    plain = read(text).pools["web"]
    assert [plain.tls_at(found) is None for found in plain.listen] == [True, False]
    both = read(text + '[pool.web.tls]\ncertificate = "pool.pem"\n').pools["web"]
    assert [both.tls_at(found).certificate for found in both.listen] == [
        ("/srv/pool.pem",),
        ("/srv/own.pem",),
    ]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", ":4: [pool.web.tls]: expected a table with a certificate, found none"),
        ("certificate = 1", ":5: [pool.web.tls] certificate: expected text, found 1"),
        ("certificate = []", ":5: [pool.web.tls] certificate: expected text, found an empty list"),
        ('certificate = ["a", 1]', ":5: [pool.web.tls] certificate: expected text, found 1"),
        (
            'certificate = ["a", "b"]\nkey = "k"',
            ":6: [pool.web.tls] key: expected as many keys as there are certificates (2), found 1",
        ),
    ],
)
def test_tls_that_makes_no_sense_is_refused(table, message):
    assert [found for found, _ in problems(f"{WEB}[pool.web.tls]\n{table}\n")] == [message]


def test_a_certificate_in_the_wrong_table_is_told_where_it_belongs():
    assert web('certificate = "a.pem"')[1] == "certificate belongs in [pool.NAME.tls]"


def test_hooks_are_a_module():
    assert read(WEB).hooks.module is None
    assert read("[hooks]\nmodule = 'shop.hooks'\n" + WEB).hooks.module == "shop.hooks"
    assert read(WEB, environment={"PREFORK_HOOKS__MODULE": "hooks"}).hooks.module == "hooks"


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("shop/hooks.py", 'write module = "shop.hooks"'),
        ("shop.hooks:ready", 'write module = "shop.hooks"'),
        ("my-hooks", 'write module = "shop.hooks"'),
    ],
)
def test_hooks_that_are_no_module_are_refused(written, hint):
    expected = (
        f':2: [hooks] module: expected the dotted name of a module, as in "shop.hooks", found "{written}"'
    )
    assert problems(f'[hooks]\nmodule = "{written}"\n{WEB}') == [(expected, hint)]


def test_preload_is_off_unless_it_is_asked_for():
    assert read(WEB).pools["web"].preload is False
    assert read(WEB + "preload = true\n").pools["web"].preload is True


def test_preload_means_nothing_to_a_program():
    text = '[pool.assets]\ncommand = ["node"]\npreload = true\n'
    ((message, hint),) = problems(text)
    assert (
        message
        == ":3: [pool.assets] preload: expected this in a pool of another kind, found a pool with command"
    )
    assert hint == "remove preload"


@pytest.mark.parametrize(
    ("first", "second", "is_found"),
    [
        ("127.0.0.1:80", "0.0.0.0:80", True),
        ("[::]:80", "[::1]:80", True),
        ("127.0.0.1:80", "0.0.0.0:81", False),
        ("127.0.0.1:0", "0.0.0.0:0", False),
        ("[::]:80", "0.0.0.0:80", False),
        ("[::]:80", "127.0.0.1:80", False),
    ],
)
def test_an_address_beside_the_one_that_includes_it_is_refused(first, second, is_found):
    text = WEB.replace("127.0.0.1:8000", first) + WEB.replace("web]", "api]").replace(
        "127.0.0.1:8000", second
    )
    if not is_found:
        read(text)
        return
    narrow, wide = (second, first) if "1]" in second else (first, second)
    [(message, hint)] = problems(text)
    assert f"expected an address of its own, found {narrow}, which is one of {wide} of " in message
    assert hint == "remove one of the two"
