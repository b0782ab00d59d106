"""Pools with preload: loaded once, forked from a template, and none the worse for that (promise 15)."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.clients import Load
from tests.faulty import ask, begin, pool
from tests.harness import (
    APPS,
    PATIENCE,
    Server,
    body_of,
    children_of,
    command_of,
    descriptors_of,
    is_alive,
    read_to_end,
    wait_until,
)
from tests.process.test_leaks import held_at_rest, kinds
from tests.process.test_orphans import kill_master

# Each loading leaves a line, with whom it was done by.
LOADS = """
import os
with open("loads", "a") as file:
    print(os.getpid(), os.getuid(), file=file)
"""
WEB = LOADS + "from web import routes as app\n"


def own(folder: Path, code: str = WEB, **options: object) -> str:
    """Write an application and return the configuration of a pool that preloads it."""
    (folder / "own.py").write_text(code)
    return pool("own:app", kind="wsgi", **{"workers": 2, "preload": True, **options})


def loads(folder: Path) -> list[int]:
    """Return who has loaded the application, in order."""
    return [int(line.split()[0]) for line in (folder / "loads").read_text().splitlines()]


def templates(server: Server) -> list[int]:
    return [template["pid"] for template in server.pool()["templates"]]


def template(server: Server) -> int:
    (pid,) = templates(server)
    return pid


def another(server: Server, old: int) -> int:
    """Return the pid of the template that has taken an old one's place, once it is ready."""

    def found() -> int:
        (*rest, last) = server.pool()["templates"] or [{"pid": old, "state": "gone"}]
        return last["pid"] if not rest and last["state"] == "ready" and last["pid"] != old else 0

    return wait_until(found, "there is another template")


def replace_one(server: Server) -> int:
    """Kill a worker and return the pid of the one that takes its place."""
    before = server.pids()
    os.kill(min(before), signal.SIGKILL)

    def found() -> set[int]:
        workers = server.workers()
        return {worker["pid"] for worker in workers if worker["state"] == "ready"} - before

    (pid,) = wait_until(found, "a new worker is ready")
    return pid


def test_workers_are_the_masters_children_and_the_application_is_loaded_once(start, tmp_path):
    server = start(own(tmp_path, workers=3)).wait_serving()
    children = children_of(server.process.pid)
    assert loads(tmp_path) == [template(server)]
    assert {template(server), *server.pids()} <= set(children)
    assert len(children) == 5  # and the guard
    assert children_of(template(server)) == {}
    assert command_of(template(server)) == "prefork: template work gen=1 [ready]"
    assert int(body_of(server.get()).split()[0]) in server.pids()
    assert "work/template" in server.run("status").stdout
    assert server.stop() == 0
    assert " error " not in server.log


def test_a_dead_worker_is_forked_anew_from_the_same_template(start, tmp_path):
    server = start(own(tmp_path)).wait_serving()
    before = template(server)
    assert replace_one(server) in children_of(server.process.pid)
    assert loads(tmp_path) == [before] == templates(server)
    assert "Z" not in children_of(server.process.pid).values()


def test_a_killed_template_is_rebuilt_and_its_workers_live_on(start, tmp_path):
    server = start(own(tmp_path)).wait_serving()
    before, workers = template(server), server.pids()
    os.kill(before, signal.SIGKILL)
    after = another(server, before)
    assert loads(tmp_path) == [before, after]
    assert server.pids() == workers
    server.wait_for(
        "error work/template .* ended: killed by somebody else: SIGKILL; lived [^,]*, peak memory"
    )
    assert server.pool()["restarts"] == 0
    replace_one(server)
    assert loads(tmp_path) == [before, after]


def test_a_template_told_to_leave_by_a_signal_is_rebuilt_and_that_is_no_error(start, tmp_path):
    server = start(own(tmp_path)).wait_serving()
    before = template(server)
    os.kill(before, signal.SIGTERM)
    another(server, before)
    server.wait_for("info  work/template .* ended: clean: it left by itself")


def test_a_halted_template_is_replaced_by_its_deadline(start, tmp_path):
    server = start(own(tmp_path, stall_timeout=0.5)).wait_serving()
    before, workers = template(server), server.pids()
    os.kill(before, signal.SIGSTOP)
    another(server, before)
    server.wait_for("work/template .* halted by a signal ran .*; replacing the template")
    assert server.pids() == workers


