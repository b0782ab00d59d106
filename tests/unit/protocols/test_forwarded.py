"""Whom proxies name as the client, and whom they are believed to name."""

from __future__ import annotations

import pytest

from prefork.protocols.forwarded import TABLE_SIZE, Claims, Trust
from prefork.protocols.http1 import Refusal

LOCAL = ("127.0.0.1", "::1", "10.0.0.0/8", "fd00::/8", "unix")


def read(*, trusted: tuple[str, ...] = LOCAL, **fields: str) -> Claims:
    names = {
        "standard": "HTTP_FORWARDED",
        **{key: f"HTTP_X_FORWARDED_{key.upper()}" for key in ("for_", "proto", "host", "prefix")},
    }
    cgi = {names[key].rstrip("_"): value for key, value in fields.items()}
    return Trust(trusted).read(cgi)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", False),
        ("10.255.0.1", True),
        ("11.0.0.1", False),
        ("::1", True),
        ("::2", False),
        ("fd12::1", True),
        ("fe80::1%eth0", False),
        ("::ffff:10.0.0.1", True),
        ("::ffff:9.0.0.1", False),
        ("", True),
    ],
)
def test_addresses_networks_and_unix_sockets_are_trusted(address: str, expected: bool) -> None:
    trust = Trust(LOCAL)
    assert trust.believes(address) is expected
    assert trust.believes(address) is expected  # from the table


def test_nobody_is_trusted_without_being_named() -> None:
    assert not any(Trust(()).believes(address) for address in ("", "127.0.0.1", "::1"))


def test_the_tables_are_bounded() -> None:
    trust = Trust(LOCAL)
    for number in range(TABLE_SIZE + 10):
        trust.believes(f"10.1.{number // 256}.{number % 256}")
        trust.read({"HTTP_X_FORWARDED_FOR": f"1.1.{number // 256}.{number % 256}"})
    trust.read({"HTTP_X_FORWARDED_FOR": "1.1.1.1, " * 1000})
    assert len(trust._known) <= TABLE_SIZE
    assert len(trust._claims) <= TABLE_SIZE
    assert max(len(hops) for _, hops, *_ in trust._claims) < 100


@pytest.mark.parametrize(
    ("hops", "address", "port"),
    [
        ("1.2.3.4", "1.2.3.4", ""),
        ("1.2.3.4:5678", "1.2.3.4", "5678"),
        ("2001:DB8::1", "2001:db8::1", ""),
        ("[2001:db8::1]:5678", "2001:db8::1", "5678"),
        ("::ffff:1.2.3.4", "1.2.3.4", ""),
        ("6.6.6.6, 1.2.3.4", "1.2.3.4", ""),
        ("6.6.6.6,1.2.3.4 , 10.0.0.1,\t127.0.0.1", "1.2.3.4", ""),
        ("6.6.6.6, 1.2.3.4, , ", "1.2.3.4", ""),
        ("10.0.0.2, 10.0.0.1", "10.0.0.2", ""),
        ("unknown, 10.0.0.1", "10.0.0.1", ""),
        ("1.2.3.4, nonsense, 10.0.0.1", "10.0.0.1", ""),
        ("1.2.3.4, 10.0.0.1:99999", None, ""),
        ("1.2.3.4, 010.0.0.1", None, ""),
        ("fe80::1%eth0", None, ""),
        ("localhost", None, ""),
        ("'; DROP TABLE", None, ""),
        ("", None, ""),
    ],
)
def test_the_rightmost_address_that_is_not_trusted_is_the_clients(
    hops: str, address: str | None, port: str
) -> None:
    claims = read(for_=hops)
    assert (claims.address, claims.port) == (address, port)


@pytest.mark.parametrize(
    ("value", "scheme"),
    [
        ("https", "https"),
        ("HTTP", "http"),
        ("http, https", "https"),
        ("ftp", None),
        ("https;", None),
        ("", None),
    ],
)
def test_the_scheme_is_http_or_https(value: str, scheme: str | None) -> None:
    assert read(proto=value).scheme == scheme


