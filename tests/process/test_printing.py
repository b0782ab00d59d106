"""What applications print and log is seen soon, once, and whatever becomes of their worker; what is typed is not theirs."""

from __future__ import annotations

import os
import select
import signal
import time

import pytest

from tests.harness import PATIENCE, Server, body_of
from tests.programs import pool

WEB = """
[pool.web]
listen = ["127.0.0.1:0"]
wsgi = "printing:app"
graceful_timeout = 5
"""


class Printed:
    """What a server prints to its stdout, which is a pipe."""

    def __init__(self, server: Server) -> None:
        assert server.process.stdout is not None
        self._stream = server.process.stdout
        self.text = ""

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + PATIENCE
        while text not in self.text:
            assert select.select([self._stream], [], [], until - time.monotonic())[0], (text, self.text)
            data = os.read(self._stream.fileno(), 65536)
            assert data, (text, self.text)
            self.text += data.decode()

    def to_end(self) -> str:
        while data := os.read(self._stream.fileno(), 65536):
            self.text += data.decode()
        return self.text


def test_a_line_is_seen_at_once_and_survives_a_kill(start):
    server = start(WEB).wait_serving()
    printed = Printed(server)
    server.get("/a")
    printed.wait_for("line of /a\n")
    with server.connect() as client:
        client.sendall(b"GET /hang HTTP/1.1\r\nHost: x\r\n\r\n")
        printed.wait_for("line of /hang\n")
        (worker,) = server.pids()
        os.kill(worker, signal.SIGKILL)
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["graceful", "quick"])
def test_what_has_no_end_of_line_is_printed_when_the_worker_leaves(start, number):
    server = start(WEB).wait_serving()
    server.get("/part")
    server.signal(number)
    assert server.wait_exit() == 0
    assert Printed(server).to_end().endswith("without an end")


@pytest.mark.parametrize("preload", ["true", "false"])
def test_what_is_printed_before_a_failing_import_is_seen(start, preload):
    server = start(f"{WEB}preload = {preload}\n", env={"FAILS": "1"})
    assert server.wait_exit() == 4
    assert Printed(server).to_end() == "imported\nconnecting to the database"


def test_what_is_printed_while_a_template_loads_is_printed_once(start):
    server = start(f"{WEB}preload = true\nworkers = 3\n").wait_serving()
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert Printed(server).to_end() == "imported\n"


def test_no_configuration_of_logging_reaches_the_servers_own_log(start):
    server = start(WEB.replace(":app", ":configured_app")).wait_serving()
    for count in (1, 2):
        assert server.get().startswith(b"HTTP/1.1 500 ")
        server.wait_for("RuntimeError: kaboom", count)
    server.stop()
    server.wait_for("web/0 .* ended: clean")


def test_streams_without_flush_are_no_fault_of_the_worker(start):
    server = start(WEB.replace(":app", ":replaced_app")).wait_serving()
    server.get()
    assert server.stop() == 0
    server.wait_for("web/0 .* ended: clean")


@pytest.mark.parametrize("preload", ["true", "false"])
def test_the_time_zone_of_a_pool_and_its_empty_stdin(start, preload):
    server = start(f'{WEB}preload = {preload}\nenv = {{ TZ = "XYZ-9" }}\n').wait_serving()
    assert body_of(server.get()) == b"9 XYZ /dev/null"


def test_a_prompt_is_shown_before_its_line_ends(start):
    server = start(pool("ready", "write=password:", "sleep=600")).wait_serving()
    server.wait_for(r"[|] password:…$")
    assert server.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_program_of_another_user_opens_its_own_output_and_finds_its_own_home(start):
    script = "echo at $HOME of $USER, $LOGNAME >/dev/stderr; echo too >/dev/stdout; exec sleep 600"
    config = f'[pool.work]\ncommand = ["/bin/sh", "-c", "{script}"]\nuser = "daemon"\ndirectory = "/"\n'
    server = start(config, env={"HOME": "/root", "USER": "root", "LOGNAME": "root"})
    server.wait_for(r"[|] at /usr/sbin of daemon, daemon$")
    server.wait_for(r"[|] too$")
    assert server.stop() == 0
