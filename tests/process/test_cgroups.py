"""Programs in cgroups of their own, where the server's is delegated to it: nobody escapes, and no cgroup is left behind."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefork.system import cgroup, process, tree
from tests.harness import RUN, Server, is_alive, wait_until
from tests.programs import pid_in, pool, program_of, wait_gone

# Becomes the server, inside of a cgroup.
INSIDE = """
import os, sys
open(f"{sys.argv[1]}/cgroup.procs", "w").write("0")
os.execv(sys.argv[2], sys.argv[2:])
"""
# Starts somebody with another session, another parent and an empty environment, who writes down its pid in "orphan".
ESCAPING = ["orphan", "ready", "sleep=600"]
MARK = "user.delegate"


@pytest.fixture
def own() -> Iterator[Path]:
    """Give a cgroup that is delegated to whoever is in it."""
    membership = Path("/proc/self/cgroup").read_text()
    found = [
        Path(place) for place in cgroup.directories(Path("/proc/self/mountinfo").read_text(), membership)
    ]
    if not found:
        pytest.skip("no cgroup v2 is mounted")
    made = found[0] / f"test-{uuid.uuid4()}"
    try:
        made.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    os.setxattr(made, MARK, b"1")
    yield made
    cgroup.clear(str(made))
    assert not made.exists()


@pytest.fixture
def start_inside(start, own) -> Callable[..., Server]:
    def start_server(config: str, **options: object) -> Server:
        return start(config, command=[sys.executable, "-c", INSIDE, str(own), *RUN], **options).wait_serving()

    return start_server


def below(folder: Path) -> list[Path]:
    """Return the cgroups right below one."""
    return [entry for entry in folder.iterdir() if entry.is_dir()] if folder.exists() else []


def cgroup_of(pid: int) -> str:
    """Return the name of a process's cgroup with that of the one above."""
    (line,) = (
        line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::")
    )
    return "/".join(line.split("/")[-2:])


def programs(own: Path) -> list[str]:
    """Return the names of the cgroups of all programs."""
    return sorted(entry.name for home in below(own) for entry in below(home))


def wait_programs(own: Path, *names: str) -> None:
    wait_until(lambda: programs(own) == sorted(names), f"{names} are the programs' cgroups")


def escaped(folder: Path) -> int:
    """Return the pid of who has escaped, and forget it."""
    pid = pid_in(folder / "orphan")
    (folder / "orphan").unlink()
    return pid


# The server.


def test_who_has_escaped_dies_with_a_killed_worker_and_no_cgroup_is_left(start_inside, own, tmp_path):
    server = start_inside(pool(*ESCAPING, graceful_timeout=1))
    orphan = escaped(tmp_path)
    (worker,) = server.pids()
    assert (
        cgroup_of(orphan) == cgroup_of(program_of(server, worker)) == f"{below(own)[0].name}/work.0-{worker}"
    )
    assert cgroup_of(server.process.pid).endswith(f"/{own.name}")
    os.kill(worker, signal.SIGKILL)
    wait_gone(orphan)
    wait_until(lambda: server.pool()["ready"] == 1, "it is replaced")
    (second,) = server.pids()
    wait_programs(own, f"work.0-{second}")
    assert is_alive(escaped(tmp_path))
    assert server.stop() == 0
    assert below(own) == []


def test_a_program_that_ends_leaves_no_cgroup(start_inside, own, tmp_path):
    server = start_inside(pool("orphan", "ready", f"take={tmp_path}/go", "exit=7", graceful_timeout=1))
    orphan = escaped(tmp_path)
    (first,) = server.pids()
    (tmp_path / "go").touch()
    server.wait_for(rf"work/0 gen=1 pid={first} ended: exit code 7")
    assert not is_alive(orphan)
    wait_until(lambda: server.pool()["ready"] == 1, "it is replaced")
    wait_programs(own, *(f"work.0-{pid}" for pid in server.pids()))
    assert server.stop() == 0
    assert below(own) == []


