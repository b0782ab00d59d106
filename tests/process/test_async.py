"""``async def handle(reader, writer)`` with the real program: drains, clocks, limits and failures, as for every kind."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.certificates import Authority, Pair
from tests.clients import Load
from tests.faulty import ask, begin, pool, say, wait_replaced
from tests.harness import PATIENCE, Server, children_of, read_to_end, wait_until
from tests.process.test_balance import is_fair, one_after_the_other

CONF = Path(__file__).parents[2] / "conf"
PIECE = 50_000
PROXY = b"PROXY TCP4 192.0.2.1 192.0.2.2 99 8443\r\n"


def act(handler: str = "streams:act", **options: object) -> str:
    return pool(handler, **options)


@pytest.fixture
def server(start):
    return start(act()).wait_serving()


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def pair(authority) -> Pair:
    return authority.issue("server", "localhost")


def echoed(client: socket.socket, data: bytes) -> bool:
    """Tell whether the other end sends back what it is sent, piece by piece."""
    received = bytearray()
    while len(received) < len(data):
        client.sendall(data[len(received) : len(received) + PIECE])
        goal = min(len(received) + PIECE, len(data))
        while len(received) < goal:
            piece = client.recv(65536)
            assert piece, f"the end came after {len(received)} bytes"
            received += piece
    return received == data


# What it is given, and how it ends.


def test_a_coroutine_is_given_the_streams_and_its_worker(start, tmp_path):
    path = tmp_path / "work.sock"
    server = start(act(listen=["127.0.0.1:0", f"unix:{path}"])).wait_serving()
    who = f"work 0 1 {next(iter(server.pids()))}"
    assert ask(server, "who") == who
    with say(server, "peer") as client:
        assert read_to_end(client).decode() == repr((client.getsockname(), client.getpeername()))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"who\n")
        assert read_to_end(client).decode() == who
    assert server.workers()[0]["requests"] == 3
    assert server.stop() == 0


def test_whatever_gives_a_coroutine_is_a_handler(start):
    answers = {"greeter": "hello from an object", "partial_greet": "hello from a part"}
    server = start("".join(act(f"streams:{name}", name=name) for name in answers)).wait_serving()
    assert {name: ask(server, "", name) for name in answers} == answers


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"threads": 2}, "expected threads = 1 for async def handle, found threads = 2"),
        (
            {"handler": "streams:one_argument"},
            r"expected async def handle\(reader, writer\), found async def one_argument\(reader\)",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start_and_by_check(start, options, reason):
    server = start(act(**options))
    assert server.wait_exit() == 4
    server.wait_for(rf"^error: \[pool.work\] .*{reason}")
    checked = server.run("check")
    assert checked.returncode != 0
    assert re.search(reason, checked.stderr)


def test_failures_are_logged_and_the_worker_lives_on(server):
    before = server.pids()
    assert ask(server, "raise") == "half"
    server.wait_for("handler failed, connection from 127.0.0.1:")
    server.wait_for("RuntimeError: the handler's own mistake")
    server.wait_for('streams.py", line .*, in do_raise')
    assert ask(server, "fail_task") == ""
    server.wait_for("error work/0 .*Task exception was never retrieved")
    server.wait_for("RuntimeError: nobody waits for this task")
    assert ask(server, "close") == "closed by the handler"
    assert server.pids() == before


def test_unread_data_at_the_close_does_not_destroy_the_answer(server):
    with server.connect() as client:
        # More than the reader takes in, so that some of it stays in the kernel.
        client.sendall(b"unread 3000000\n" + bytes(400_000))
        assert len(read_to_end(client)) == 3_000_000


@pytest.mark.parametrize("verb", ["exit", "exit_task"])
def test_sys_exit_drains_the_worker_and_hurts_nobody(start, verb):
    server = start(act(workers=2)).wait_serving()
    before = server.pids()
    waiting = [begin(server, "sleep 0.4") for _ in range(8)]
    assert ask(server, f"{verb} 7") == "leaving"
    assert [read_to_end(client) for client in waiting] == [b"slept"] * 8
    server.wait_for("ended: exit code 7; ")
    wait_until(lambda: server.pool()["ready"] == 2, "the worker is replaced")
    assert len(server.pids() & before) == 1


def test_a_copy_of_the_worker_that_a_handler_forks_ends(server):
    (worker,) = server.pids()
    for _ in range(3):
        assert ask(server, "fork") == "forked"
    wait_until(
        lambda: not children_of(worker) or set(children_of(worker).values()) == {"Z"}, "no copy goes on"
    )
    assert server.pids() == {worker}
    assert ask(server, "pid") == str(worker)


# Drains.


@pytest.mark.parametrize("verb", ["stop", "thread"])
def test_a_coroutine_notices_that_its_worker_drains(server, verb):
    client = begin(server, verb)
    if verb == "stop":
        server.ask("reload")
    else:
        server.signal(signal.SIGTERM)
    assert read_to_end(client) == b"stopping"


def test_a_drain_finishes_what_is_in_flight_and_what_waits_in_the_queue(start):
    server = start(act(max_connections=2)).wait_serving()
    running = [begin(server, "sleep 0.5") for _ in range(2)]
    queued = [say(server, "sleep 0") for _ in range(3)]
    address = server.address()
    server.signal(signal.SIGTERM)
    assert [read_to_end(client) for client in running] == [b"slept"] * 2
    assert [read_to_end(client) for client in queued] == [b"began slept"] * 3
    assert server.wait_exit() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_a_task_that_a_handler_leaves_behind_is_cancelled_at_the_end(server):
    assert ask(server, "leave_task") == ""
    assert server.stop() == 0
    assert "left behind, cancelled" in server.everything()


@pytest.mark.parametrize("state", ["idle", "busy", "spinning"])
def test_a_worker_that_is_sent_term_finishes_and_is_replaced(start, state):
    server = start(act()).wait_serving()
    before = server.pids()
    line = {"idle": "pid", "busy": "sleep 0.5", "spinning": "block 0 0.7"}[state]
    client = say(server, line) if state == "idle" else begin(server, line)
    if state == "idle":
        assert read_to_end(client).decode() == str(min(before))
    os.kill(min(before), signal.SIGTERM)
    wait_replaced(server, before)
    assert read_to_end(client) in {b"", b"slept", b"done"}
    server.wait_for("ended: clean: it left by itself")


def test_other_signals_do_not_reach_the_loop_unless_the_handler_wants_so(server):
    before = server.pids()
    client = begin(server, "signal")
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGWINCH):
        os.kill(min(before), number)
    assert server.pids() == before
    os.kill(min(before), signal.SIGUSR1)
    assert read_to_end(client) == b"heard"
    # TERM is heard beside it.
    os.kill(min(before), signal.SIGTERM)
    wait_replaced(server, before)


def test_a_drain_beyond_its_limit_is_ended(start):
    server = start(act(graceful_timeout=0.5)).wait_serving()
    with begin(server, "sleep 60"):
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    server.wait_for(r"draining ran .*, limit 500 ms \(graceful_timeout\); replacing the worker")
    server.wait_for(r"ended: killed by prefork: graceful_timeout of 0.5 s; .* in flight: 127.0.0.1:")


def test_clients_who_take_nothing_and_say_nothing_delay_no_stop_beyond_its_deadline(start):
    server = start(act(graceful_timeout=1)).wait_serving()
    with ExitStack() as clients:
        for line in ("unread 5000000", "stop", ""):
            clients.enter_context(say(server, line) if line else server.connect())
        wait_until(lambda: server.workers()[0]["connections"] == 3, "they are held")
        began = time.monotonic()
        assert server.stop() == 0
    assert time.monotonic() - began < 5


def test_the_master_killed_lets_connections_finish(server):
    client = begin(server, "sleep 0.7")
    server.process.kill()
    assert read_to_end(client) == b"slept"
    server.wait_all_gone()


# Load.


def test_reloads_under_load_lose_no_request(start):
    server = start(act("streams:web", workers=3)).wait_serving()
    with Load(server.address()) as load:
        for _ in range(4):
            load.wait_answered(40)
            server.ask("reload")
        load.wait_answered(40)
    assert load.lost == {}, (load.lost, load.examples)
    assert server.stop() == 0


def test_thousands_of_connections_cost_one_worker_little_and_wake_it_never(start):
    server = start(act("streams:echo", max_connections=3000, stall_timeout=1.2)).wait_serving()
    (worker,) = server.workers()
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(2000)]
        assert all(echoed(client, b"hello") for client in clients[::50])
        wait_until(lambda: server.workers()[0]["connections"] == 2000, "all are held")
        wait_until(lambda: is_quiet(worker["pid"]), "nothing wakes the worker")
        assert echoed(clients[1000], b"x" * 300_000)
        (held,) = server.workers()
        assert (held["pid"], len(held["current"])) == (worker["pid"], 1)
        assert held["memory"] - worker["memory"] < 2000 * 20_000
    wait_until(lambda: server.workers()[0]["connections"] == 0, "none is held")


def is_quiet(pid: int) -> bool:
    """Tell whether a process does not even wake up within most of a second."""
    before = switches_of(pid)
    time.sleep(0.8)
    return switches_of(pid) == before


def switches_of(pid: int) -> list[str]:
    """Return how often the threads of a process have begun to wait (proc(5))."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += re.findall(r"ctxt_switches:\s*(\d+)", (task / "status").read_text())
    return found


