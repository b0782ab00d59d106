"""TLS with the real program and real clients: openssl, curl, Python."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import RSA, Authority, Pair
from tests.clients import Load, read_answer
from tests.harness import APPS, PREFORK, Server, body_of, read_to_end

WEB = """
[pool.web]
listen = ["127.0.0.1:0"]
wsgi = "environs:app"
workers = {workers}
"""
ECHO = """
[pool.echo]
listen = ["127.0.0.1:0"]
handler = "sockets:{handler}"
threads = 2
"""
GET = b"GET /SSL_PROTOCOL HTTP/1.1\r\nHost: localhost\r\n\r\n"
IDLE = 1000


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def pair(authority) -> Pair:
    return authority.issue("server")


@pytest.fixture
def own(authority, pair, tmp_path) -> Pair:
    """Return a copy of the pair that the test may replace."""
    mine = Pair(tmp_path / "own.pem", tmp_path / "own.key")
    mine.put(pair)
    return mine


def web(pair: Pair, workers: int = 1, **more: object) -> str:
    return WEB.format(workers=workers) + pair.toml(**more)


def secure(
    server: Server, client: ssl.SSLContext, host: str = "localhost", pool: str | None = None
) -> ssl.SSLSocket:
    return client.wrap_socket(server.connect(pool), server_hostname=host, suppress_ragged_eofs=False)


def ask(client: socket.socket, path: str = "/SSL_PROTOCOL") -> str:
    client.sendall(GET.replace(b"/SSL_PROTOCOL", path.encode()))
    return read_answer(client)[1].decode("latin-1")


def shown_to(server: Server, client: ssl.SSLContext, host: str = "localhost") -> str:
    """Return the name of the certificate that a client is shown."""
    with secure(server, client, host) as connection:
        found = connection.getpeercert()
        assert found
        return found["subject"][-1][-1][1]


@contextlib.contextmanager
def openssl(server: Server, *options: object) -> Iterator[subprocess.Popen[str]]:
    """Run ``openssl s_client``; its output is read by the test."""
    host, port = server.address()
    command = ["openssl", "s_client", "-connect", f"{host}:{port}", *map(str, options)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, text=True, **pipes) as process:
        yield process
        process.kill()


def read_until(process: subprocess.Popen[str], wanted: str) -> str:
    """Return the output up to the line that has what is wanted in it, or to the end."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if wanted in line:
            break
    return "".join(seen)


def say(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text)
    process.stdin.flush()


# Clients.


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")


