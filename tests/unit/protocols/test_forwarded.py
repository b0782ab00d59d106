"""Whom proxies name as the client, and whom they are believed to name."""

from __future__ import annotations

import tracemalloc
from ipaddress import ip_address, ip_network

import pytest

from prefork.protocols.forwarded import ADDRESSES_ROOM, CLAIMS_ROOM, Claims, Trust
from prefork.protocols.http1 import Refusal

ALL = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-prefix", "forwarded")
LOCAL = ("127.0.0.1", "::1", "10.0.0.0/8", "fd00::/8", "unix")


def read(*, trusted: tuple[str, ...] = LOCAL, believed: tuple[str, ...] = ALL, **fields: str) -> Claims:
    names = {
        "standard": "HTTP_FORWARDED",
        **{key: f"HTTP_X_FORWARDED_{key.upper()}" for key in ("for_", "proto", "host", "prefix")},
    }
    cgi = {names[key].rstrip("_"): value for key, value in fields.items()}
    return Trust(trusted, believed).read(cgi)


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
    trust = Trust(LOCAL, ALL)
    assert [trust.believes(address) for _ in range(3)] == [expected] * 3  # at last from the table


def test_nobody_is_trusted_without_being_named() -> None:
    assert not any(Trust((), ALL).believes(address) for address in ("", "127.0.0.1", "::1"))


def test_the_tables_are_bounded_in_bytes() -> None:
    """All of it comes twice, so that it is kept."""
    trust = Trust(LOCAL, ALL)
    tracemalloc.start()
    try:
        for number in range(4000):
            for _ in range(2):
                trust.believes(f"10.1.{number // 256}.{number % 256}")
                trust.believes(f"2001:db8:1111:2222:3333:4444:{number:x}:8888")
                trust.read(
                    {"HTTP_X_FORWARDED_FOR": f"1.1.{number // 256}.{number % 256}, 10.0.0.1" * (number % 9)}
                )
                trust.read(
                    {"HTTP_FORWARDED": f'for=1.2.3.4;proto=https;host="h{number}.{"x" * (number % 200)}"'}
                )
        assert tracemalloc.get_traced_memory()[0] <= 1.25 * (ADDRESSES_ROOM + CLAIMS_ROOM)
    finally:
        tracemalloc.stop()


def test_a_long_list_is_not_kept() -> None:
    trust = Trust(LOCAL, ALL)
    for _ in range(3):
        trust.read({"HTTP_X_FORWARDED_FOR": "1.1.1.1, " * 900})
    assert not trust._claims


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
    trust = Trust(LOCAL, ALL)
    fields = {"HTTP_X_FORWARDED_FOR": "6.6.6.6, 1.2.3.4", "HTTP_X_FORWARDED_PROTO": "https"}
    assert trust.read(fields) == trust.read(fields) == Claims("1.2.3.4", "", "https")
    for _ in range(2):
        with pytest.raises(Refusal):
            trust.read(fields | {"HTTP_FORWARDED": "for=5.6.7.8"})


def test_without_fields_nothing_is_claimed() -> None:
    assert read() == Claims()


EVERYTHING = {
    "for_": "1.2.3.4",
    "proto": "https",
    "host": "a",
    "prefix": "/x",
    "standard": "for=5.6.7.8;proto=http;host=b",
}


@pytest.mark.parametrize(
    ("believed", "expected"),
    [
        (ALL[:2], Claims("1.2.3.4", "", "https")),
        (ALL[:1], Claims("1.2.3.4")),
        (ALL[2:4], Claims(host="a", prefix="/x")),
        (ALL[4:], Claims("5.6.7.8", "", "http", "b")),
        ((), Claims()),
    ],
)
def test_a_field_that_is_not_named_sets_nothing_and_is_compared_with_nothing(
    believed: tuple[str, ...], expected: Claims
) -> None:
    assert read(believed=believed, **EVERYTHING) == expected
    with pytest.raises(Refusal):
        read(**EVERYTHING)


def test_a_malformed_field_that_is_not_named_is_none_of_ours() -> None:
    assert read(believed=ALL[:2], standard='for="', for_="1.2.3.4") == Claims("1.2.3.4")


@pytest.mark.parametrize(
    "address",
    ["1.2.3", "1.2.3.4.5", "256.1.1.1", "1.2.3.04", "1..2.3", "+1.2.3.4", "1.2.3.\u0664", "1.2.3.4\n"],
)
def test_what_is_nearly_an_address_is_none(address: str) -> None:
    assert read(for_=f"9.9.9.9, {address}").address is None


@pytest.mark.parametrize("network", ["10.1.2.3", "10.1.2.0/24", "10.0.0.0/9", "0.0.0.0/0", "10.1.2.3/32"])
def test_networks_end_where_they_should(network: str) -> None:
    inside, trust = ip_network(network), Trust([network], ALL)
    for address in (
        "10.1.2.3",
        "10.1.2.4",
        "10.1.3.3",
        "10.128.0.0",
        "10.127.255.255",
        "0.0.0.0",
        "255.255.255.255",
    ):
        assert trust.believes(address) is (ip_address(address) in inside)
