"""Pools with users of their own: a worker finds nothing of the other pools in its memory, and keys that it may not read serve."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import sys

import pytest

from tests.certificates import Authority
from tests.harness import APPS, body_of, read_to_end

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
SECRET = "correct-horse-battery-staple"
BOTH = f"""
[pool.own]
listen = ["127.0.0.1:0"]
wsgi = "searching:app"
user = "nobody"
env = {{ OWN = "own-{SECRET}" }}
preload = PRELOAD
[pool.other]
listen = ["127.0.0.1:0"]
wsgi = "searching:app"
user = "daemon"
env = {{ PASSWORD = "{SECRET}" }}
"""


def serve(start, folder, config):
    """Start a server in a folder that everybody can use, with its application there."""
    shutil.copy(APPS / "searching.py", folder)
    head = f'[master]\ncontrol = "{folder}/control.sock"\n'
    return start(head + config, folder=folder).wait_serving()


def search(server, text: str) -> tuple[int, int]:
    """Return the user of a worker of the first pool, and how often it finds a text in its memory."""
    user, count = body_of(server.get(f"/?{text[::-1]}", "own")).split()
    return int(user), int(count)


@pytest.mark.parametrize("preload", ["false", "true"])
def test_a_worker_finds_its_own_settings_in_its_memory_and_not_those_of_other_pools(
    start, open_folder, preload
):
    server = serve(start, open_folder, BOTH.replace("PRELOAD", preload))
    assert search(server, f"own-{SECRET}")[1] > 0  # it would be found
    others = BOTH.replace("PRELOAD", preload).replace(f"own-{SECRET}", "nothing")
    server.write(f'[master]\ncontrol = "{open_folder}/control.sock"\n{others}')
    server.ask("reload")
    assert search(server, SECRET) == (65534, 0)
    assert server.stop() == 0


@pytest.mark.parametrize("preload", ["false", "true"])
def test_a_key_that_only_root_can_read_serves_its_pool_and_is_in_no_other_workers_memory(
    start, open_folder, tmp_path, preload
):
    authority = Authority(tmp_path / "ca")
    pair = authority.issue("localhost")
    pair.key.chmod(0o600)
    tls = pair.toml("[pool.other.tls]")
    server = serve(start, open_folder, BOTH.replace("PRELOAD", preload) + tls)
    key = pair.key.read_text().splitlines()[1]
    assert search(server, key) == (65534, 0)
    context = ssl.create_default_context(cafile=authority.ca.certificate)
    with (
        socket.create_connection(server.address("other")) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = read_to_end(client)
    assert body_of(answer).startswith(b"1 "), server.log
    assert server.stop() == 0


def test_a_worker_that_cannot_be_executed_is_forked_and_the_log_says_what_that_costs(start, open_folder):
    program = (
        "import sys, prefork, prefork.master.anew as anew; anew._OWN = None; "
        "from prefork.cli.app import main; sys.argv[1:] = ['run', 'server.toml']; main()"
    )
    shutil.copy(APPS / "searching.py", open_folder)
    server = start(
        BOTH.replace("PRELOAD", "false"), folder=open_folder, command=[sys.executable, "-c", program]
    )
    server.wait_serving()
    server.wait_for("pool own: a worker cannot execute its program anew: prefork was replaced on the disk", 1)
    assert search(server, "anything")[0] == 65534
    assert server.stop() == 0