def test_reloads_are_new_templates_and_lose_no_request(start, tmp_path):
    server = start(own(tmp_path)).wait_serving()
    first = template(server)
    with Load(server.address()) as load:
        for generation in range(2, 6):
            load.wait_answered(20)
            assert server.ask("reload")["generation"] == generation
        load.wait_answered(20)
    assert load.lost == {}, load.examples
    assert len(loads(tmp_path)) == 5
    assert template(server) == loads(tmp_path)[-1]
    assert not is_alive(first)
    assert "Z" not in children_of(server.process.pid).values()


def test_a_broken_application_changes_nothing(start, tmp_path):
    server = start(own(tmp_path)).wait_serving()
    before, workers = template(server), server.pids()
    own(tmp_path, "raise RuntimeError('broken on purpose')")
    reload = server.run("reload")
    assert reload.returncode == 1
    assert "RuntimeError: broken on purpose" in reload.stderr
    assert 'own.py", line 1' in reload.stderr
    assert (templates(server), server.pids()) == ([before], workers)
    replace_one(server)
    assert loads(tmp_path) == [before]


def test_a_first_start_that_fails_ends_with_the_templates_traceback(start, tmp_path):
    server = start(own(tmp_path, "1 / 0\n"))
    assert server.wait_exit() == 4
    server.wait_all_gone()
    assert "error: [pool.work] ZeroDivisionError: division by zero" in server.everything()


def test_an_import_that_never_ends_is_given_up_with_its_stack(start, tmp_path):
    server = start(own(tmp_path, boot_timeout=1)).wait_serving()
    before = template(server)
    own(tmp_path, "import time\ntime.sleep(1000)\n")
    reload = server.run("reload")
    assert reload.returncode == 1
    assert "not ready after 1 s" in reload.stderr
    assert any("own.py" in line and "line 2" in line for line in server.lines)
    assert templates(server) == [before]


def test_a_stop_does_not_wait_for_a_template_that_still_loads(start, tmp_path):
    server = start(own(tmp_path)).wait_serving()
    own(tmp_path, "import time\ntime.sleep(1000)\n")
    server.signal(signal.SIGHUP)
    wait_until(lambda: len(templates(server)) == 2, "it loads")
    assert server.stop() == 0
    server.wait_for("work/template gen=2 .* ended: clean: stopped;")


FORKS_SLOWLY = """
import os, time
def wait():
    if os.path.exists("slow"):
        time.sleep(1000)
os.register_at_fork(before=wait)
"""


def test_a_template_that_does_not_come_to_fork_is_replaced(start, tmp_path):
    server = start(own(tmp_path, WEB + FORKS_SLOWLY, boot_timeout=1.5)).wait_serving()
    before, workers = template(server), server.pids()
    (tmp_path / "slow").touch()
    os.kill(min(workers), signal.SIGKILL)
    server.wait_for("its template did not fork it within 1.5 s")
    (tmp_path / "slow").unlink()
    another(server, before)
    wait_until(lambda: server.pool()["ready"] == 2, "both workers are ready")
    server.wait_for("work/template .* forking a worker ran 1.5 s, limit 1.5 s .*; replacing the template")
    assert max(workers) in server.pids()


DIES_AT_ONCE = """
import os, signal, threading
master, start = os.getppid(), threading.Thread.start
def die(thread):
    if os.path.exists("dies") and thread.name == "prefork-orders":
        os._exit(9)
    start(thread)
threading.Thread.start = die
os.register_at_fork(before=lambda: os.path.exists("dies") and os.kill(master, signal.SIGSTOP))
"""


def test_a_worker_whose_birth_and_death_are_heard_of_at_once_has_its_record(start, tmp_path):
    server = start(own(tmp_path, WEB + DIES_AT_ONCE)).wait_serving()
    master = server.process.pid
    (tmp_path / "dies").touch()
    os.kill(min(server.pids()), signal.SIGKILL)
    wait_until(lambda: children_of(os.getpid())[master] == "T", "the master is halted")
    wait_until(lambda: "Z" in children_of(master).values(), "the new worker is dead")
    (tmp_path / "dies").unlink()
    server.signal(signal.SIGCONT)
    server.wait_for(r"error work/. gen=1 pid=\d+ ended: did not boot: exit code 9; ")
    wait_until(lambda: server.pool()["ready"] == 2, "both workers are ready")


