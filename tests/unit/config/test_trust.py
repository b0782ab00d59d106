"""Who is believed, where an application is mounted, and whether PROXY headers come: values and mistakes."""

from __future__ import annotations

import pytest

from prefork.config.schema import CLIENT_FIELDS, Http, Listen
from prefork.units import TcpAddress
from tests.unit.config.reading import WEB, problems, read

HTTP = f"{WEB}[pool.web.http]\n"


def http(line: str) -> Http:
    return read(HTTP + line).pools["web"].http


def door(options: str, kind: str = "wsgi") -> str:
    return f'[pool.web]\n{kind} = "a:b"\nlisten = [{{ address = "127.0.0.1:80", {options} }}]\n'


def test_by_default_this_machine_is_believed_and_no_proxy_header_comes() -> None:
    pool = read(WEB).pools["web"]
    assert pool.http.trusted == ("127.0.0.1", "::1", "unix")
    assert (pool.http.root_path, pool.http.server_header) == ("", True)
    assert pool.listen == (Listen(address=TcpAddress("127.0.0.1", 8000), proxy_protocol=False, trusted=None),)


def test_addresses_and_networks_are_kept_in_one_form() -> None:
    line = 'trusted = ["10.0.0.0/8", "10.0.0.1/32", "FD00::/8", "0:0::1", "unix", "10.0.0.0/255.0.0.0"]'
    assert http(line).trusted == ("10.0.0.0/8", "10.0.0.1", "fd00::/8", "::1", "unix", "10.0.0.0/8")
    assert http("trusted = []").trusted == ()


def test_fields_of_proxies_are_kept_in_small_letters() -> None:
    assert http("").trusted_fields == ("x-forwarded-for", "x-forwarded-proto")
    assert http('trusted_fields = ["Forwarded", "X-Forwarded-Host"]').trusted_fields == (
        "forwarded",
        "x-forwarded-host",
    )
    assert http("trusted_fields = []").trusted_fields == ()


def test_settings_from_outside_are_lists_and_flags_too() -> None:
    settings = (
        'pool.web.http.trusted=["10.0.0.0/8"]',
        "pool.web.http.server_header=false",
        "pool.web.http.root_path=/shop",
    )
    assert read(WEB, settings=settings).pools["web"].http == Http(
        trusted=("10.0.0.0/8",), server_header=False, root_path="/shop"
    )


def test_a_listener_says_more() -> None:
    (listener,) = read(door('proxy_protocol = true, trusted = ["unix"]')).pools["web"].listen
    assert (listener.proxy_protocol, listener.trusted) == (True, ("unix",))
    (listener,) = read(door("proxy_protocol = true", "handler")).pools["web"].listen
    assert listener.proxy_protocol


ADDRESSES = 'an address like "127.0.0.1", a network like "10.0.0.0/8", or "unix"'


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        (
            'trusted = "10.0.0.1"',
            'trusted: expected a list of addresses and networks, found "10.0.0.1"',
            'write trusted = ["10.0.0.1"]',
        ),
        ("trusted = [1]", "trusted: expected addresses and networks as text, found 1", None),
        (
            'trusted = ["10.0.0.1/8"]',
            f'trusted: expected {ADDRESSES}, found "10.0.0.1/8"',
            'write "10.0.0.0/8"',
        ),
        (
            'trusted = ["*"]',
            f'trusted: expected {ADDRESSES}, found "*"',
            'write "0.0.0.0/0", "::/0", "unix" to believe everybody',
        ),
        (
            'trusted = ["localhost"]',
            f'trusted: expected {ADDRESSES}, found "localhost"',
            'write "127.0.0.1", "::1"',
        ),
        (
            'trusted_fields = "forwarded"',
            'trusted_fields: expected a list of names of fields, found "forwarded"',
            'write trusted_fields = ["forwarded"]',
        ),
        (
            "trusted_fields = [1]",
            "trusted_fields: expected a list of names of fields, found a list",
            'write trusted_fields = ["x-forwarded-for", "x-forwarded-proto"]',
        ),
        (
            'trusted_fields = ["X_Forwarded_Host"]',
            f'trusted_fields: expected one of {", ".join(CLIENT_FIELDS)}, found "X_Forwarded_Host"',
            'write "x-forwarded-host"',
        ),
        (
            'trusted_fields = ["cookie"]',
            f'trusted_fields: expected one of {", ".join(CLIENT_FIELDS)}, found "cookie"',
            None,
        ),
        ('trusted = ["shop"]', f'trusted: expected {ADDRESSES}, found "shop"', None),
        (
            'root_path = "shop/"',
            'root_path: expected "", or a path like "/shop", as people read it, found "shop/"',
            'write root_path = "/shop"',
        ),
        (
            'root_path = "/a?b"',
            'root_path: expected "", or a path like "/shop", as people read it, found "/a?b"',
            None,
        ),
        ("root_path = 3", 'root_path: expected "", or a path like "/shop", as people read it, found 3', None),
        (
            'server_header = "off"',
            'server_header: expected true or false, found "off"',
            "write server_header = false",
        ),
        ("server_header = 0", "server_header: expected true or false, found 0", None),
    ],
)
def test_mistakes_are_told_with_what_to_write(line: str, message: str, hint: str | None) -> None:
    assert problems(HTTP + line) == [(f":5: [pool.web.http] {message}", hint)]


def test_whom_to_trust_means_nothing_to_a_socket_handler() -> None:
    assert problems(door("trusted = []", "handler")) == [
        (
            ":3: [pool.web] listen[0].trusted: expected this in a pool with wsgi only, found a pool with handler",
            "remove trusted",
        )
    ]
