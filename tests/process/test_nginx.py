"""A real program: nginx serves the inherited listener, through reloads, without a lost request."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from tests.clients import Load
from tests.harness import body_of, is_alive, wait_until
from tests.programs import program_of

CONF = """
worker_processes 2;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ return 200 "{answer}"; }}
    }}
}}
"""
# "daemon off" by itself: nginx stays in the foreground where it inherits its sockets.
POOL = """
[pool.web]
listen = ["127.0.0.1:{port}"]
command = ["sh", "-c", 'exec nginx -p "$PWD" -e stderr -c nginx.conf -g "pid nginx-$$.pid;"']
env = {{ NGINX = "3;", PATH = "{path}" }}
stop_signal = "QUIT"
workers = 2
graceful_timeout = 10
"""


@pytest.fixture
def port():
    if shutil.which("nginx", path=path()) is None:
        assert not os.environ.get("CI"), "expected nginx, found none: .ci/run installs it"
        pytest.skip("nginx is not installed here: apt-get install nginx")
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def path() -> str:
    """Return where programs are: nginx is in sbin, which not everybody's PATH has."""
    return f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin"


def configure(folder: Path, port: int, answer: str) -> None:
    (folder / "nginx.conf").write_text(CONF.format(port=port, answer=answer))


def test_nginx_serves_the_inherited_listener_through_reloads_without_a_lost_request(start, tmp_path, port):
    configure(tmp_path, port, "one")
    server = start(POOL.format(port=port, path=path())).wait_serving()
    assert body_of(server.get()) == b"one"
    with Load(server.address(), keepalive=0) as load:
        for generation, answer in ((2, "two"), (3, "three")):
            configure(tmp_path, port, answer)
            load.wait_answered(50)
            assert server.ask("reload")["generation"] == generation
            wait_until(lambda: len(server.pids()) == 2, "the old ones have left")
            assert body_of(server.get()) == answer.encode()
        load.wait_answered(50)
    assert load.lost == {}, load.examples
    assert set(load.bodies) == {b"one", b"two", b"three"}
    assert " error " not in server.log
    programs = [program_of(server, worker) for worker in server.pids()]
    assert server.stop() == 0
    assert not any(is_alive(pid) for pid in programs)


def test_a_mistake_in_nginxs_own_configuration_gives_up_the_reload_and_is_shown(start, tmp_path, port):
    configure(tmp_path, port, "one")
    server = start(POOL.format(port=port, path=path())).wait_serving()
    (tmp_path / "nginx.conf").write_text("nonsense;\n")
    reload = server.run("reload")
    assert reload.returncode == 1
    assert 'unknown directive "nonsense"' in reload.stderr
    assert body_of(server.get()) == b"one"
