"""Tasks with the real program: how they run, are told to leave, are watched, and end."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.faulty import wait_replaced
from tests.harness import Server, children_of, is_alive, wait_until


def task(words: str, function: str = "run", name: str = "mail", **options: object) -> str:
    """Return the table of a pool whose task does what some words say."""
    lines = [f"{key} = {value!r}".replace("'", '"') for key, value in options.items()]
    head = [f"[pool.{name}]", f'task = "tasks:{function}"', f'env = {{ TASK = "{words}" }}', *lines]
    return "\n".join([*head, "graceful_timeout = 5", ""])


FORMS = pytest.mark.parametrize("function", ["run", "run_async"])


def told_at_once(server: Server) -> None:
    """Stop the server and see that its task is told, and leaves, at once."""
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 3
    server.wait_for(r"info  mail/0 gen=1 pid=\d+ ended: clean: stopped; lived [\d.]+ m?s, peak memory")


@FORMS
def test_a_task_is_told_of_the_drain_at_once(start, function):
    server = start(task("say 60", function)).wait_serving()
    told_at_once(server)


@FORMS
def test_a_task_hears_a_term_of_its_own(start, function):
    server = start(task("60", function)).wait_serving()
    before = server.pids()
    os.kill(min(before), signal.SIGTERM)
    server.wait_for("ended: clean: it left by itself")
    wait_replaced(server, before)


@FORMS
def test_an_exception_is_logged_and_ends_the_process_with_1(start, function):
    server = start(task("1.1 raise", function))
    server.wait_for("task failed")
    server.wait_for('tasks.py", line .*, in fail')
    server.wait_for("ended: exit code 1: RuntimeError: the task's own mistake; ")
    assert "died right after" not in server.log


@pytest.mark.parametrize(("word", "code"), [("leave", 7), ("message", 1), ("crash", 139)])
def test_the_server_ends_with_the_status_of_an_essential_task(start, word, code):
    server = start(task(f"0.1 {word}", restart="never") + "essential = true\n")
    assert server.wait_exit() == code
    server.wait_all_gone()
    server.wait_for(f"mail is essential and has ended for good: the server ends too, with {code}")


def test_an_essential_task_that_is_done_ends_the_server_well_after_what_is_in_flight(start):
    web = '[pool.web]\nlisten = ["127.0.0.1:0"]\nwsgi = "web:routes"\n'
    server = start(task("60", restart="on-failure") + "essential = true\n" + web).wait_serving()
    with server.connect("web") as client:
        client.sendall(b"GET /sleep/0.5 HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        wait_until(lambda: any(worker["current"] for worker in server.workers("web")), "it runs")
        os.kill(min(server.pids("mail")), signal.SIGTERM)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
    assert server.wait_exit() == 0
    server.wait_all_gone()


@FORMS
def test_a_beat_that_does_not_come_is_noticed(start, function):
    server = start(task("1.1 beat spin", function, stall_timeout=0.6)).wait_serving()
    before = server.pids()
    server.wait_for(
        r"task without a beat ran .*, limit 600 ms \(stall_timeout\); replacing the worker; it was at:"
    )
    server.wait_for('tasks.py", line .* in ')
    server.wait_for("ended: killed by prefork: stall_timeout of 0.6 s")
    wait_replaced(server, before)


def test_a_task_that_beats_in_time_or_never_is_left_alone(start):
    beats = " ".join(["0.1 beat"] * 8)
    server = start(task(f"{beats} 60 beat", stall_timeout=5) + task("60", name="quiet", stall_timeout=0.2))
    server.wait_serving()
    before = server.pids("mail") | server.pids("quiet")
    time.sleep(1.2)
    assert server.pids("mail") | server.pids("quiet") == before
    assert "replacing" not in server.log


def test_the_drain_has_the_only_clock_once_it_has_begun(start, tmp_path):
    (tmp_path / "own.py").write_text(
        "import time\ndef run(worker):\n    worker.beat()\n    worker.stopping.wait()\n    time.sleep(1.2)\n"
    )
    table = '[pool.mail]\ntask = "own:run"\nstall_timeout = 0.5\n'
    server = start(table + "graceful_timeout = 20\n").wait_ready(1)
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert "replacing" not in server.log
    server.wait_for("ended: clean: stopped")


def test_a_task_that_does_not_leave_is_ended_by_its_deadline(start):
    server = start(task("spin").replace("graceful_timeout = 5", "graceful_timeout = 0.4")).wait_serving()
    assert server.stop() == 0
    server.wait_for(r"draining ran .*, limit 400 ms \(graceful_timeout\)")


def test_a_copy_of_the_process_does_not_go_on_as_the_worker(start):
    server = start(task("fork 1.2 raise", restart="never"))
    server.wait_for("ended for good: RuntimeError")
    assert len(server.wait_for("task failed")) == 2  # that of the copy, and that of the worker
    wait_until(lambda: len(children_of(server.process.pid)) == 1, "the guard alone is left")


@FORMS
def test_a_task_survives_its_master_only_until_it_has_left(start, function):
    server = start(task("60", function)).wait_serving()
    (pid,) = server.pids()
    server.signal(signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the task notices")
    server.wait_all_gone()


def test_a_task_that_holds_the_interpreter_is_ended_after_its_masters_death(start):
    server = start(task("hold").replace("graceful_timeout = 5", "graceful_timeout = 0.5")).wait_serving()
    (pid,) = server.pids()
    server.signal(signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the guard ends it")
    server.wait_all_gone()


def test_what_is_no_task_is_told_by_check_and_by_the_start(start, tmp_path):
    (tmp_path / "own.py").write_text("def run():\n    pass\n")
    server = start('[pool.mail]\ntask = "own:run"\n')
    assert server.wait_exit() == 4
    message = "error: [pool.mail] expected def run(worker), found def run(): too many positional arguments"
    assert message in server.everything()
    check = server.run("check")
    assert (check.returncode, message in check.stderr) == (4, True)
