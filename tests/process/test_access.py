"""The access log of the real program: every line parses, none is lost, and nobody waits for it (promises 26 and 27)."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from prefork.log import STDOUT
from tests.access_lines import read_json, read_line
from tests.clients import Load
from tests.harness import Server, descriptors_of, read_to_end, wait_until

WEB = """
[pool.web]
listen = ["127.0.0.1:0"]
wsgi = "web:routes"
workers = {workers}
threads = {threads}
"""


def config(
    access: str = "access.log", text: str = "combined", workers: int = 1, threads: int = 1, **more: object
) -> str:
    log = f"[log]\naccess = '{access}'\naccess_format = '{text}'\n"
    extra = "".join(f"{key} = {value}\n" for key, value in more.items())
    return log + WEB.format(workers=workers, threads=threads) + extra


def entries(path: Path, text: str = "combined") -> list[dict[str, Any]]:
    lines = path.read_bytes().decode("ascii").split("\n")
    assert lines.pop() == "", "a line without an end"
    return [read_json(line) if text == "json" else read_line(line, text) for line in lines]


def say(server: Server, request: bytes) -> bytes:
    with server.connect() as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        return read_to_end(client)


FORGED = (
    b'GET /%22%0a?q="\\ HTTP/1.1\r\nHost: a\r\nReferer: " 200 1 "x" "y\r\nUser-Agent: \\" \xff\xfe{}\t%s\r\n\r\n',
    b'"\\\x00\x1b[31m\n\r\n\r\n',
    b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: -\r\nAuthorization: Basic Iiwg\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\ncut",
)


@pytest.mark.parametrize(
    "text", ["common", "combined", "json", '{worker} [{iso_time}] "{path}"|{agent}|{status}']
)
@pytest.mark.parametrize("threads", [1, 3])
def test_lines_of_all_formats_parse_whatever_is_sent(start, tmp_path, text, threads):
    server = start(config(text=text, threads=threads)).wait_serving()
    for request in FORGED:
        say(server, request)
    assert server.stop() == 0
    found = entries(tmp_path / "access.log", text)
    assert [str(entry["status"]) for entry in found] == ["200", "400", "200", "499"]
    if "agent" in found[0]:
        assert found[0]["agent"] == '\\" \xff\xfe{}\t%s'
        assert found[2]["agent"] == "-"


@pytest.mark.parametrize("by", ["signal", "command"])
def test_renaming_and_reopening_under_load_loses_no_line(start, tmp_path, by):
    server = start(config(workers=3)).wait_serving()
    path = tmp_path / "access.log"
    kept = []
    with Load(server.address(), pause=0.003) as load:
        for number in range(8):
            load.wait_answered(60)
            path.rename(tmp_path / f"access.{number}")
            kept.append(tmp_path / f"access.{number}")
            if by == "signal":
                server.signal(signal.SIGUSR1)
            else:
                server.ask("reopen")
            wait_until(path.exists, "the log is there again")
        load.wait_answered(60)
    assert server.stop() == 0
    assert load.lost == {}, load.examples
    counts = [len(entries(one)) for one in [*kept, path]]
    assert sum(counts) == load.answered
    assert counts[0]
    assert any(counts[1:]), "the log was reopened"


def test_reloads_under_load_lose_no_line_and_switch_file_and_format(start, tmp_path):
    server = start(config(workers=2, threads=2)).wait_serving()
    with Load(server.address(), pause=0.005) as load:
        load.wait_answered(100)
        server.write(config("access.json", "json", workers=2, threads=2))
        server.ask("reload")
        load.wait_answered(100)
        server.write(config("off", workers=2))
        server.ask("reload")
        switched_off = load.answered
        load.wait_answered(50)
    assert server.stop() == 0
    assert load.lost == {}, load.examples
    first, second = entries(tmp_path / "access.log"), entries(tmp_path / "access.json", "json")
    assert {entry["generation"] for entry in second} == {2}
    assert len(first) >= 100
    assert len(second) >= 100
    # Answers of the moment in which the last reload ended may belong to either side.
    assert len(first) + len(second) <= load.answered
    assert len(first) + len(second) >= switched_off - 100


def test_without_an_access_log_there_is_no_descriptor(start, tmp_path):
    with_log, without = (
        start(config(access), folder=tmp_path / access).wait_serving() for access in ("access.log", "off")
    )
    (pid,) = with_log.pids()
    assert str(tmp_path / "access.log" / "access.log") in descriptors_of(pid).values()
    (other,) = without.pids()
    assert len(descriptors_of(other)) == len(descriptors_of(pid)) - 1


def test_a_full_disk_stops_nothing_and_is_told(start):
    server = start(config("/dev/full")).wait_serving()
    for _ in range(30):
        assert b" 200 OK" in server.get()
    server.wait_for("web/0 .* the access log cannot be written: No space left on device")
    assert server.stop() == 0
    server.wait_for("error web/0 .* 30 lines of the access log are lost")


def test_a_pipe_that_nobody_reads_stops_nothing_and_what_waited_arrives(start):
    server = start(config("-", workers=2), "--set", "pool.web.max_connections=50").wait_serving()
    with Load(server.address(), pause=0.0, path="/" + "x" * 300) as load:
        server.wait_for("the access log cannot be written: its reader does not read")
        load.wait_answered(200)
    assert load.lost == {}, load.examples
    assert server.process.stdout is not None
    os.set_blocking(server.process.stdout.fileno(), False)
    found = b""

    def is_all_read() -> bool:
        nonlocal found
        assert server.process.stdout is not None
        while data := server.process.stdout.read(65536):
            found += data
        return found.count(b"\n") >= load.answered

    wait_until(is_all_read, "all that waited has come")
    os.set_blocking(server.process.stdout.fileno(), True)
    lines = found.decode("ascii").splitlines()
    assert len(lines) == load.answered
    assert all(read_line(line, "combined")["status"] == "200" for line in lines)
    server.wait_for("the access log is written again; none of its lines was lost")
    assert server.stop() == 0


def test_what_a_handler_prints_to_a_full_pipe_may_still_block_it_but_not_us(start):
    """The standard stream itself is left as it was: others who write to it expect it to block."""
    server = start(config("-")).wait_serving()
    (pid,) = server.pids()
    flags = dict(
        re.findall(r"^(\w+):\s+(\d+)", Path(f"/proc/{pid}/fdinfo/{STDOUT}").read_text(), re.MULTILINE)
    )
    assert not int(flags["flags"], 8) & os.O_NONBLOCK
    assert len([path for path in descriptors_of(pid).values() if path == descriptors_of(pid)[STDOUT]]) == 2


def test_a_fifo_may_get_its_reader_later(start, tmp_path):
    os.mkfifo(tmp_path / "access.fifo")
    server = start(config("access.fifo")).wait_serving()
    server.get("/a")
    reader = os.open(tmp_path / "access.fifo", os.O_RDONLY)
    server.get("/b")
    found = b""
    while found.count(b"\n") < 2:
        found += os.read(reader, 65536)
    assert [read_line(line, "combined")["request"] for line in found.decode("ascii").splitlines()] == [
        "GET /a HTTP/1.1",
        "GET /b HTTP/1.1",
    ]
    os.close(reader)


def test_an_answered_request_is_logged_though_the_next_one_hangs_and_is_killed(start, tmp_path):
    server = start(config(request_timeout=0.5)).wait_serving()
    with server.connect() as client:
        client.sendall(b"GET /answered HTTP/1.1\r\nHost: a\r\n\r\nGET /spin HTTP/1.1\r\nHost: a\r\n\r\n")
        server.wait_for("GET /spin ran")
        server.wait_for("web/0 gen=1 .* ended: ")
    assert [entry["request"] for entry in entries(tmp_path / "access.log")] == ["GET /answered HTTP/1.1"]


def test_a_log_that_cannot_be_opened_is_an_error_at_the_start_and_at_a_reload(start, tmp_path):
    broken = start(config("/dev/null/x"), folder=tmp_path / "broken")
    assert broken.wait_exit() == 3
    assert "cannot open the access log /dev/null/x: " in "\n".join(broken.everything())
    server = start(config(), folder=tmp_path / "good").wait_serving()
    server.write(config("/dev/null/x"))
    reload = server.run("reload")
    assert reload.returncode == 1
    assert "cannot open the access log" in reload.stderr
    server.get("/still")
    assert server.stop() == 0
    assert [entry["request"] for entry in entries(tmp_path / "good" / "access.log")] == [
        "GET /still HTTP/1.1"
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_workers_without_privileges_write_to_and_reopen_what_only_root_may(start, tmp_path):
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    head = f'[master]\ncontrol = "{tmp_path}/control.sock"\ndirectory = "/"\nuser = "nobody"\n'
    server = start(
        head
        + config(str(folder / "access.log"), workers=2).replace("web:routes", "prefork.examples.hello:app")
    )
    server.wait_serving()
    server.get("/one")
    (folder / "access.log").rename(folder / "old.log")
    server.ask("reopen")
    for _ in range(4):
        server.get("/two")
    assert server.stop() == 0
    assert (folder / "old.log").stat().st_uid == 0
    found = [*entries(folder / "old.log"), *entries(folder / "access.log")]
    assert len(found) == 5
