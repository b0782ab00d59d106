"""All processes below one, as the kernel tells of them: nobody is missed, and nobody else is met."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid

import pytest

from prefork.system import tree
from tests.harness import APPS, is_alive, wait_until
from tests.programs import pid_in


@pytest.fixture
def top(tmp_path):
    """Give a process with a child in a session of its own, which has another child; orphans come to this process."""
    program = str(APPS / "program.py")
    verbs = [f"away=child=pid={tmp_path}/leaf;sleep=600,pid={tmp_path}/middle,sleep=600", "sleep=600"]
    mark = str(uuid.uuid4())
    tree.become_subreaper()
    made = subprocess.Popen(
        [sys.executable, program, *verbs], env={**os.environ, "MARK": mark}, start_new_session=True
    )
    yield made, pid_in(tmp_path / "middle"), pid_in(tmp_path / "leaf"), f"MARK={mark}"
    tree.kill_below(made.pid)
    made.kill()
    made.wait()
    tree._prctl(tree.PR_SET_CHILD_SUBREAPER, 0)


def test_who_is_below_is_found_with_its_figures(top):
    made, middle, leaf, _ = top
    found = {process.pid: process for process in tree.below(made.pid)}
    assert list(found) == [middle, leaf]
    assert (found[middle].parent, found[leaf].parent) == (made.pid, middle)
    assert found[leaf].session == found[middle].session == middle
    assert re.match(rf"pid {leaf}, \w+: {re.escape(sys.executable)}", found[leaf].description)
    assert 2 * 2**20 < tree.peak_below(made.pid) < 2**27
    assert tree.peak_below(made.pid) < tree.memory_below(made.pid) * 2
    assert tree.below(leaf) == []


def test_all_below_are_killed_and_the_root_is_not(top):
    made, middle, leaf, _ = top
    tree.kill_below(made.pid)
    wait_until(lambda: not is_alive(middle) and not is_alive(leaf), "they are dead")
    assert made.poll() is None


def test_who_is_marked_is_killed_wherever_it_has_moved_and_nobody_else(top):
    made, middle, leaf, mark = top
    other = subprocess.Popen([sys.executable, str(APPS / "program.py"), "sleep=600"])
    made.kill()
    made.wait()
    tree.kill_marked(os.getpid(), 0, mark)
    for orphan in (middle, leaf):
        os.waitpid(orphan, 0)
    assert other.poll() is None
    other.kill()
    other.wait()


def test_who_loses_its_parent_while_it_is_looked_for_is_killed_too(top):
    made, middle, leaf, mark = top
    dead = []

    def look():
        """First find the middle one dead and nobody below: its orphan has just moved to where was looked before."""
        if not dead:
            os.kill(middle, signal.SIGKILL)
            wait_until(lambda: tree._look(middle).state == "Z", "it is dead, and not reaped")
            dead.append(tree._look(middle))
            return dead
        return dead + [found for found in tree._marked(os.getpid(), 0, mark) if found.pid != made.pid]

    tree._kill_all(look)
    assert os.waitstatus_to_exitcode(os.waitpid(leaf, 0)[1]) == -signal.SIGKILL
    assert made.poll() is None


def test_a_session_is_found_without_a_mark_and_session_0_is_nobodys(top):
    made, *_ = top
    found = tree._marked(os.getpid(), made.pid, "MARK=of nobody")
    assert [process.pid for process in found] == [made.pid]
    assert tree._look(1).session == 0 or tree._look(2).session == 0
    assert tree._marked(0, 0, "MARK=of nobody") == tree._marked(1, 0, "MARK=of nobody") == []


def test_a_signal_reaches_all_below(top, tmp_path):
    made, middle, leaf, _ = top
    tree.signal_below(made.pid, signal.SIGTERM, made.pid)
    wait_until(lambda: not is_alive(middle) and not is_alive(leaf), "they have left")
    assert made.poll() is None


def test_a_process_that_has_got_the_number_of_another_one_is_not_met(top):
    made, middle, _, _ = top
    (found, *_) = tree.below(made.pid)
    tree._send_signal(found._replace(began=found.began - 1), signal.SIGKILL)
    assert is_alive(middle)
