"""Units: what people write is what the program gets, and what it prints can be written again."""

from __future__ import annotations

from fractions import Fraction

import pytest

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
    shown,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", TcpAddress("127.0.0.1", 8000)),
        ("0.0.0.0:0", TcpAddress("0.0.0.0", 0)),
        ("[::1]:65535", TcpAddress("::1", 65535)),
        ("[0:0::1]:80", TcpAddress("::1", 80)),
        ("[fe80::1%eth0]:80", TcpAddress("fe80::1%eth0", 80)),
        ("unix:run/web.sock", UnixAddress("run/web.sock")),
        (f"unix:{'x' * 107}", UnixAddress("x" * 107)),
    ],
)
def test_addresses_are_read(text, address):
    assert parse_address(text) == address


FD_HINT = "systemd's FileDescriptorName= sets it"
EXPECTED_ADDRESS = 'expected "IP:PORT", "[IPv6]:PORT", "unix:PATH" or "fd:NAME"'


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "localhost:8000",
            f'{EXPECTED_ADDRESS}, found "localhost:8000"',
            'write "127.0.0.1:8000", "[::1]:8000", or both',
        ),
        (
            ":80",
            f'{EXPECTED_ADDRESS}, found ":80"',
            'write "0.0.0.0:80" for all of this machine\'s IPv4 addresses, "[::]:80" for IPv6',
        ),
        (
            "8000",
            f'{EXPECTED_ADDRESS}, found "8000"',
            'write "0.0.0.0:8000" for all of this machine\'s IPv4 addresses, "[::]:8000" for IPv6',
        ),
        ("::1:80", f'{EXPECTED_ADDRESS}, found "::1:80"', 'write "[::1]:80"'),
        ("/run/x.sock", f'{EXPECTED_ADDRESS}, found "/run/x.sock"', 'write "unix:/run/x.sock"'),
        ("1.2.3:80", f'{EXPECTED_ADDRESS}, found "1.2.3:80"', None),
        ("fd:", 'expected the name of an inherited socket, as in "fd:web", found "fd:"', FD_HINT),
        ("fd:a:b", 'expected the name of an inherited socket, as in "fd:web", found "fd:a:b"', FD_HINT),
        ("127.0.0.1:65536", 'expected a port from 0 to 65535, found "127.0.0.1:65536"', None),
        ("unix:", 'expected the path of a socket, found ""', None),
        ("unix:run/", 'expected the path of a socket, found "run/"', None),
        (
            "unix:@web",
            'expected the path of a socket, found "unix:@web"',
            "abstract sockets have no owner and no mode: write a path",
        ),
        (
            f"unix:{'ü' * 54}",
            f'expected a socket\'s path of at most 107 bytes, found "{"ü" * 54}"',
            "this one has 108 bytes",
        ),
    ],
)
def test_other_addresses_are_refused(text, message, hint):
    with pytest.raises(UnitError) as caught:
        parse_address(text)
    assert (str(caught.value), caught.value.hint) == (message, hint)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0),
        (30, 30),
        (0.25, 0.25),
        ("500ms", 0.5),
        ("1m30s", 90),
        ("1.5h", 5400),
        ("1 d 2 h", 93600),
        ("0s", 0),
    ],
)
def test_durations_are_read(value, seconds):
    assert parse_duration(value) == seconds


@pytest.mark.parametrize(
    "value", ["", "s", "-1s", "30s1m", "1s1s", "1 year", "1e3s", -1, float("inf"), float("nan"), True]
)
def test_other_durations_are_refused(value):
    with pytest.raises(UnitError, match=r'^expected seconds as a number, or a duration like "1m30s", found '):
        parse_duration(value)


def test_a_duration_without_a_unit_is_explained():
    with pytest.raises(UnitError) as caught:
        parse_duration("30")
    assert caught.value.hint == 'write 30 or "30s"'


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0124, "12 ms"),
        (0.9999, "1 s"),
        (0.41, "410 ms"),
        (1.234, "1.23 s"),
        (31.24, "31.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 m"),
        (90, "1 m 30 s"),
        (3599.6, "1 h"),
        (7500, "2 h 5 m"),
        (86399, "1 d"),
        (273600, "3 d 4 h"),
    ],
)
def test_durations_are_written_for_people(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 0),
        (8190, 8190),
        ("64MiB", 64 << 20),
        ("1GiB", 1 << 30),
        ("10kB", 10000),
        ("1.5 KiB", 1536),
        ("7B", 7),
    ],
)
def test_sizes_are_read(value, size):
    assert parse_size(value) == size


@pytest.mark.parametrize("value", ["", "MiB", "-1B", "1e3B", "1 mib", -1, 1.5, True, None])
def test_other_sizes_are_refused(value):
    with pytest.raises(UnitError, match=r'^expected bytes as a whole number, or a size like "64MiB", found '):
        parse_size(value)


@pytest.mark.parametrize("text", ["64M", "64m", "64mib", "64 Mb"])
def test_a_size_of_unclear_steps_is_explained(text):
    with pytest.raises(UnitError) as caught:
        parse_size(text)
    assert caught.value.hint == 'write "64MiB" (steps of 1024) or "64MB" (steps of 1000)'


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (12.3 * 2**20, "12.3 MiB"),
        (2**20 - 1, "1.0 MiB"),
        (2**50, "1024.0 TiB"),
    ],
)
def test_sizes_are_written_for_people(size, text):
    assert format_size(int(size)) == text


@pytest.mark.parametrize(
    ("value", "total", "part"),
    [
        ("25%", 4, 1),
        ("25%", 5, 2),
        ("25%", 0, 1),
        ("7%", 100, 7),
        ("2.5%", 1000, 25),
        ("100%", 3, 3),
        (2, 1, 2),
    ],
)
def test_a_share_is_rounded_up_exactly_and_never_nothing(value, total, part):
    assert parse_share(value).of(total) == part


@pytest.mark.parametrize("value", ["", "0%", "101%", "25", "%", "-1%", 0, -1, 0.5, True])
def test_other_shares_are_refused(value):
    with pytest.raises(
        UnitError, match=r'^expected a whole number from 1, or a share from "1%" to "100%", found '
    ):
        parse_share(value)


@pytest.mark.parametrize("text", ["25%", "2.5%", "100%", "0.000000001%"])
def test_a_share_is_written_as_it_was_read(text):
    assert str(parse_share(text)) == text


def test_shares_are_values():
    assert parse_share("50%") == Share(percent=Fraction(50)) != parse_share(50)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("four", '"four"'),
        ('a"b\n', '"a\\"b\\n"'),
        (True, "true"),
        (0.5, "0.5"),
        ({}, "a table"),
        ([], "an empty list"),
        ([1], "a list"),
        ("\udcff\x7f\x1b", '"\\udcff\\x7f\\u001b"'),
        ("x" * 300, f'"{"x" * 159}… (302 characters)'),
    ],
)
def test_found_values_are_shown_briefly_and_printably(value, text):
    assert shown(value) == text


def test_a_number_too_long_to_be_printed_is_shown_as_such():
    assert shown(10**5000) == "a huge number"
