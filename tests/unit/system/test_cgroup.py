"""Where a process finds its own cgroup, as different machines mount them."""

from __future__ import annotations

import pytest

from prefork.system.cgroup import directories

HYBRID = (
    "36 31 0:33 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
)
UNIFIED = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:4 master:1 - cgroup2 cgroup2 rw,nsdelegate\n"
SERVICE = "/system.slice/shop.service"


def part(root: str, place: str) -> str:
    return f"50 35 0:30 {root} {place} rw,nosuid - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("mounts", "own", "found"),
    [
        (UNIFIED, SERVICE, [f"/sys/fs/cgroup{SERVICE}"]),
        (UNIFIED, "/", ["/sys/fs/cgroup"]),
        (HYBRID, SERVICE, [f"/sys/fs/cgroup/unified{SERVICE}"]),
        (part(SERVICE, "/mine"), SERVICE, ["/mine"]),
        (part(SERVICE, "/mine"), f"{SERVICE}/a b", ["/mine/a b"]),
        (part("/a", r"/with\040space"), "/a/b", ["/with space/b"]),
        (
            UNIFIED + part(SERVICE, f"/sys/fs/cgroup{SERVICE}"),
            SERVICE,
            [f"/sys/fs/cgroup{SERVICE}"] * 2,
        ),
        (part(SERVICE, "/mine"), f"{SERVICE}s", []),
        (part(SERVICE, "/mine"), "/system.slice", []),
        (part("/", "/sys/fs/cgroup"), "/../elsewhere", ["/sys/fs/cgroup/../elsewhere"]),
        ("", SERVICE, []),
    ],
)
def test_the_mounts_that_show_a_cgroup_tell_where(mounts: str, own: str, found: list[str]) -> None:
    assert list(directories(mounts, f"5:memory:/x\n0::{own}\n")) == found


def test_v1_alone_has_none() -> None:
    assert list(directories(HYBRID, "5:memory:/x\n1:name=systemd:/x\n")) == []