def test_a_reload_and_a_failed_start_leave_no_cgroup(start_inside, own, tmp_path):
    server = start_inside(pool(*ESCAPING, workers=2, graceful_timeout=1))
    server.ask("reload")
    wait_programs(own, *(f"work.{worker['slot']}-{worker['pid']}" for worker in server.workers()))
    kept = programs(own)
    server.write(pool("orphan", "exit=3", workers=2))
    assert server.run("reload").returncode == 1
    wait_programs(own, *kept)
    assert server.stop() == 0
    assert below(own) == []


def test_after_an_upgrade_the_cgroups_of_living_programs_are_known(start_inside, own, tmp_path):
    server = start_inside(pool("deaf", *ESCAPING, graceful_timeout=60))
    orphan = escaped(tmp_path)
    (first,) = server.pids()
    (home,) = below(own)
    os.removexattr(own, MARK)  # what the new program would find by itself is of no account
    server.signal(signal.SIGUSR2)
    server.wait_for(r" work/0 gen=2 .* ready in ")
    (second,) = server.pids() - {first}
    wait_programs(own, f"work.0-{first}", f"work.0-{second}")
    os.kill(first, signal.SIGKILL)
    wait_gone(orphan)
    wait_programs(own, f"work.0-{second}")
    assert below(own) == [home]
    server.signal(signal.SIGINT)
    assert server.wait_exit() == 0
    assert below(own) == []


def test_a_killed_master_leaves_neither_escaped_processes_nor_cgroups(start_inside, own, tmp_path):
    table = pool(*ESCAPING, graceful_timeout=1) + pool("polite=TERM", "ready", "sleep=600", name="polite")
    server = start_inside(table)
    orphan = escaped(tmp_path)
    (worker,) = server.pids("work")
    server.signal(signal.SIGSTOP)  # it is to have no time for the worker's death
    os.kill(worker, signal.SIGKILL)
    server.signal(signal.SIGKILL)
    server.process.wait()
    wait_gone(orphan)
    wait_until(lambda: below(own) == [], "no cgroup is left")
    server.wait_all_gone()


def test_a_killed_masters_programs_still_have_their_time(start_inside, own, tmp_path):
    verbs = ["polite=TERM", "ready", "sleep=600", f"await={tmp_path}/go", f"pid={tmp_path}/done"]
    server = start_inside(pool(*verbs, graceful_timeout=60))
    server.signal(signal.SIGKILL)
    server.wait_for("[|] told by TERM")
    assert len(programs(own)) == 1
    (tmp_path / "go").touch()
    pid_in(tmp_path / "done")
    wait_until(lambda: below(own) == [], "no cgroup is left")


def test_a_start_removes_what_dead_masters_have_left_and_nothing_of_the_living(start_inside, own):
    dead = subprocess.Popen(["true"])
    dead.wait()
    living = f"prefork-{os.getpid()}-{tree.began(os.getpid())}"
    for name in (f"prefork-{dead.pid}-1", f"prefork-{os.getpid()}-1", living, "somebody"):
        (own / name / "web.0-1").mkdir(parents=True)
    server = start_inside(pool("ready", "sleep=600"))
    (home,) = {entry.name for entry in below(own)} - {living, "somebody"}
    assert home == f"prefork-{server.process.pid}-{tree.began(server.process.pid)}"
    assert server.stop() == 0
    assert {entry.name for entry in below(own)} == {living, "somebody"}


def test_two_servers_share_a_cgroup(start_inside, own, tmp_path):
    first = start_inside(pool("ready", "sleep=600"), folder=tmp_path / "first")
    second = start_inside(pool("ready", "sleep=600"), folder=tmp_path / "second")
    names = [f"work.0-{pid}" for server in (first, second) for pid in server.pids()]
    wait_programs(own, *names)
    assert first.stop() == 0
    assert programs(own) == names[1:]
    assert second.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_a_program_of_another_user_is_in_its_cgroup_as_well(start_inside, own, tmp_path):
    head = f'[master]\ncontrol = "{tmp_path}/control.sock"\ndirectory = "/"\nuser = "nobody"\n'
    server = start_inside(f'{head}[pool.work]\ncommand = ["sleep", "600"]\n')
    (worker,) = server.pids()
    assert cgroup_of(program_of(server, worker)).endswith(f"/work.0-{worker}")
    assert server.stop() == 0
    assert below(own) == []