@needs_curl
def test_curl_keeps_its_connection_and_speaks_http_1_1(start, authority, pair):
    server = start(web(pair)).wait_serving()
    url = f"https://localhost:{server.address()[1]}/"
    command = [
        "curl",
        "-sS",
        "--http2",
        "--cacert",
        authority.ca.certificate,
        "-w",
        " %{http_version} %{num_connects}\n",
    ]
    done = subprocess.run(
        [*command, f"{url}HTTPS", f"{url}wsgi.url_scheme"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["on 1.1 1", "https 1.1 0"]


@needs_curl
def test_large_bodies_go_both_ways(start, authority, pair, tmp_path):
    server = start(web(pair)).wait_serving()
    sent, back = tmp_path / "sent", tmp_path / "back"
    sent.write_bytes(os.urandom(3_000_000))
    url = f"https://localhost:{server.address()[1]}/echo"
    command = [
        "curl",
        "-sS",
        "--cacert",
        authority.ca.certificate,
        "--data-binary",
        f"@{sent}",
        "-o",
        back,
        url,
    ]
    subprocess.run(command, check=True)
    assert back.read_bytes() == sent.read_bytes()


def test_pythons_own_client_is_served_on_one_connection(start, authority, pair):
    server = start(web(pair)).wait_serving()
    client = http.client.HTTPSConnection("localhost", server.address()[1], context=authority.client())
    for _ in range(3):
        client.request("GET", "/SSL_PROTOCOL")
        assert client.getresponse().read() == b"TLSv1.3"
    client.close()


@pytest.mark.parametrize(("option", "protocol"), [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")])
def test_both_versions_are_spoken(start, pair, option, protocol):
    server = start(web(pair)).wait_serving()
    with openssl(server, option, "-alpn", "h2,http/1.1", "-ign_eof") as process:
        say(process, GET.decode().replace("Host", "Connection: close\r\nHost"))
        seen = read_until(process, "read:errno")
    assert "ALPN protocol: http/1.1" in seen
    assert "HTTP/1.1 200 OK" in seen
    assert protocol in seen.partition("HTTP/1.1 200 OK")[2]


@pytest.mark.parametrize("option", ["-tls1", "-tls1_1"])
def test_older_versions_are_refused_with_an_alert(start, pair, option):
    server = start(web(pair)).wait_serving()
    with openssl(server, option, "-cipher", "DEFAULT@SECLEVEL=0") as process:
        assert "alert protocol version" in read_until(process, "alert")


def test_renegotiation_is_refused(start, pair):
    server = start(web(pair)).wait_serving()
    with openssl(server, "-tls1_2") as process:
        read_until(process, "Extended master secret")
        say(process, "R\n")
        assert "no renegotiation" in read_until(process, "no renegotiation")


def test_keys_are_updated_when_a_client_wants_it(start, pair):
    server = start(web(pair)).wait_serving()
    with openssl(server, "-tls1_3") as process:
        read_until(process, "Verify return code")
        for command in "KkK":
            say(process, f"{command}\n")
            read_until(process, "KEYUPDATE")
        say(process, GET.decode())
        assert "HTTP/1.1 200 OK" in read_until(process, "HTTP/1.1 200 OK")


def test_plain_http_is_answered_with_400(start, pair):
    server = start(web(pair)).wait_serving()
    assert server.get().startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"HTTPS" in body_of(server.get())


# Names and certificates of clients.


def test_the_certificate_is_chosen_by_the_name_that_a_client_asks_for(start, authority, pair):
    one, two = (
        authority.issue("one", "one.test", "localhost"),
        authority.issue("two", "*.two.test", "Two.test", "one.test"),
    )
    table = f'[pool.web.tls]\ncertificate = ["{one[0]}", "{two[0]}"]\nkey = ["{one[1]}", "{two[1]}"]\n'
    server = start(WEB.format(workers=1) + table).wait_serving()
    client = authority.client()
    asked = {
        host: shown_to(server, client, host) for host in ("one.test", "two.test", "TWO.test", "a.two.test")
    }
    assert asked == {"one.test": "one", "two.test": "two", "TWO.test": "two", "a.two.test": "two"}
    client.check_hostname = False
    assert {shown_to(server, client, host) for host in ("else.test", "a.b.two.test", "127.0.0.1")} == {"one"}
    assert client.wrap_socket(server.connect()).getpeercert()["subject"][-1][-1][1] == "one"


def test_an_odd_name_gets_an_alert_and_leaves_no_traceback(start, authority):
    one, two = authority.issue("one", "localhost"), authority.issue("two", "two.test")
    table = f'[pool.web.tls]\ncertificate = ["{one[0]}", "{two[0]}"]\nkey = ["{one[1]}", "{two[1]}"]\n'
    server = start('[log]\nlevel = "debug"\n' + WEB.format(workers=1) + table).wait_serving()
    outgoing = ssl.MemoryBIO()
    client = authority.client().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="name.test")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    with server.connect() as connection:
        connection.sendall(outgoing.read().replace(b"name.test", b"n\xe4me.test"))
        assert connection.recv(6) == b"\x15\x03\x03\0\2\2"  # a fatal alert
    server.wait_for("no TLS handshake: a client asked for the name")
    assert "Traceback" not in server.log
    with secure(server, authority.client()) as connection:
        assert ask(connection) == "TLSv1.3"


def test_a_chain_reaches_clients_that_trust_its_root_only(start, authority, tmp_path):
    below = Authority(tmp_path / "below")
    below.ca = authority.issue("below", extensions="basicConstraints = critical, CA:TRUE")
    leaf = below.issue("leaf")
    leaf.certificate.write_bytes(leaf.certificate.read_bytes() + below.ca.certificate.read_bytes())
    assert shown_to(start(web(leaf)).wait_serving(), authority.client()) == "leaf"


def test_two_kinds_of_key_serve_the_same_name(start, authority):
    elliptic, rsa = authority.issue("elliptic", "localhost"), authority.issue("rsa", "localhost", key=RSA)
    table = (
        f'[pool.web.tls]\ncertificate = ["{rsa[0]}", "{elliptic[0]}"]\nkey = ["{rsa[1]}", "{elliptic[1]}"]\n'
    )
    server = start(WEB.format(workers=1) + table).wait_serving()
    shown = set()
    for cipher in ("ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384"):
        client = authority.client()
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        client.set_ciphers(cipher)
        shown.add(shown_to(server, client))
    assert shown == {"rsa", "elliptic"}


def test_a_clients_certificate_reaches_the_application(start, authority, pair):
    server = start(web(pair, client_ca=authority.ca.certificate)).wait_serving()
    mine = authority.issue("client", subject="/C=DE/O=A, B;C/CN=Zoë")
    with secure(server, authority.client(mine)) as client:
        assert ask(client, "/SSL_CLIENT_VERIFY") == "SUCCESS"
        names = [ask(client, f"/SSL_CLIENT_{which}_DN") for which in "SI"]
    command = [
        "openssl",
        "x509",
        "-in",
        mine.certificate,
        "-noout",
        "-subject",
        "-issuer",
        "-nameopt",
        "RFC2253",
    ]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [line.partition("=")[2] for line in told.splitlines()] == names


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_without_the_right_certificate_is_not_served(start, authority, pair, tmp_path, version):
    server = start(web(pair, client_ca=authority.ca.certificate)).wait_serving()
    stranger = Authority(tmp_path / "other", "other").issue("stranger")
    expired = authority.issue("expired-client", days=-1)
    for mine in (None, stranger, expired):
        client = authority.client(mine)
        client.maximum_version = version
        # In TLS 1.3 a client hears of it only when it reads.
        with pytest.raises(ssl.SSLError, match="alert"), secure(server, client) as connection:
            ask(connection)


def test_sessions_are_resumed_by_every_worker(start, authority, pair):
    server = start(web(pair, workers=3)).wait_serving()
    client = authority.client()
    client.maximum_version = ssl.TLSVersion.TLSv1_2  # its tickets come with the handshake
    with secure(server, client) as first:
        session = first.session
    with contextlib.ExitStack() as stack:  # held all at once, they are spread over the workers
        resumed = [
            stack.enter_context(
                client.wrap_socket(server.connect(), server_hostname="localhost", session=session)
            )
            for _ in range(20)
        ]
        assert all(connection.session_reused for connection in resumed)
        assert len({ask(connection, "/pid") for connection in resumed}) > 1


# Socket handlers.


def test_a_socket_handler_gets_a_connection_after_its_handshake(start, authority, pair):
    server = start(ECHO.format(handler="echo") + pair.toml("[pool.echo.tls]")).wait_serving()
    with secure(server, authority.client()) as client:
        for size in (5, 300_000):
            client.sendall(b"x" * size)
            left = size
            while left:
                left -= len(client.recv(65536))
        client.unwrap()


def test_the_end_of_a_socket_handler_is_announced(start, authority, pair):
    server = start(ECHO.format(handler="pid") + pair.toml("[pool.echo.tls]")).wait_serving()
    with secure(server, authority.client()) as client:
        assert int(read_to_end(client)) in server.pids()


def test_unread_data_at_the_close_does_not_destroy_the_answer(start, authority, pair):
    config = ECHO.replace("sockets:{handler}", "faults:act") + pair.toml("[pool.echo.tls]")
    server = start(config).wait_serving()
    with secure(server, authority.client()) as client:
        client.sendall(b"unread 300000\n" + bytes(100_000))
        assert len(read_to_end(client)) == 300_000


def test_a_proxy_header_comes_before_the_handshake_of_a_socket_handler(start, authority, pair):
    listen = f'{{ address = "127.0.0.1:0", proxy_protocol = true, tls = {{ certificate = "{pair[0]}", key = "{pair[1]}" }} }}'
    server = start(f'[pool.echo]\nlisten = [{listen}]\nhandler = "sockets:pid"\n').wait_serving()
    client = server.connect()
    client.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 99 8443\r\n")
    with authority.client().wrap_socket(client, server_hostname="localhost") as secured:
        assert int(read_to_end(secured)) in server.pids()


def test_a_handshake_that_never_comes_holds_no_other_thread(start, authority, pair):
    server = start(ECHO.format(handler="pid") + pair.toml("[pool.echo.tls]")).wait_serving()
    with server.connect() as silent:
        silent.sendall(b"\x16\x03\x01")
        for _ in range(5):
            began = time.monotonic()
            with secure(server, authority.client()) as client:
                assert int(read_to_end(client)) in server.pids()
            assert time.monotonic() - began < 5
    assert "Traceback" not in server.log


def test_one_pool_may_listen_with_and_without_tls(start, authority, pair):
    listen = f'["127.0.0.1:0", {{ address = "127.0.0.1:0", tls = {{ certificate = "{pair[0]}", key = "{pair[1]}" }} }}]'
    server = start(f'[pool.web]\nlisten = {listen}\nwsgi = "environs:app"\n').wait_serving()
    assert body_of(server.get("/wsgi.url_scheme")) == b"http"
    with authority.client().wrap_socket(
        socket.create_connection(server.address(number=1)), server_hostname="localhost"
    ) as client:
        assert ask(client, "/wsgi.url_scheme") == "https"


# Reloads.


def test_a_reload_takes_the_new_pair_and_loses_no_request(start, authority, pair, own):
    server = start(web(own, workers=2)).wait_serving()
    client = authority.client()
    with Load(server.address(), tls=client) as load:
        for name in ("second", "third"):
            load.wait_answered(30)
            own.put(authority.issue(name, "localhost"))
            assert server.run("reload").returncode == 0
            load.wait_answered(10)
            assert shown_to(server, client) == name
    assert load.lost == {}, load.examples
    assert server.stop() == 0


def test_a_bad_pair_keeps_the_old_one_and_says_so(start, authority, pair, own):
    server = start(web(own, workers=2)).wait_serving()
    client = authority.client()
    before = server.pids()
    other = authority.issue("other", "localhost")
    with Load(server.address(), tls=client) as load:
        load.wait_answered(20)
        own.key.write_bytes(other.key.read_bytes())
        reload = server.run("reload")
        assert reload.returncode == 1
        assert (
            f"expected the key of the certificate in {own.certificate}, found another one's in {own.key}"
            in reload.stderr
        )
        own.put(authority.issue("expired", "localhost", days=-1))
        server.signal(signal.SIGHUP)
        server.wait_for(r"expected one that is valid now, found .*own.pem, which expired on")
        server.wait_for("the reload is refused")
        own.certificate.unlink()
        assert "cannot read" in server.run("reload").stderr
        load.wait_answered(20)
        os.kill(
            min(before), signal.SIGKILL
        )  # its successor has the pair that is served, not the one on the disk
        server.wait_for("ready in", 3)
        load.wait_answered(20)
    assert {shown_to(server, client) for _ in range(6)} == {"server"}
    assert set(load.lost) <= {"reset", "empty", "short", "tls"}, load.examples
    assert sum(load.lost.values()) <= 8, load.lost


def test_a_certificate_that_has_expired_meanwhile_keeps_no_new_version_away(start, authority, own):
    own.put(authority.issue("late", "localhost", days=-1))
    server = start(web(own)).wait_serving()
    server.wait_for("warning.* which expired on .*; it is served all the same")
    assert server.run("reload").returncode == 0
    assert "error" not in server.log


def test_a_stop_answers_everybody(start, authority, pair):
    server = start(web(pair, workers=2)).wait_serving()
    with Load(server.address(), tls=authority.client()) as load:
        load.wait_answered(50)
        assert server.stop() == 0
    assert set(load.lost) <= {"refused"}, load.examples


# Mistakes.


def encrypt(pair: Pair) -> None:
    command = [
        "openssl",
        "pkey",
        "-in",
        pair.key,
        "-aes256",
        "-passout",
        "pass:secret",
        "-out",
        f"{pair.key}.new",
    ]
    subprocess.run(command, check=True, capture_output=True)
    os.replace(f"{pair.key}.new", pair.key)


BROKEN = {
    "mismatch": (
        lambda own, other: own.key.write_bytes(other.key.read_bytes()),
        "key: expected the key of the certificate in",
    ),
    "no certificate": (
        lambda own, _: own.certificate.unlink(),
        "certificate: cannot read .*own.pem: no such file",
    ),
    "no key": (lambda own, _: own.key.unlink(), "key: cannot read .*own.key: no such file"),
    "no PEM": (
        lambda own, _: own.certificate.write_bytes(b"x"),
        "certificate: expected a certificate in PEM, found none in .*own.pem",
    ),
    "swapped": (
        lambda own, _: own.key.write_bytes(own.certificate.read_bytes()),
        "key: expected a private key in PEM, found none in",
    ),
    "encrypted": (
        lambda own, _: encrypt(own),
        "key: expected a key without a passphrase, found an encrypted one in",
    ),
    "damaged": (
        lambda own, _: own.certificate.write_text(own.certificate.read_text().replace("M", "N", 30)),
        "certificate: .*own.pem with .*own.key cannot be used",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_bad_pair_is_told_by_check_and_refused_at_the_start(start, authority, own, fault):
    breaks, message = BROKEN[fault]
    breaks(own, authority.issue("another"))
    server = start(web(own))
    assert server.wait_exit() == 2
    server.wait_for(rf"^error: \[pool.web.tls\] {message}")
    check = server.run("check")
    assert check.returncode == 2
    assert check.stderr.splitlines()[0] == next(line for line in server.lines if line.startswith("error: "))


def test_check_tells_of_an_expired_certificate_and_still_loads_the_applications(
    start, authority, own, tmp_path
):
    own.put(authority.issue("late", "localhost", days=-1))
    file = tmp_path / "check.toml"
    file.write_text(web(own).replace("environs:app", "nowhere:app"))
    check = subprocess.run([*PREFORK, "check", file], capture_output=True, text=True, check=False)
    assert check.returncode == 2
    assert (
        f"certificate: expected one that is valid now, found {own.certificate}, which expired on"
        in check.stderr
    )
    assert "No module named 'nowhere'" in check.stderr


def test_check_tells_of_an_issuer_that_has_expired(authority, own, tmp_path):
    file = tmp_path / "check.toml"
    file.write_text(web(own).replace("workers = 1", f'workers = 1\ndirectory = "{APPS}"'))
    for days, code in ((30, 0), (-1, 2)):
        middle = authority.below(f"middle{days}", days)
        own.put(middle.issue("leaf", "localhost"))
        with own.certificate.open("ab") as chain:
            chain.write(middle.ca.certificate.read_bytes())
        check = subprocess.run([*PREFORK, "check", file], capture_output=True, text=True, check=False)
        assert check.returncode == code, check.stderr
    assert (
        f"expected issuers that are valid now, found middle-1 in {own.certificate}, which expired"
        in check.stderr
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_workers_that_have_dropped_their_privileges_serve_a_key_that_only_root_reads(
    start, authority, own, tmp_path
):
    own.key.chmod(0o600)
    Path(tmp_path).chmod(0o755)
    config = f'[master]\ncontrol = "{tmp_path}/control.sock"\nuser = "nobody"\ndirectory = "/"\n' + web(own)
    server = start(config).wait_serving()
    with secure(server, authority.client()) as client:
        assert ask(client, "/uid") != "0"
    server.ask("reload")
    with secure(server, authority.client()) as client:
        assert ask(client, "/uid") != "0"


# Many.


def test_a_thousand_idle_connections_are_held_and_served(start, authority, pair, make_room):
    make_room(IDLE)
    server = start(
        web(pair).replace("workers = 1", f"max_connections = {2 * IDLE}\nread_timeout = 60")
    ).wait_serving()
    client = authority.client()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(secure(server, client)) for _ in range(IDLE)]
        assert {ask(one) for one in clients} == {"TLSv1.3"}
        worker = server.workers()[0]
        assert worker["connections"] == IDLE
        assert worker["memory"] < 100 * 2**20
        assert {ask(one) for one in clients[::10]} == {"TLSv1.3"}
        server.signal(signal.SIGTERM)
        assert {one.recv(1) for one in clients} == {b""}  # each with a goodbye
    assert server.wait_exit() == 0