HALTS_THE_MASTER = """
import os, signal, time
master = os.getppid()
os.register_at_fork(before=lambda: os.path.exists("halts") and os.kill(master, signal.SIGSTOP))
def app(environ, start_response):
    open("began", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)
    start_response("200 OK", [("Content-Length", "4")])
    return [b"done"]
"""
HANGS = """
import os, time
if os.path.exists("halts"):
    open("boots", "w").close()
    time.sleep(1000)
def handle(sock, address):
    pass
"""


def test_a_worker_that_is_given_up_before_its_birth_is_heard_of_finishes_what_it_serves(start, tmp_path):
    (tmp_path / "hangs.py").write_text(HANGS)
    server = start(own(tmp_path, HALTS_THE_MASTER, workers=1) + pool("hangs:handle", "other")).wait_serving()
    master, address, (old,) = server.process.pid, server.address("work"), server.pids("work")
    (tmp_path / "halts").touch()
    server.signal(signal.SIGHUP)
    wait_until(lambda: children_of(os.getpid())[master] == "T", "the master is halted")
    wait_until(lambda: "work/0 gen=2 [ready]" in titles(master), "the new worker serves")
    wait_until((tmp_path / "boots").exists, "the other pool's is still being loaded")
    os.kill(old, signal.SIGSTOP)
    wait_until(lambda: children_of(master)[old] == "T", "only the new worker can answer")
    with socket.create_connection(address, PATIENCE) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        wait_until((tmp_path / "began").exists, "it does")
        os.kill(titles(master)["other/0 gen=2 [starting]"], signal.SIGKILL)
        (tmp_path / "halts").unlink()
        server.signal(signal.SIGCONT)
        server.wait_for("pool other: no worker of generation 2 got ready")
        (tmp_path / "go").touch()
        assert body_of(read_to_end(client)) == b"done"
    server.wait_for(r"work/0 gen=2 pid=\d+ ended: clean: generation 2 was given up; ")
    assert server.pids("work") == {old}


FORKS_LATE = """
import os, time
def wait():
    if os.path.exists("halts"):
        open("forks", "w").close()
    while os.path.exists("halts"):
        time.sleep(0.01)
os.register_at_fork(before=wait)
"""


def test_a_worker_that_is_born_when_nobody_waits_for_it_any_more_does_not_live(start, tmp_path):
    (tmp_path / "hangs.py").write_text(HANGS)
    server = start(own(tmp_path, WEB + FORKS_LATE, workers=1) + pool("hangs:handle", "other")).wait_serving()
    master, before = server.process.pid, server.pids("work")
    (tmp_path / "halts").touch()
    server.signal(signal.SIGHUP)
    wait_until((tmp_path / "forks").exists, "the template was told to fork")
    wait_until((tmp_path / "boots").exists, "the other pool's is still being loaded")
    os.kill(titles(master)["other/0 gen=2 [starting]"], signal.SIGKILL)
    server.wait_for("pool other: no worker of generation 2 got ready")
    (tmp_path / "halts").unlink()
    server.wait_for(r"work/template gen=2 pid=\d+ ended: clean: generation 2 was given up; ")
    wait_until(lambda: not any("gen=2" in title for title in titles(master)), "nobody of it is left")
    assert "work/0 gen=2" not in server.log
    assert server.pids("work") == before


def titles(master: int) -> dict[str, int]:
    """Return the workers among a master's children, by what their titles tell."""
    return {command_of(pid).removeprefix("prefork: worker "): pid for pid in children_of(master)}


def test_threads_and_sockets_of_the_application_are_told_by_name(start, tmp_path):
    code = (
        "import socket, threading\n"
        "ours, theirs = socket.socketpair()\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "threading.Thread(target=threading.Event().wait, name='flusher', daemon=True).start()\n"
    )
    server = start(own(tmp_path, WEB + code)).wait_serving()
    server.wait_for("warning work/template .* has started threads, .*: flusher$")
    server.wait_for(r"warning work/template .* has opened sockets, .*: unix, unix, inet 127.0.0.1:\d+$")


