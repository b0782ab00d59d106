"""Real applications, real clients, real proxies: what people run is what these tests run."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.clients import Load
from tests.harness import PATIENCE, Server, body_of, read_to_end
from tests.process.conftest import Start

SITE = """
[pool.web]
listen = ["127.0.0.1:0"]
wsgi = "{app}"
workers = 2
threads = {threads}
"""
PIECE = bytes(range(256)) * 64
SITES = ["flask_site:app", "django_site:app"]


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip a test where programs are missing; in CI, where scripts/packages installs them, it fails instead."""
    missing = [program for program in programs if shutil.which(program, path=PATH) is None]
    return pytest.mark.skipif(
        bool(missing) and "CI" not in os.environ, reason=f"not here: {', '.join(missing)}"
    )


PATH = f"{os.environ['PATH']}:/usr/sbin"  # where Debian has nginx and haproxy
ENVIRONMENT = {**os.environ, "PATH": PATH}


def run(*command: str | Path, timeout: float = PATIENCE) -> str:
    """Return what a program writes to stdout; it has to succeed."""
    done = subprocess.run(
        list(map(str, command)), env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def url_of(address: tuple[str, int], path: str) -> str:
    return f"http://{address[0]}:{address[1]}{path}"


@pytest.fixture(
    scope="module",
    params=[(site, threads) for site in SITES for threads in (1, 4)],
    ids=lambda param: f"{param[0]}-{param[1]}",
)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Give a running site, of each framework, inline and in threads."""
    app, threads = request.param
    server = Server(tmp_path_factory.mktemp("site"), SITE.format(app=app, threads=threads)).wait_ready(2)
    yield server
    server.close()


# Applications, by curl.


@needs("curl")
def test_a_form_a_csrf_token_and_a_session(site: Server, tmp_path: Path):
    url, jar = url_of(site.address(), ""), tmp_path / "jar"
    curl = ["curl", "--silent", "--fail", "--cookie", jar, "--cookie-jar", jar]
    page = run(*curl, f"{url}/")
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
    fields = ["--data", f"csrfmiddlewaretoken={token[1]}"] if token else []
    for visit in (1, 2):
        answer = run(*curl, *fields, "--data-urlencode", "name=Zoë & co", f"{url}/greet")
        assert answer.replace("&amp;", "&") == f"hello Zoë & co, visit {visit}"


@needs("curl")
def test_an_upload_arrives_whole(site: Server, tmp_path: Path):
    data = os.urandom(3_000_000)
    (tmp_path / "photo.jpg").write_bytes(data)
    url = url_of(site.address(), "/upload")
    # curl asks with Expect: 100-continue first.
    answer = run("curl", "--silent", "--fail", "--form", f"file=@{tmp_path / 'photo.jpg'}", url)
    assert answer == f"photo.jpg {sha256(data)}"


@needs("curl")
def test_a_streamed_download_arrives_whole(site: Server, tmp_path: Path):
    got = tmp_path / "got"
    run("curl", "--silent", "--fail", "--output", got, url_of(site.address(), "/streamed/200"))
    assert got.read_bytes() == PIECE * 200


@needs("curl")
def test_a_file_arrives_whole_and_named(site: Server, tmp_path: Path):
    data = os.urandom(2_000_000)
    (tmp_path / "report.bin").write_bytes(data)
    got = tmp_path / "got"
    head = run(
        "curl", "--silent", "--fail", "--dump-header", "-", "--output", got,
        url_of(site.address(), f"/file?path={tmp_path / 'report.bin'}"),
    )  # fmt: skip
    assert got.read_bytes() == data
    assert "Content-Length: 2000000" in head
    assert "report.bin" in head


@needs("curl")
def test_a_static_file_is_served_with_its_type(site: Server):
    head = run("curl", "--silent", "--fail", "--head", url_of(site.address(), "/static/site.css"))
    assert re.search(r"Content-Type: text/css", head)
    assert "background" in run("curl", "--silent", "--fail", url_of(site.address(), "/static/site.css"))


@needs("curl")
def test_one_connection_of_curls_carries_many_requests(start: Start):
    server = start(SITE.format(app=SITES[0], threads=1)).wait_ready(2)
    address = server.address()
    urls = [url_of(address, path) for path in ("/whoami", "/streamed/3", "/static/site.css") * 10]
    outputs = [word for url in urls for word in ("--output", "/dev/null", url)]
    connects = run("curl", "--silent", "--fail", "--write-out", "%{num_connects} ", *outputs)
    assert sum(map(int, connects.split())) == 1


# A browser.


@needs("chromium")
def test_a_browser_shows_djangos_page(start: Start, tmp_path: Path):
    server = start(SITE.format(app="django_site:app", threads=4)).wait_ready(2)
    dom = run(
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom",
        url_of(server.address(), "/"), timeout=60,
    )  # fmt: skip
    assert "the script ran" in dom
    assert "A page of Django's" in dom.replace("&#x27;", "'")
    assert server.stop() == 0


# Load generators.


@pytest.fixture
def plain(start: Start) -> Server:
    return start(SITE.format(app="flask_site:app", threads=1)).wait_ready(2)


@needs("wrk")
def test_wrk_sees_no_error(plain: Server):
    said = run("wrk", "-t1", "-c20", "-d1s", url_of(plain.address(), "/whoami"))
    assert "Socket errors" not in said
    assert "Non-2xx" not in said


@needs("ab")
def test_ab_sees_no_error(plain: Server):
    for options in ([], ["-k"]):
        said = run("ab", "-q", *options, "-n", "400", "-c", "10", url_of(plain.address(), "/whoami"))
        assert re.search(r"Complete requests: +400\n", said), said
        assert re.search(r"Failed requests: +0\n", said), said


@needs("h2load")
def test_h2load_sees_no_error(plain: Server):
    said = run("h2load", "--h1", "-n", "400", "-c", "10", "-m", "4", url_of(plain.address(), "/whoami"))
    assert "400 succeeded, 0 failed, 0 errored, 0 timeout" in said


# Proxies.


NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_buffer_size 64k;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream prefork {{ server {upstream}; keepalive 8; }}
    server {{
        listen {address};
        location / {{
            proxy_pass http://prefork;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto https;
            proxy_next_upstream off;
        }}
    }}
}}
"""

HAPROXY = """
# maxconn also bounds the number that an inherited descriptor may have.
global
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    retries 0
frontend front
    bind fd@{descriptor}
    default_backend prefork
backend prefork
    server only {upstream} send-proxy-v2
"""


@contextmanager
def nginx(folder: Path, upstream: str) -> Iterator[tuple[str, int]]:
    """Run nginx before an upstream; it gets its listening socket as it does at an upgrade of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        text = NGINX.format(folder=folder, upstream=upstream, address=f"{address[0]}:{address[1]}")
        (folder / "nginx.conf").write_text(text)
        command = [
            "nginx",
            "-p",
            str(folder),
            "-c",
            str(folder / "nginx.conf"),
            "-e",
            str(folder / "nginx.log"),
        ]
        with running(command, listener, {"NGINX": f"{listener.fileno()};"}):
            yield address


@contextmanager
def haproxy(folder: Path, upstream: str) -> Iterator[tuple[str, int]]:
    """Run HAProxy before an upstream, to which it speaks PROXY v2."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        text = HAPROXY.format(descriptor=listener.fileno(), upstream=upstream)
        (folder / "haproxy.cfg").write_text(text)
        with running(["haproxy", "-db", "-f", str(folder / "haproxy.cfg")], listener, {}):
            yield listener.getsockname()


@contextmanager
def running(command: list[str], listener: socket.socket, extra: dict[str, str]) -> Iterator[None]:
    program = subprocess.Popen(
        command,
        env=ENVIRONMENT | extra,
        pass_fds=[listener.fileno()],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(program.pid, signal.SIGKILL)
        program.communicate()


def ask_from(source: str, address: tuple[str, int], path: str) -> str:
    """Return the answer's body to a client with another address than the proxy's own."""
    with socket.create_connection(address, PATIENCE, source_address=(source, 0)) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n".encode())
        return body_of(read_to_end(client)).decode()


def upstream_of(server: Server) -> str:
    host, port = server.address()
    return f"{host}:{port}"


def reload_under_load(server: Server, address: tuple[str, int], reloads: int = 3) -> Load:
    with Load(address, path="/page") as load:
        load.wait_answered(50)
        for generation in range(2, 2 + reloads):
            server.signal(signal.SIGHUP)
            server.wait_serving(generation)
            load.wait_answered(30)
    return load


PLAIN = "def app(environ, start_response):\n    environ['wsgi.input'].read()\n    start_response('200 OK', [('Content-Length', '5')])\n    return [b'hello']\n"


@needs("nginx")
def test_behind_nginx_the_clients_address_and_scheme_arrive(start: Start, tmp_path: Path):
    server = start(SITE.format(app="django_site:app", threads=1)).wait_ready(2)
    with nginx(tmp_path, upstream_of(server)) as address:
        assert ask_from("127.0.0.9", address, "/whoami") == "127.0.0.9 https shop.example"


@needs("nginx")
@pytest.mark.parametrize("threads", [1, 4])
def test_behind_nginx_reloads_under_load_lose_nothing(start: Start, tmp_path: Path, threads: int):
    (tmp_path / "plainly.py").write_text(PLAIN)
    server = start(SITE.format(app="plainly:app", threads=threads)).wait_serving()
    with nginx(tmp_path, upstream_of(server)) as address:
        load = reload_under_load(server, address)
    assert not load.lost, load.examples


@needs("haproxy")
def test_behind_haproxy_the_clients_address_arrives_by_proxy_v2(start: Start, tmp_path: Path):
    config = SITE.format(app="flask_site:app", threads=1)
    config = config.replace('["127.0.0.1:0"]', '[{ address = "127.0.0.1:0", proxy_protocol = true }]')
    server = start(config).wait_ready(2)
    with haproxy(tmp_path, upstream_of(server)) as address:
        assert ask_from("127.0.0.9", address, "/whoami") == "127.0.0.9 http shop.example"


@needs("haproxy")
@pytest.mark.parametrize("threads", [1, 4])
def test_behind_haproxy_reloads_under_load_lose_nothing(start: Start, tmp_path: Path, threads: int):
    (tmp_path / "plainly.py").write_text(PLAIN)
    config = SITE.format(app="plainly:app", threads=threads)
    config = config.replace('["127.0.0.1:0"]', '[{ address = "127.0.0.1:0", proxy_protocol = true }]')
    server = start(config).wait_serving()
    with haproxy(tmp_path, upstream_of(server)) as address:
        load = reload_under_load(server, address)
    assert not load.lost, load.examples
