"""The real program under requests that others have misread, behind proxies, and with more work than it can do."""

from __future__ import annotations

import json
import select
import socket
import time
from typing import Any

import pytest

from prefork.config.schema import CLIENT_FIELDS
from prefork.protocols.proxy import SIGNATURE
from tests.clients import read_answer
from tests.corpus import BAD_HEADS, GOOD, SMUGGLED, SMUGGLERS
from tests.harness import Server, body_of, read_to_end, wait_until
from tests.process.conftest import Start

V2 = SIGNATURE + b"\x21\x11\0\x0c\xc0\0\2\1\xc0\0\2\2\0\x63\x1f\x90"
V2_IPV6 = SIGNATURE + b"\x21\x21\0\x24" + bytes(15) + b"\1" + bytes(15) + b"\2" + b"\0\x63\x1f\x90"


def web(*lines: str, listen: str = '["127.0.0.1:0"]') -> str:
    return "\n".join(
        ["[pool.web]", f"listen = {listen}", 'wsgi = "strict:app"', "graceful_timeout = 5", *lines, ""]
    )


def tell(server: Server, data: bytes, pool: str | None = None) -> bytes:
    """Return all that comes back for bytes on a connection of their own."""
    with server.connect(pool) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return read_to_end(client)


def show(server: Server, *fields: str, before: bytes = b"", path: str = "/show") -> dict[str, Any]:
    head = "\r\n".join([f"GET {path} HTTP/1.1", "Host: a", *fields, "", ""]).encode()
    return json.loads(body_of(tell(server, before + head)))


@pytest.mark.parametrize("threads", [1, 2])
def test_no_request_that_others_have_misread_reaches_the_application(start: Start, threads: int) -> None:
    server = start(web(f"threads = {threads}")).wait_serving()
    for name, data, status, source in [*SMUGGLERS, *BAD_HEADS]:
        with server.connect() as client:
            client.sendall(data + SMUGGLED)
            found, _, stays_open = read_answer(client)
            assert (found, stays_open, client.recv(1)) == (status, False, b""), f"{name} ({source})"
    for _, data, _ in GOOD:
        assert tell(server, data + SMUGGLED).count(b"HTTP/1.1 200 OK") == 2
    asked = json.loads(body_of(server.get("/asked")))
    assert asked.count("/smuggled") == len(GOOD)
    assert server.stop() == 0
    assert "Traceback" not in server.log