def test_connections_are_spread_evenly(start):
    server = start(act("streams:hold", workers=4)).wait_serving()
    with ExitStack() as clients:
        shares = one_after_the_other(clients, server.address(), "handler", 100)
        assert is_fair(shares, 4), shares
        assert {worker["pid"]: worker["connections"] for worker in server.workers()} == shares


def test_beyond_max_connections_clients_wait_until_there_is_room(start):
    server = start(act("streams:hold", max_connections=3)).wait_serving()
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(5)]
        assert all(client.recv(100) for client in clients[:3])
        clients[3].settimeout(0.2)
        with pytest.raises(TimeoutError):
            clients[3].recv(100)
        clients[0].close()
        clients[3].settimeout(PATIENCE)
        assert clients[3].recv(100)
        assert server.workers()[0]["connections"] == 3


# Clocks.


@pytest.mark.parametrize("quiet", [0, 0.5])
def test_a_handler_that_blocks_the_loop_is_shown_and_its_worker_replaced(start, quiet):
    server = start(act(stall_timeout=0.4)).wait_serving()
    before = server.pids()
    began = time.monotonic()
    with begin(server, f"block {quiet} 60"):
        server.wait_for(
            r"event loop ran 4\d\d ms, limit 400 ms \(stall_timeout\); replacing the worker; it was at:"
        )
        assert time.monotonic() - began < quiet + 5
    server.wait_for('streams.py", line .* in block')
    wait_replaced(server, before)