def test_an_application_that_leaves_nothing_running_is_not_warned_of(start, tmp_path):
    server = start(own(tmp_path)).wait_serving()
    assert "warning" not in server.log


def test_what_was_opened_while_loading_stays_open_in_the_workers(start, tmp_path):
    code = (
        "file = open('own.py')\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [file.readline().encode()]\n"
    )
    server = start(own(tmp_path, code, workers=1)).wait_serving()
    assert body_of(server.get()) == b"file = open('own.py')\n"


def test_workers_draw_different_numbers(start, tmp_path):
    code = (
        "import random\nrandom.seed(7)\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Length', '16')])\n"
        "    return [b'%016x' % random.getrandbits(64)]\n"
    )
    server = start(own(tmp_path, code, workers=1)).wait_serving()
    first = body_of(server.get())
    replace_one(server)
    assert body_of(server.get()) != first


def test_the_workers_class_has_no_place_while_the_template_loads(start, tmp_path):
    server = start(own(tmp_path, "import prefork\nprefork.current()\n"))
    assert server.wait_exit() == 4
    assert "with preload = true that is where the application is loaded" in server.log


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop privileges")
def test_privileges_are_dropped_before_the_application_is_loaded(start, open_folder):
    head = f'[master]\ncontrol = "{open_folder}/control.sock"\nuser = "games"\n'
    config = head + own(open_folder, LOADS + "from web import app\n")
    environment = {"PYTHONPATH": str(open_folder)}
    (open_folder / "web.py").write_text((APPS / "web.py").read_text())
    server = start(config, env=environment, folder=open_folder).wait_serving()
    owner = os.stat(f"/proc/{template(server)}").st_uid
    assert owner != 0
    assert (open_folder / "loads").read_text() == f"{template(server)} {owner}\n"
    assert {os.stat(f"/proc/{pid}").st_uid for pid in server.pids()} == {owner}
    assert os.stat(f"/proc/{replace_one(server)}").st_uid == owner


HOOKS = """
import os
def before_fork(worker):
    with open("moments", "a") as file:
        print("before_fork", os.getpid(), worker.slot, file=file)
    if os.path.exists("broken"):
        raise RuntimeError("the hook's own mistake")
def after_fork(worker):
    with open("moments", "a") as file:
        print("after_fork", os.getpid(), worker.slot, file=file)
"""


def test_hooks_are_called_in_the_template_before_each_fork_and_in_the_worker_after_it(start, tmp_path):
    (tmp_path / "hooks.py").write_text(HOOKS)
    head = '[hooks]\nmodule = "hooks"\n'
    server = start(head + own(tmp_path, workers=1)).wait_serving()
    (worker,) = server.pids()
    moments = (tmp_path / "moments").read_text().splitlines()
    assert moments == [f"before_fork {template(server)} 0", f"after_fork {worker} 0"]
    (tmp_path / "broken").touch()
    reload = server.run("reload")
    assert reload.returncode == 1
    assert "hook before_fork failed: RuntimeError: the hook's own mistake" in reload.stderr
    assert "in before_fork" in reload.stderr
    assert server.pids() == {worker}


def test_socket_handlers_with_threads_are_forked_too(start):
    server = start(pool("faults:act", preload=True, workers=2, threads=3)).wait_serving()
    with begin(server, "sleep 0.2"):
        assert int(ask(server, "pid")) in server.pids()
    assert server.stop() == 0