@pytest.mark.parametrize(
    ("value", "host"),
    [
        ("shop.example", "shop.example"),
        ("shop.example:8443", "shop.example:8443"),
        ("evil.example, [::1]:80", "[::1]:80"),
        ("a/b", None),
        ("a b", None),
        ("u@a", None),
        (":80", None),
        ("", None),
    ],
)
def test_the_host_has_to_be_one(value: str, host: str | None) -> None:
    assert read(host=value).host == host


@pytest.mark.parametrize(
    ("value", "prefix"),
    [
        ("/shop", "/shop"),
        ("/shop/", "/shop"),
        ("/a/b%20c", "/a/b c"),
        ("/", ""),
        ("//evil.example", None),
        ("shop", None),
        ("/a?b", None),
        ("/a\tb", None),
        ("", None),
    ],
)
def test_the_prefix_has_to_be_a_path(value: str, prefix: str | None) -> None:
    assert read(prefix=value).prefix == prefix


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("for=1.2.3.4", Claims("1.2.3.4")),
        ('For="[2001:db8::1]:4711"', Claims("2001:db8::1", "4711")),
        ('for="1.2.3.4:_obfuscated"', Claims("1.2.3.4")),
        ("for=1.2.3.4;proto=https;by=10.0.0.1;host=a.example", Claims("1.2.3.4", "", "https", "a.example")),
        ('for=1.2.3.4 ; Proto=HTTPS; host="a.example:80"', Claims("1.2.3.4", "", "https", "a.example:80")),
        ('for="1.2\\.3.4"', Claims("1.2.3.4")),
        ("for=6.6.6.6;proto=https, for=1.2.3.4;proto=http", Claims("1.2.3.4", "", "http")),
        ("for=1.2.3.4;proto=https, for=10.0.0.1;proto=http", Claims("1.2.3.4", "", "https")),
        ("for=unknown;proto=https, for=10.0.0.1;proto=http", Claims("10.0.0.1", "", "https")),
        ("for=_hidden;host=a.example", Claims(host="a.example")),
        ('host="a, b";for=1.2.3.4', Claims("1.2.3.4")),
        ("proto=https", Claims(scheme="https")),
        ("for=1.2.3.4,,;,", Claims("1.2.3.4")),
        ("for=1.2.3.4;secret=x", Claims("1.2.3.4")),
        ("", Claims()),
    ],
)
def test_the_standard_field_tells_all_of_a_hop_together(value: str, expected: Claims) -> None:
    assert read(standard=value) == expected


@pytest.mark.parametrize(
    "value",
    [
        'for="',
        'for=", for=1.2.3.4',
        'for="x, for="[::1]:80"',
        'for="x\\", for=1.2.3.4',
        "for",
        "for = 1.2.3.4",
        "for=1.2.3.4 proto=https",
        "for=1.2.3.4;for=5.6.7.8",
        "for=a@b",
    ],
)
def test_a_malformed_standard_field_is_refused_as_its_end_may_be_the_proxys(value: str) -> None:
    with pytest.raises(Refusal) as caught:
        read(standard=value)
    assert caught.value.status == 400


def test_both_kinds_may_agree_and_complete_each_other() -> None:
    claims = read(for_="1.2.3.4", proto="https", standard="for=1.2.3.4:80;host=a", prefix="/x")
    assert claims == Claims("1.2.3.4", "80", "https", "a", "/x")


@pytest.mark.parametrize(
    "fields",
    [
        {"for_": "1.2.3.4", "standard": "for=5.6.7.8"},
        {"for_": "1.2.3.4", "proto": "http", "standard": "proto=https"},
        {"host": "a", "standard": "host=b"},
    ],
)
def test_kinds_that_contradict_each_other_are_refused(fields: dict[str, str]) -> None:
    with pytest.raises(Refusal) as caught:
        read(**fields)
    assert caught.value.status == 400


def test_what_was_learnt_is_said_again() -> None:
    trust = Trust(LOCAL)
    fields = {"HTTP_X_FORWARDED_FOR": "6.6.6.6, 1.2.3.4", "HTTP_X_FORWARDED_PROTO": "https"}
    assert trust.read(fields) == trust.read(fields) == Claims("1.2.3.4", "", "https")
    for _ in range(2):
        with pytest.raises(Refusal):
            trust.read(fields | {"HTTP_FORWARDED": "for=5.6.7.8"})


def test_without_fields_nothing_is_claimed() -> None:
    assert read() == Claims()