def test_a_loop_that_turns_is_left_alone(start):
    server = start(act(stall_timeout=0.6)).wait_serving()
    before = server.pids()
    lines = ["block 0 0.3", "sleep 1.2", "block 0.6 0.3"]
    clients = [begin(server, line) for line in lines]
    assert [read_to_end(client) for client in clients] == [b"done", b"slept", b"done"]
    assert server.pids() == before
    assert "replacing" not in server.log


def test_without_a_stall_timeout_a_blocked_loop_takes_its_time(start):
    server = start(act(stall_timeout=0)).wait_serving()
    assert ask(server, "block 0 0.7") == "began done"
    assert "replacing" not in server.log


def test_an_overdue_connection_is_shown_and_closed_and_the_others_are_not_touched(start):
    server = start(act(request_timeout=0.5)).wait_serving()
    before = server.pids()
    with begin(server, "extend 20 0.8") as other, begin(server, "sleep 60") as late:
        assert read_to_end(late) == b""
        server.wait_for(
            r"127.0.0.1:\d+ ran 5\d\d ms, limit 500 ms \(request_timeout\); closing the connection; it was at:"
        )
        server.wait_for('streams.py", line .*, in do_sleep')
        assert read_to_end(other) == b"done"
    with begin(server, "stubborn") as client:
        server.wait_for(r"request_timeout\); closing", count=2)
        client.shutdown(socket.SHUT_WR)
        assert read_to_end(client) == b""
    assert server.pids() == before
    assert "handler failed" not in server.log


def test_a_request_may_extend_its_time_and_no_more(start):
    server = start(act(request_timeout=0.3)).wait_serving()
    with begin(server, "extend 10 0.5") as patient:
        assert ask(server, "extend 0.5 20") == "began "
        assert read_to_end(patient) == b"done"
    server.wait_for(r" ran 5\d\d ms, limit 500 ms \(request_timeout\)")


# PROXY headers and TLS.


def test_the_client_behind_a_balancer_is_the_peer(start):
    listen = '{ address = "127.0.0.1:0", proxy_protocol = true }'
    server = start(f'[pool.work]\nlisten = [{listen}]\nhandler = "streams:act"\n').wait_serving()
    with server.connect() as client:
        for piece in (PROXY[:10], PROXY[10:] + b"pe", b"er\n"):
            client.sendall(piece)
            time.sleep(0.05)
        assert read_to_end(client) == b"(('192.0.2.1', 99), ('192.0.2.2', 8443))"
    with server.connect() as client:
        client.sendall(b"PROXY UNKNOWN\r\npeer\n")
        assert read_to_end(client).decode() == repr((client.getsockname(), client.getpeername()))
    with server.connect() as client:
        client.sendall(b"peer\n" * 100)
        assert read_to_end(client) == b""
    server.wait_for("connection from 127.0.0.1:.* refused, no PROXY header: ")
    assert "fault of prefork" not in server.log