def test_a_refusal_is_read_by_a_client_that_sends_a_mebibyte_before_it_reads(start: Start) -> None:
    server = start(web()).wait_serving()
    for refused, status in (
        (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999\r\n\r\n", 413),
    ):
        with server.connect() as client:
            client.sendall(refused)
            for _ in range(64):
                client.sendall(bytes(16384))
            assert read_answer(client)[0] == status
            assert client.recv(1) == b""


FIELDS = (
    "X-Forwarded-For: 6.6.6.6, 203.0.113.7, 10.1.1.1",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: shop.example",
    "X-Forwarded-Prefix: /shop",
)
PLAIN = {"REMOTE_ADDR": "127.0.0.1", "wsgi.url_scheme": "http", "HTTP_HOST": "a", "SCRIPT_NAME": ""}


def test_trusted_proxies_are_believed_and_a_reload_changes_whom_to_trust(start: Start) -> None:
    fields = f"trusted_fields = {json.dumps(CLIENT_FIELDS)}"
    server = start(web("[pool.web.http]", 'trusted = ["127.0.0.1", "10.0.0.0/8"]', fields)).wait_serving()
    shown = show(server, *FIELDS)
    assert shown | {"SERVER_PORT": ""} == {
        "REMOTE_ADDR": "203.0.113.7",
        "REMOTE_PORT": "",
        "wsgi.url_scheme": "https",
        "HTTP_HOST": "shop.example",
        "SCRIPT_NAME": "/shop",
        "PATH_INFO": "/show",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "",
    }
    assert tell(
        server, b"GET / HTTP/1.1\r\nHost: a\r\nForwarded: for=1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\n\r\n"
    ).startswith(b"HTTP/1.1 400 ")
    server.write(web("[pool.web.http]", 'trusted = ["127.0.0.1", "10.0.0.0/8"]'))
    server.ask("reload")
    shown = show(server, *FIELDS, "Forwarded: for=9.9.9.9;host=b")
    assert (shown["REMOTE_ADDR"], shown["HTTP_HOST"], shown["SCRIPT_NAME"]) == ("203.0.113.7", "a", "")
    server.write(web("[pool.web.http]", 'trusted = ["10.0.0.0/8"]', fields))
    server.ask("reload")
    assert show(server, *FIELDS).items() >= PLAIN.items()


def test_an_application_can_be_mounted_and_the_server_remain_unnamed(start: Start) -> None:
    server = start(web("[pool.web.http]", 'root_path = "/shop"', "server_header = false")).wait_serving()
    for path, rest in (("/shop/a", "/a"), ("/a", "/a"), ("/shop", "")):
        shown = show(server, path=path)
        assert (shown["SCRIPT_NAME"], shown["PATH_INFO"]) == ("/shop", rest)
    assert b"\r\nserver:" not in server.get("/shop/x").lower()


def test_proxy_headers_are_demanded_of_one_listener_and_refused_by_another(start: Start) -> None:
    listen = '[{ address = "127.0.0.1:0", proxy_protocol = true }, "127.0.0.1:0"]'
    server = start(web(listen=listen)).wait_serving()
    for header in (V2, b"PROXY TCP4 192.0.2.1 192.0.2.2 99 8080\r\n"):
        shown = show(server, before=header)
        assert [shown[key] for key in ("REMOTE_ADDR", "REMOTE_PORT", "SERVER_NAME", "SERVER_PORT")] == [
            "192.0.2.1",
            "99",
            "192.0.2.2",
            "8080",
        ]
    assert show(server, before=V2_IPV6)["REMOTE_ADDR"] == "::1"
    assert show(server, before=b"PROXY UNKNOWN\r\n")["REMOTE_ADDR"] == "127.0.0.1"
    assert tell(server, SMUGGLED) == b""
    server.wait_for("no PROXY header: it does not begin with one")
    for header in (V2, b"PROXY TCP4 192.0.2.1 192.0.2.2 99 8080\r\n"):
        with socket.create_connection(server.address(number=1), 10) as client:
            client.sendall(header + SMUGGLED)
            assert read_answer(client)[0] == 400


@pytest.mark.parametrize("threads", [1, 2])
def test_a_socket_handler_gets_the_clients_address(start: Start, threads: int) -> None:
    listen = '[{ address = "127.0.0.1:0", proxy_protocol = true }]'
    server = start(
        f'[pool.tell]\nlisten = {listen}\nhandler = "strict:tell_address"\nthreads = {threads}\n'
    ).wait_serving()
    assert json.loads(tell(server, V2 + b"hello")) == [["192.0.2.1", 99], "hello"]
    assert json.loads(tell(server, V2_IPV6 + b"hello")) == [["::1", 99, 0, 0], "hello"]
    (host, _), said = json.loads(tell(server, b"PROXY UNKNOWN\r\nhello"))
    assert (host, said) == ("127.0.0.1", "hello")
    with server.connect() as client:
        for byte in V2 + b"x":
            client.send(bytes([byte]))
        assert json.loads(read_to_end(client)) == [["192.0.2.1", 99], "x"]
    assert tell(server, b"hello") == b""
    server.wait_for("connection from 127.0.0.1:.* refused, no PROXY header: it does not begin with one")
    assert json.loads(tell(server, V2 + b"again"))[1] == "again"
    assert server.stop() == 0


def test_more_work_than_it_can_do_is_turned_down_at_once(start: Start) -> None:
    server = start(web("threads = 2", "max_connections = 200")).wait_serving()
    wait = b"GET /wait HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    clients = [server.connect() for _ in range(2 + 32 + 8)]
    for client in clients:
        client.sendall(wait)
    refused = wait_until(
        lambda: len(found := select.select(clients, [], [], 0.1)[0]) == 8 and found, "8 answers"
    )
    for client in refused:
        answer = read_to_end(client)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in answer
    began = time.monotonic()
    assert b" 503 " in tell(server, wait)
    assert b" 400 " in tell(server, b"BAD\r\n\r\n")
    assert time.monotonic() - began < 2
    (server.folder / "go").touch()
    for client in clients:
        if client not in refused:
            assert read_answer(client)[0] == 200
        client.close()


def test_beyond_max_connections_clients_wait_until_there_is_room(start: Start) -> None:
    server = start(web("max_connections = 2")).wait_serving()
    first, second, third = server.connect(), server.connect(), server.connect()
    for client in (first, second):  # an idle one would give way
        client.sendall(SMUGGLED[:4])
    wait_until(lambda: server.workers()[0]["connections"] == 2, "both are held")
    third.sendall(SMUGGLED)
    third.settimeout(0.2)
    with pytest.raises(TimeoutError):
        third.recv(1)
    third.settimeout(10)
    first.close()
    assert read_answer(third)[0] == 200
    second.close()
    third.close()
