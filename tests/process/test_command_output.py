"""What external programs print: every line reaches the log, whole, in order, and a flood hinders nobody."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
import time

from prefork.log import Destination, Identity, TextFormatter
from tests.harness import Server, wait_until
from tests.programs import pid_in, pool


def printed(server: Server) -> list[str]:
    """Return what programs have printed, as the log shows it."""
    found = (re.search(r" work/0 gen=\d+ pid=\d+ [|] (.*)", line) for line in server.lines)
    return [line[1] for line in found if line]


def test_each_line_is_a_record_of_its_worker_in_text_and_in_json(start):
    verbs = ["print=hello\tworld", "write=two\nlines\r\n\n", "write=\x1b[1mbold\n", "write=no end", "exit=0"]
    server = start('[log]\nformat = "json"\n' + pool(*verbs))
    assert server.wait_exit() == 4
    records = [json.loads(line) for line in server.everything() if line.startswith("{")]
    lines = [record["message"] for record in records if record.get("output")]
    assert lines == ["hello\tworld", "two", "lines", "", "\x1b[1mbold", "no end"]
    assert {record["name"] for record in records if record.get("output")} == {"work/0"}


def test_a_flood_arrives_whole_while_the_master_answers_and_nobody_needs_more_memory(start):
    lines = 60_000
    server = start(pool("ready", f"flood={lines}", "print=done", "sleep=600")).wait_serving()
    master, (worker,) = server.process.pid, server.pids()
    sizes = []
    while "done" not in printed(server)[-1:]:
        began = time.monotonic()
        server.status()
        assert time.monotonic() - began < 1
        sizes += [resident(pid) for pid in (master, worker)]
        assert len(sizes) < 2000
    assert printed(server) == [*(f"line {number}" for number in range(lines)), "done"]
    assert max(sizes) < 60 * 2**20


def resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_flooding_program_can_be_stopped(start):
    server = start(pool("polite=TERM", "ready", "flood=100000000")).wait_serving()
    wait_until(lambda: len(printed(server)) > 100, "it floods")
    server.signal(signal.SIGINT)
    assert server.wait_exit() == 0
    server.wait_all_gone()


def test_a_line_without_an_end_is_cut_into_marked_pieces_that_make_it_up(start):
    size = 100_000
    server = start(pool("ready", f"long={size}", "print=", "print=next", "sleep=600")).wait_serving()
    wait_until(lambda: "next" in printed(server), "the next line")
    *pieces, last = printed(server)
    assert last == "next"
    assert len(pieces) > 2
    assert all(piece.endswith("…") for piece in pieces[:-1])
    assert all(piece.startswith("…") for piece in pieces[1:])
    assert "".join(pieces).replace("…", "") == "x" * size


def test_long_lines_of_several_programs_do_not_mix_in_a_pipe(start):
    size, workers = 300_000, 3
    server = start(
        pool("ready", f"long={size}", "print=", "print=done", "sleep=600", workers=workers)
    ).wait_serving()
    server.wait_for("[|] done$", workers)
    head = re.compile(r"20\S+ info  (master pid=\d+ |work/\d gen=1 pid=\d+ ([|] …?(x*…?|done)$|ready|runs))")
    assert [line[:200] for line in server.lines if not head.match(line)] == []
    for slot in range(workers):
        mine = [
            line.partition(" | ")[2] for line in server.lines if f" work/{slot} " in line and " | " in line
        ]
        assert sum(line.count("x") for line in mine) == size


def test_a_reader_that_is_slow_gets_every_line_and_one_that_is_stuck_halts_nobody(tmp_path):
    read, write = os.pipe()
    destination = Destination(write)
    destination.setFormatter(TextFormatter(Identity("work/0", 1)))
    destination.patience = 0.5

    def read_slowly() -> None:
        time.sleep(0.3)
        received.append(os.read(read, 2**20))

    received: list[bytes] = []
    for number in range(20):  # more than a pipe holds
        thread = threading.Thread(target=read_slowly, daemon=True) if number % 10 == 0 else None
        if thread:
            thread.start()
        destination.emit(logging.makeLogRecord({"msg": f"{number} {'x' * 3500}", "levelname": "INFO"}))
    assert destination.lost == 0
    began = time.monotonic()
    for _ in range(40):  # now nobody reads any more
        destination.emit(logging.makeLogRecord({"msg": "x" * 3500, "levelname": "INFO"}))
    assert destination.lost > 0
    assert time.monotonic() - began < 2
    for descriptor in (read, write):
        os.close(descriptor)


def test_what_was_printed_last_is_logged_although_grandchildren_keep_the_pipe(start, tmp_path):
    left = f"away=polite=TERM,pid={tmp_path}/away,sleep=600,print=grandchild"
    server = start(pool(left, "polite=TERM", "ready", "sleep=600", "write=last words")).wait_serving()
    pid_in(tmp_path / "away")
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 4
    assert {"last words", "grandchild"} <= set(printed(server)) | {
        part for line in printed(server) for part in line.split("told by TERM")
    }


def test_a_program_that_closes_its_output_goes_on(start, tmp_path):
    server = start(pool("print=hello", "close", "ready", f"pid={tmp_path}/pid", "sleep=600")).wait_serving()
    worker = min(server.pids())
    pid_in(tmp_path / "pid")
    before = cpu_ticks(worker)
    time.sleep(0.3)
    assert cpu_ticks(worker) - before < 5  # the end of file does not wake it again and again
    assert printed(server) == ["hello"]
    assert server.stop() == 0


def cpu_ticks(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_output_goes_to_the_new_file_after_a_rename_and_usr1(start, tmp_path):
    head = '[log]\nfile = "server.log"\n'
    server = start(head + pool("print=one", "ready", f"await={tmp_path}/go", "print=two", "sleep=600"))
    log = tmp_path / "server.log"
    wait_until(lambda: log.exists() and "generation 1 serves" in log.read_text(), "it serves")
    log.rename(tmp_path / "old.log")
    server.signal(signal.SIGUSR1)
    wait_until(lambda: log.exists() and "log reopened" in log.read_text(), "the log is reopened")
    server.status()
    (tmp_path / "go").touch()
    wait_until(lambda: "| two" in log.read_text(), "the second line is in the new file")
    assert "| one" in (tmp_path / "old.log").read_text()
    assert "| two" not in (tmp_path / "old.log").read_text()