def test_tls_is_spoken_after_a_proxy_header(start, authority, pair):
    tls = f'tls = {{ certificate = "{pair[0]}", key = "{pair[1]}" }}'
    listen = f'{{ address = "127.0.0.1:0", proxy_protocol = true, {tls} }}'
    server = start(f'[pool.work]\nlisten = [{listen}]\nhandler = "streams:act"\n').wait_serving()
    client = server.connect()
    client.sendall(PROXY)
    with authority.client().wrap_socket(client, server_hostname="localhost") as secured:
        secured.sendall(b"peer\n")
        assert read_to_end(secured) == b"(('192.0.2.1', 99), ('192.0.2.2', 8443))"


def test_tls_carries_everything_and_ends_with_a_goodbye(start, authority, pair):
    config = act("streams:echo", name="echo") + pair.toml("[pool.echo.tls]")
    config += act(name="work") + pair.toml("[pool.work.tls]")
    server = start(config).wait_serving()
    with connect(server, authority.client(), "echo") as client:
        assert echoed(client, b"x" * 1_000_000)
        client.unwrap()
    with connect(server, authority.client(), "work") as client:
        client.sendall(b"unread 300000\n" + bytes(100_000))
        assert len(read_to_end(client)) == 300_000  # an end without close_notify would be an error here
    with connect(server, authority.client(), "work") as client:
        client.sendall(b"close\n")
        assert read_to_end(client) == b"closed by the handler"


def test_those_who_do_not_speak_tls_hold_up_nobody(start, authority, pair):
    server = start(act("streams:pid") + pair.toml("[pool.work.tls]")).wait_serving()
    with server.connect() as silent, server.connect() as plain:
        silent.sendall(b"\x16\x03\x01")
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        for _ in range(3):
            with connect(server, authority.client()) as client:
                assert int(read_to_end(client)) in server.pids()
        with suppress(ConnectionResetError):  # an orderly end is as good
            read_to_end(plain)
        stranger = ssl.create_default_context()
        with pytest.raises(ssl.SSLError):
            connect(server, stranger)
    wait_until(lambda: server.workers()[0]["connections"] == 0, "all are gone")
    assert "Traceback" not in server.log
    assert "error" not in server.log


def test_tls_reloads_under_load_lose_no_request(start, authority, pair):
    server = start(act("streams:web", workers=2) + pair.toml("[pool.work.tls]")).wait_serving()
    with Load(server.address(), tls=authority.client(), keepalive=2, closing=2, posting=1) as load:
        for _ in range(3):
            load.wait_answered(20)
            server.ask("reload")
        load.wait_answered(20)
    assert load.lost == {}, (load.lost, load.examples)


def connect(server: Server, context: ssl.SSLContext, name: str | None = None) -> ssl.SSLSocket:
    return context.wrap_socket(server.connect(name), server_hostname="localhost")


@pytest.mark.parametrize(
    ("kind", "application", "needs_it"), [("wsgi", "web:app", False), ("handler", "streams:hold", True)]
)
def test_only_kinds_that_may_need_it_import_an_event_loop(start, kind, application, needs_it):
    server = start(pool(application, kind=kind)).wait_serving()
    assert {"uvloop" in Path(f"/proc/{pid}/maps").read_text() for pid in server.pids()} == {needs_it}


def test_the_chat_room_of_the_examples_opens_and_closes_with_its_worker(start):
    server = start((CONF / "chat.toml").read_text().replace(":7001", ":0")).wait_serving()
    with server.connect() as ann, server.connect() as bob:
        read_until(ann, b"your name? ")
        ann.sendall(b"Ann\n")
        read_until(ann, b"* Ann is here; in the room: Ann\n")
        read_until(bob, b"your name? ")
        bob.sendall(b"Bob\nhello\n")
        read_until(ann, b"* Bob is here; in the room: Ann, Bob\nBob: hello\n")
        server.signal(signal.SIGTERM)
        assert read_to_end(ann).endswith(b"* the server restarts, come back in a moment\n")
        assert read_to_end(bob).endswith(b"* the server restarts, come back in a moment\n")
    assert server.wait_exit() == 0
    assert "Traceback" not in server.log, server.log


def read_until(client: socket.socket, end: bytes) -> None:
    """Read what comes up to an expected end."""
    data = b""
    while not data.endswith(end):
        piece = client.recv(1)
        assert piece, f"expected {end!r}, found the end after {data!r}"
        data += piece
