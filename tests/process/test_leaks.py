"""Nothing leaks with the real program, neither over reloads nor into the workers (fault 11)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prefork.control.client import Client
from tests.faulty import pool
from tests.harness import PATIENCE, Server, children_of, descriptors_of, wait_until

RELOADS = 200
WARM = 50


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def kinds(descriptors: dict[int, str]) -> list[str]:
    """Return what descriptors are, without the numbers that differ each time."""
    return sorted(target.partition("[")[0] if ":[" in target else target for target in descriptors.values())


def held_at_rest(server: Server, workers: int) -> list[str]:
    """Return what the master holds when nobody but its workers and the guard is left, and one command is asked."""
    master = server.process.pid
    wait_until(lambda: len(children_of(master)) == workers + 1, "the old ones are gone")
    with Client(str(server.control), PATIENCE) as client:
        client.call(
            "status", {}, lambda _text: None
        )  # by its answer the connections of earlier commands are closed
        return kinds(descriptors_of(master))


def test_two_hundred_reloads_leave_nothing_behind(start):
    server = start(pool("sockets:pid", name="a") + pool("web:app", name="b", kind="wsgi")).wait_serving()
    master = server.process.pid
    maps, descriptors, memory = {}, {}, {}
    for number in range(1, RELOADS + 1):
        server.ask("reload")
        if number in (WARM, RELOADS):
            descriptors[number] = held_at_rest(server, 2)
            maps[number] = Path(f"/proc/{master}/maps").read_text().count("memfd:prefork-scoreboard")
            memory[number] = resident(master)
    assert descriptors[RELOADS] == descriptors[WARM]
    assert maps[RELOADS] == maps[WARM]
    assert memory[RELOADS] - memory[WARM] < 400_000
    assert "Z" not in children_of(master).values()
    assert server.pool("a")["workers"][0]["generation"] == RELOADS + 1


def test_listeners_and_boards_that_are_not_needed_any_more_are_given_back(start):
    small = pool("sockets:pid", name="a")
    server = start(small).wait_serving()
    master = server.process.pid
    before = held_at_rest(server, 1)
    for threads in (2, 3, 4):
        server.write(small.replace("workers = 1", f"workers = 1\nthreads = {threads}") + pool(name="b"))
        server.ask("reload")
        server.write(small)
        server.ask("reload")
    server.ask(
        "reload"
    )  # what the last generation's workers used until their end is given back by the next one
    assert held_at_rest(server, 1) == before
    assert Path(f"/proc/{master}/maps").read_text().count("memfd:prefork-scoreboard") == 1


@pytest.mark.parametrize("file", ["-", "server.log"])
@pytest.mark.parametrize("kind", ["handler", "wsgi"])
def test_a_worker_inherits_exactly_what_it_needs(start, tmp_path, kind, file):
    application = {"handler": "faults:act", "wsgi": "web:app"}[kind]
    listen = ["127.0.0.1:0", f"unix:{tmp_path}/work.sock"]
    server = start(
        f'[log]\nfile = "{file}"\n'
        + pool(application, kind=kind, workers=2, listen=listen)
        + pool(name="other")
    ).wait_answering(1, "other")
    masters = set(descriptors_of(server.process.pid).values())
    for worker in server.workers("work"):
        shared = {
            number: target for number, target in descriptors_of(worker["pid"]).items() if target in masters
        }
        above = [target for number, target in shared.items() if number > 2]
        sockets = [target for target in above if target.startswith("socket:")]
        pipes = [
            target
            for target in above
            if target.startswith("pipe:") and target not in shared_by_standard(shared)
        ]
        files = [target for target in above if target.startswith("/")]
        assert len(sockets) == len(listen), shared
        assert len(pipes) == 1, shared  # for its stacks
        assert files == ([] if file == "-" else [str(tmp_path / file)]), shared
    assert set(standard(server.workers("work")[0]["pid"])) <= masters


def standard(pid: int) -> list[str]:
    return [target for number, target in descriptors_of(pid).items() if number <= 2]


def shared_by_standard(descriptors: dict[int, str]) -> set[str]:
    return {target for number, target in descriptors.items() if number <= 2}


def test_a_worker_holds_nothing_of_another_workers(start):
    server = start(pool(workers=3)).wait_serving()
    own = [
        {target for target in descriptors_of(pid).values() if target.startswith(("socket:", "pipe:"))}
        for pid in server.pids()
    ]
    shared = set.intersection(*own)
    masters = set(descriptors_of(server.process.pid).values())
    for mine in own:
        others = set().union(*(found for found in own if found is not mine))
        assert mine & others == shared
    assert len({target for target in shared & masters if target.startswith("socket:")}) == 1  # the listener