def test_without_delegation_there_are_no_cgroups(start_inside, own, tmp_path):
    os.removexattr(own, MARK)
    server = start_inside(pool(*ESCAPING, graceful_timeout=1))
    assert cgroup_of(escaped(tmp_path)) == cgroup_of(server.process.pid)
    assert below(own) == []
    assert server.stop() == 0


def test_a_program_runs_without_a_cgroup_where_none_can_be_made(start_inside, own):
    (own / "cgroup.max.descendants").write_text("0")
    server = start_inside(pool("ready", "sleep=600"))
    server.wait_for(r"warning work/0 gen=1 pid=\d+ its program has no cgroup of its own, /.*: ")
    assert server.stop() == 0


# What it is made of.


def told_inside(own: Path, uid: int) -> str:
    """Return where a process of a user puts its programs, and whether it may; it is in a given cgroup."""
    reads, writes = os.pipe()

    def tell() -> None:
        (own / "cgroup.procs").write_text("0")
        os.setresuid(uid, uid, uid)
        home = cgroup.home()
        if home is not None:
            cgroup.enter(f"{home}/web.0-1")
        os.write(writes, str(home and cgroup_of(os.getpid())).encode())
        os._exit(0)

    child = process.fork(tell)
    os.close(writes)
    with open(reads, "rb") as pipe:
        told = pipe.read().decode()
    os.waitpid(child.pid, 0)
    child.close()
    return told


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_it_is_roots_by_its_mark_and_others_by_their_rights(own):
    nobody = pwd.getpwnam("nobody").pw_uid
    assert told_inside(own, 0).endswith("/web.0-1")
    assert told_inside(own, nobody) == "None"
    os.setxattr(own, MARK, b"0")
    assert told_inside(own, 0) == "None"
    os.setxattr(own, "trusted.delegate", b"1")
    assert told_inside(own, 0).endswith("/web.0-1")
    os.chown(own, nobody, nobody)
    assert told_inside(own, nobody) == "None"
    os.chown(own / "cgroup.procs", nobody, nobody)
    assert told_inside(own, nobody).endswith("/web.0-1")


def inhabit(folder: Path) -> subprocess.Popen[bytes]:
    made = subprocess.Popen([sys.executable, "-c", INSIDE, str(folder), "/bin/sleep", "600"])
    wait_until(lambda: str(made.pid) in (folder / "cgroup.procs").read_text().split(), "it is inside")
    return made


@pytest.mark.parametrize("is_new", [True, False])
def test_all_in_it_and_below_are_killed_by_old_kernels_as_well(own, is_new):
    (own / "inner").mkdir()
    inside = [inhabit(own), inhabit(own / "inner")]
    if is_new:
        cgroup.clear(str(own / "inner"))
        assert not (own / "inner").exists()
        assert inside[0].poll() is None
        cgroup.kill(str(own))
    else:
        tree.kill_each(lambda: cgroup._members(str(own)))
    assert [made.wait() for made in inside] == [-signal.SIGKILL] * 2


def test_who_is_inside_keeps_it(own):
    (own / "inner").mkdir()
    made = inhabit(own / "inner")
    assert not cgroup.remove(str(own))
    assert (own / "inner").exists()
    made.kill()
    made.wait()
    assert cgroup.remove(str(own))
    own.mkdir()


def test_what_is_not_there_can_be_killed_and_removed(own):
    cgroup.clear(str(own / "absent"))
    assert cgroup.remove(str(own / "absent"))
