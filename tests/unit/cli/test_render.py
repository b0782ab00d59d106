"""The tables of ``prefork status`` at all widths, and whatever clients may have put into them."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from prefork.cli.render import stacks_text, status_text
from prefork.control.messages import ServerStatus

COLORS = re.compile(r"\x1b\[[0-9;]*m")


def worker(slot: int, **changes: Any) -> dict[str, Any]:
    return {
        "slot": slot,
        "generation": 3,
        "pid": 4711 + slot,
        "state": "ready",
        "age": 7500.0,
        "requests": 123456,
        "connections": 17,
        "memory": 45 * 1024 * 1024,
        "current": [],
    } | changes


def pool(name: str, workers: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "wsgi",
        "application": f"shop.{name}:app",
        "wanted": len(workers),
        "ready": len(workers),
        "degraded": None,
        "restarts": 0,
        "listeners": [{"address": "127.0.0.1:8000", "queue": 0, "backlog": 2048}],
        "last_death": None,
        "workers": workers,
    } | changes


def server(*pools: dict[str, Any], **changes: Any) -> ServerStatus:
    return msgspec.convert(
        {
            "name": "shop",
            "pid": 4700,
            "version": "0.1.0",
            "state": "running",
            "generation": 3,
            "uptime": 7512.0,
            "pools": list(pools),
        }
        | changes,
        ServerStatus,
    )


LONG_PATH = "GET /reports/2026/november/all-customers.csv?format=long&with=everything&" + "x" * 100
BUSY = server(
    pool(
        "web",
        [
            worker(0),
            worker(1, current=[{"what": "GET /x", "age": 0.2}, {"what": LONG_PATH, "age": 31.2}]),
            worker(2, state="starting", pid=4194304, requests=0, age=0.3),
        ],
        wanted=4,
        ready=2,
        restarts=2,
        degraded="2 workers of generation 3 failed to boot: ImportError: No module named 'shopping'",
        last_death={"worker": "web/2", "pid": 4690, "cause": "killed by SIGSEGV", "ago": 12.0},
        listeners=[
            {"address": "127.0.0.1:8000", "queue": 7, "backlog": 2048},
            {"address": "[::1]:8000", "queue": None, "backlog": 128},
            {"address": "unix:/srv/www/shop/releases/current/run/web.sock", "queue": 0, "backlog": 2048},
        ],
    ),
    pool("mail", [], listeners=[], kind="handler", application="shop.mail:handle", wanted=1, ready=0),
)


def lines(status: ServerStatus, width: int | None) -> list[str]:
    return status_text(status, width, color=False).splitlines()


def line_of(status: ServerStatus, start: str, width: int | None = None) -> str:
    return next(line for line in lines(status, width) if line.startswith(start))


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(map(len, lines(BUSY, width))) <= width


@pytest.mark.parametrize("width", [80, 200, None])
def test_each_worker_has_one_line(width: int | None) -> None:
    found = [line.split()[0] for line in lines(BUSY, width) if re.match(r"(web|mail)/", line)]
    assert found == ["web/0", "web/1", "web/2"]


@pytest.mark.parametrize("width", [80, 200, None])
def test_no_figure_is_cut_off_at_eighty_columns_and_more(width: int | None) -> None:
    assert line_of(BUSY, "web/0", width).split() == (
        ["web/0", "ready", "3", "4711", "2", "h", "5", "m", "123456", "17", "45.0", "MiB", "-"]
    )
    assert "4194304" in line_of(BUSY, "web/2", width)
    assert "2 of 4" in line_of(BUSY, "web ", width)


@pytest.mark.parametrize("kind", ["task", "command"])
def test_who_has_no_requests_is_shown_without_a_number_of_them(kind: str) -> None:
    status = server(pool("mail", [worker(0, requests=0, connections=0)], kind=kind, listeners=[]))
    assert line_of(status, "mail/0").split()[-5:] == ["-", "-", "45.0", "MiB", "-"]


@pytest.mark.parametrize("width", [80, 200, None])
def test_no_line_ends_in_blanks(width: int | None) -> None:
    assert [line for line in lines(BUSY, width) if line != line.rstrip()] == []


def test_the_oldest_request_is_shown_and_the_others_counted() -> None:
    assert line_of(BUSY, "web/1", 200).endswith("…")
    assert "31.2 s (+1) GET /reports/2026/november" in line_of(BUSY, "web/1", 200)
    assert "31.2 s (+1) GET" in line_of(BUSY, "web/1", 80)


def test_a_pipe_gets_everything_on_one_line() -> None:
    assert line_of(BUSY, "web/1").endswith(f"31.2 s (+1) {LONG_PATH}")
    assert line_of(BUSY, "web is degraded").endswith("No module named 'shopping'")


def test_queues_stand_beside_their_listeners() -> None:
    text = lines(BUSY, None)
    assert any("127.0.0.1:8000" in line and "7/2048" in line for line in text)
    assert any("[::1]:8000" in line and "-/128" in line for line in text)


def test_deaths_and_degraded_pools_are_sentences() -> None:
    assert "last death: web/2 (pid 4690), 12.0 s ago: killed by SIGSEGV" in lines(BUSY, None)
    assert line_of(BUSY, "web is degraded: 2 workers of generation 3 failed to boot")


def test_the_first_line_says_who_and_how() -> None:
    assert lines(BUSY, None)[0] == "shop is running: generation 3, pid 4700, up 2 h 5 m, prefork 0.1.0"


def test_a_server_without_workers_has_no_workers_table() -> None:
    assert "WORKER" not in "".join(lines(server(pool("web", [], wanted=1)), 80))
    assert lines(server(), 80) == ["shop is running: generation 3, pid 4700, up 2 h 5 m, prefork 0.1.0"]


def test_colours_are_only_added_never_mixed_with_the_text() -> None:
    colored = status_text(BUSY, 120, color=True)
    assert "\x1b[32mready" in colored
    stripped = "".join(f"{line.rstrip()}\n" for line in COLORS.sub("", colored).splitlines())
    assert stripped == status_text(BUSY, 120, color=False)
    assert "\x1b" not in stripped


def test_what_a_client_sends_can_neither_color_nor_move_the_cursor() -> None:
    nasty = server(
        pool(
            "web",
            [worker(0, current=[{"what": "GET /\x1b[2J\x9b31m\r\n[bold]x[/bold] :smile: ü", "age": 1.0}])],
        )
    )
    text = status_text(nasty, None, color=True)
    assert r"GET /\x1b[2J\x9b31m\r\n[bold]x[/bold] :smile: ü" in text
    assert "\x9b" not in text


def test_stacks_stand_under_their_workers() -> None:
    shown = stacks_text(
        [
            {"worker": "web/0", "generation": 1, "pid": 11, "stack": "Thread 1:\n  File x\n\n"},
            {"worker": "web/1", "generation": 1, "pid": 12, "stack": "Thread 1:\n  File y"},
        ]
    )
    assert shown == ("web/0 gen=1 pid=11\nThread 1:\n  File x\n\nweb/1 gen=1 pid=12\nThread 1:\n  File y\n")


@pytest.mark.parametrize(
    ("figures", "shown"),
    [
        ({"wanted": 2, "ready": 0, "done": 2}, "done"),
        ({"wanted": 3, "ready": 0, "done": 1}, "1 of 3 done"),
        ({"wanted": 3, "ready": 2, "done": 1}, "2 of 3, 1 done"),
        ({"wanted": 3, "ready": 3, "done": 0}, "3 of 3"),
    ],
)
def test_who_is_done_is_not_missed(figures: dict[str, int], shown: str) -> None:
    (line,) = (line for line in lines(server(pool("mail", [], **figures)), None) if line.startswith("mail"))
    assert line.startswith(f"mail  {shown:<{len('READY')}}  ")


def test_what_a_pool_waits_for_is_told() -> None:
    waiting = server(pool("web", [], wanted=4, ready=0, waits_for=["db", "migrate"]))
    assert "web waits for db, migrate" in lines(waiting, None)


def test_a_template_has_a_line_before_its_workers() -> None:
    template = {"generation": 3, "pid": 4705, "state": "ready", "age": 7510.0, "memory": 110 * 2**20}
    shown = lines(server(pool("web", [worker(0)], templates=[template])), None)
    assert shown[-2].split()[:4] == ["web/template", "ready", "3", "4705"]
    assert shown[-2].split()[-5:] == ["-", "-", "110.0", "MiB", "-"]
    assert shown[-1].startswith("web/0")
