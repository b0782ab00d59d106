"""A worker that somebody has taken over: whatever it writes or sends ends that worker, and nobody else."""

from __future__ import annotations

import os
import signal

import pytest

from tests.harness import body_of, fetch, wait_until

POOLS = """
[pool.web]
listen = ["127.0.0.1:0"]
wsgi = "hostile:app"
[pool.other]
listen = ["127.0.0.1:0"]
wsgi = "hostile:app"
"""


def ask_hostile(server, what: str) -> None:
    """Have the worker of the first pool do something; it may be dead before it answers."""
    try:
        fetch(server.address("web"), f"/{what}")
    except ConnectionError:
        return


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("rubbish", "it sent an invalid message"),
        ("utf8", "it sent an invalid message"),
        ("deep", "it sent an invalid message"),
        ("huge", "it sent an invalid message"),
        ("state", "its row of the scoreboard has a state of 77"),
        ("nan", "its row of the scoreboard has a time of nan"),
        ("inf", "its row of the scoreboard has a time of inf"),
        ("-inf", "its row of the scoreboard has a time of -inf"),
        ("-1", "its row of the scoreboard has a time of -1.0"),
        ("1e300", "its row of the scoreboard has a time of 1e[+]300"),
    ],
)
def test_invalid_input_ends_its_worker_with_a_record_and_nobody_else(start, what, reason):
    server = start(POOLS).wait_serving()
    (hostile,), (other,) = server.pids("web"), server.pids("other")
    ask_hostile(server, what)
    server.wait_for(rf"web/0 gen=1 pid={hostile} ended: killed by prefork: {reason}")
    wait_until(lambda: server.pool("web")["ready"] == 1, "it is replaced")
    assert server.pids("web") != {hostile}
    assert int(body_of(server.get("/", "other"))) == other
    assert int(body_of(server.get("/", "web"))) in server.pids("web")
    assert server.stop() == 0


def test_random_words_and_packets_cost_nobody_but_who_sends_them(start):
    server = start(POOLS).wait_serving()
    (other,) = server.pids("other")
    for _ in range(5):
        ask_hostile(server, "random")
        wait_until(lambda: server.pool("web")["ready"] == 1, "its worker serves, or its successor does")
    assert int(body_of(server.get("/", "other"))) == other
    assert server.stop() == 0


def test_a_flood_of_messages_does_not_keep_the_master_from_its_work(start):
    server = start(POOLS).wait_serving()
    ask_hostile(server, "flood")
    server.wait_for(r"web/0 .* sends more than 1000 messages a second to the master; the rest of them waits")
    (other,) = server.pids("other")
    os.kill(other, signal.SIGKILL)
    wait_until(lambda: server.pids("other") - {other}, "a worker of the other pool is replaced")
    assert int(body_of(server.get("/", "other"))) in server.pids("other")
    assert len([line for line in server.lines if "sends more than" in line]) == 1
    assert server.stop() == 0


IMPOSTOR = """
import os
import prefork.worker.template as template
from prefork.worker import channel
kept = []
def lie(post, order, loaded, orders):
    workers = template._worker_post(post, order)
    channel.send(workers.channel, channel.Born())
    kept.append(workers)
template._fork = lie
def app(environ, start_response): ...
"""


def test_a_template_that_answers_for_another_process_is_ended(start, tmp_path):
    (tmp_path / "impostor.py").write_text(IMPOSTOR)
    server = start(
        '[pool.web]\nlisten = ["127.0.0.1:0"]\nwsgi = "impostor:app"\npreload = true\nboot_timeout = 5\n'
    )
    server.wait_for("its template answered with a process that is not a new child of the master")
    assert server.wait_exit() == 4
    server.wait_all_gone()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_tcp_listener_that_a_worker_shuts_listens_again(start, workers):
    server = start(POOLS.replace("[pool.other]", f"workers = {workers}\n[pool.other]")).wait_serving()
    address, before = server.address("web"), server.pids("web")
    for time in (1, 2):
        ask_hostile(server, "shut")
        server.wait_for("was shut down by a worker .* it listens again", time)
        for _ in range(5):
            assert int(body_of(fetch(address))) in before
    assert server.stop() == 0


def test_a_unix_socket_that_a_worker_shuts_is_bound_anew_by_a_reload(start, tmp_path):
    path = tmp_path / "web.sock"
    server = start(POOLS.replace("127.0.0.1:0", f"unix:{path}", 1)).wait_serving()
    fetch(str(path), "/shut")
    server.wait_for("web.sock was shut down by a worker .* a reload binds it anew")
    with pytest.raises(ConnectionRefusedError):
        fetch(str(path))
    server.ask("reload")
    assert int(body_of(fetch(str(path)))) in server.pids("web")
    assert server.stop() == 0
    assert not path.exists()


WRITES_EVERYWHERE = """
import os
for descriptor in map(int, os.listdir("/proc/self/fd")):
    try:
        os.write(descriptor, b"\\0\\0\\0\\x04\\xff\\xfe\\xff\\xfe" if descriptor > 2 else b"")
    except OSError:
        continue
def app(environ, start_response): ...
"""


def test_an_application_that_writes_to_every_descriptor_is_no_traceback_of_check(start, tmp_path):
    (tmp_path / "writes.py").write_text(WRITES_EVERYWHERE)
    server = start(POOLS).wait_serving()
    server.write('[pool.web]\nlisten = ["127.0.0.1:0"]\nwsgi = "writes:app"\n')
    found = server.run("check")
    assert found.returncode != 0
    assert "its process sent no verdict but something else while it was loaded" in found.stderr
    assert "Traceback" not in found.stderr
