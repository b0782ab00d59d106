"""The usable CPUs, under file systems as different kernels and containers show them."""

from __future__ import annotations

import os

import pytest

from prefork.system.cpus import usable_cpus

ALLOWED = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
HALF = "50000 100000\n"
PLENTY = "100000000 100000\n"


def build(root, files):
    for path, text in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return str(root)


def v2(path, **quotas):
    names = {f"sys/fs/cgroup/{level.replace('_', '/')}/cpu.max": text for level, text in quotas.items()}
    return {"proc/self/cgroup": f"0::{path}\n"} | names


def v1(path, mount, level, quota):
    folder = f"sys/fs/cgroup/{mount}{level}"
    return {
        "proc/self/cgroup": f"5:memory:/x\n4:{mount}:{path}\n0::/x\n",
        f"{folder}/cpu.cfs_quota_us": f"{quota}\n",
        f"{folder}/cpu.cfs_period_us": "100000\n",
    }


@pytest.mark.parametrize(
    "files",
    [
        {},
        v2("/"),
        v2("/a/b", a="max 100000\n", a_b="max 100000\n"),
        v2("/a/b", a_b=PLENTY),
        v2("/a/b", b=HALF, a_b_c=HALF),
        v1("/a", "cpu,cpuacct", "/a", -1),
        v1("/a", "memory", "/a", 50000),
    ],
)
def test_without_a_quota_of_ours_the_affinity_counts(tmp_path, files):
    assert usable_cpus(build(tmp_path, files)) == ALLOWED


@pytest.mark.parametrize(
    "files",
    [
        v2("/a/b", a_b=HALF),
        v2("/a/b", a=HALF, a_b=PLENTY),
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": HALF},
        {"proc/self/cgroup": "0::/../../x\n", "sys/fs/cgroup/cpu.max": HALF},
        v1("/a/b", "cpu,cpuacct", "/a/b", 50000),
        v1("/a/b", "cpu,cpuacct", "/a", 50000),
        v1("/docker/1234", "cpu", "", 50000),
    ],
)
def test_the_smallest_quota_above_us_counts_and_is_rounded_up(tmp_path, files):
    assert usable_cpus(build(tmp_path, files)) == 1


@pytest.mark.skipif(ALLOWED < 2, reason="one CPU cannot show the difference")
def test_a_quota_of_one_and_a_half_is_two(tmp_path):
    assert usable_cpus(build(tmp_path, v2("/a", a="150000 100000"))) == 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_the_affinity_counts(tmp_path):
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cpus(str(tmp_path)) == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_this_machine_has_some():
    assert 1 <= usable_cpus() <= ALLOWED


def test_a_refused_affinity_leaves_the_machines_cpus(tmp_path, monkeypatch):
    def refuse(_pid: int) -> set[int]:
        raise PermissionError

    monkeypatch.setattr(os, "sched_getaffinity", refuse, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cpus(str(tmp_path)) == 7