def test_the_masters_certificates_come_down_to_the_workers(start, tmp_path):
    authority = Authority(tmp_path / "certificates")
    code = "from environs import app\n"
    server = start(own(tmp_path, code) + authority.issue("server").toml("[pool.work.tls]"))
    server.wait_serving()
    for _ in range(2):
        plain = server.connect()
        with authority.client().wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall(b"GET /SSL_PROTOCOL HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert b"TLSv1.3" in read_to_end(client)
        replace_one(server)


def test_workers_forked_after_a_reopening_write_to_the_new_files(start, tmp_path):
    head = '[log]\nfile = "server.log"\naccess = "access.log"\n'
    server = start(head + own(tmp_path, workers=1))
    log, access = tmp_path / "server.log", tmp_path / "access.log"
    wait_until(lambda: log.exists() and "generation 1 serves" in log.read_text(), "it serves")
    for file in (log, access):
        file.rename(f"{file}.1")
    server.ask("reopen")
    new = replace_one(server)
    server.get("/raise")
    wait_until(lambda: f"work/0 gen=1 pid={new} " in log.read_text(), "the new worker has logged")
    wait_until(lambda: "/raise" in access.read_text(), "the request is in the access log")
    assert "the application's own mistake" in log.read_text()
    held = [target for pid in (new, template(server)) for target in opened(pid)]
    assert not [target for target in held if target.endswith(".log.1")]
    assert opened(new).count(str(access)) == 1


def opened(pid: int) -> list[str]:
    return list(descriptors_of(pid).values())


def all_held(server: Server) -> list[list[str]]:
    """Return what the master, its template and a worker hold at rest, by kinds."""
    masters = held_at_rest(server, 3)  # a template counts as a worker there
    # A worker may be ready before its template has closed what it has handed on to it.
    wait_until(
        lambda: all(shared_with_template(server, pid) == ["socket"] for pid in server.pids()),
        "the template keeps nothing of its workers but the listener",
    )
    return [masters, *(kinds(descriptors_of(pid)) for pid in (template(server), min(server.pids())))]


def shared_with_template(server: Server, pid: int) -> list[str]:
    """Return the kinds of what a worker and its template both hold, but for the standard ones."""
    standard = {target for number, target in descriptors_of(pid).items() if number <= 2}
    return [kind_of(target) for target in {*own_to(pid)} & {*own_to(template(server))} - standard]


def own_to(pid: int) -> list[str]:
    return [target for target in opened(pid) if not target.startswith("anon_inode:")]


def test_nothing_leaks_and_workers_share_with_the_master_what_they_need_only(start, tmp_path):
    server = start(own(tmp_path)).wait_serving()
    server.ask("reload")
    before = all_held(server)
    for _ in range(3):
        replace_one(server)
        server.ask("reload")
    replace_one(server)
    assert all_held(server) == before
    masters = set(opened(server.process.pid))
    for pid in server.pids():
        standard = {target for number, target in descriptors_of(pid).items() if number <= 2}
        held = {*own_to(pid)} & masters - standard
        assert sorted(kind_of(target) for target in held) == ["pipe", "socket"]  # stacks, listener


def kind_of(target: str) -> str:
    return target.partition(":")[0]


@pytest.mark.parametrize(
    "code", [WEB, "import os, time\nif os.path.exists('slow'): time.sleep(1000)\n" + WEB]
)
def test_nobody_outlives_a_killed_master(start, tmp_path, inherited, code):
    server = start(own(tmp_path, code)).wait_serving()
    if "slow" in code:
        (tmp_path / "slow").touch()
        server.signal(signal.SIGHUP)
        wait_until(lambda: len(templates(server)) == 2, "another template loads")
    kill_master(server)
    wait_until(lambda: inherited(server), "nobody is left")
    server.wait_all_gone()


def test_a_template_that_blocks_everything_does_not_outlive_a_killed_master(start, tmp_path, inherited):
    server = start(own(tmp_path)).wait_serving()
    own(tmp_path, "from web import hold_the_interpreter\nhold_the_interpreter()\n")
    server.signal(signal.SIGHUP)
    wait_until(lambda: len(templates(server)) == 2, "another template loads")
    kill_master(server)
    wait_until(lambda: inherited(server), "nobody is left")
    server.wait_all_gone()


def test_an_upgrade_makes_new_templates_and_keeps_nothing_of_the_old_ones(start, tmp_path):
    server = start(own(tmp_path, workers=2)).wait_serving()
    for generation in (2, 3):
        old = template(server)
        assert server.ask("upgrade")["generation"] == generation
        another(server, old)
        wait_until(lambda: len(children_of(server.process.pid)) == 4, "two workers, a template, a guard")
        assert int(body_of(server.get()).split()[0]) in server.pids()
    assert replace_one(server) in children_of(server.process.pid)
    assert server.stop() == 0
