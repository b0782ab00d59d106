"""What the master says of a worker that could not be made."""

from __future__ import annotations

import errno
import os
from typing import Any, cast

import pytest

from prefork.master.perform import spawn
from prefork.master.server import Server
from prefork.supervisor.actions import Spawn
from prefork.supervisor.events import SpawnFailed
from tests.unit.supervisor.building import pool


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EPERM, "operation not permitted"),
        (errno.EFBIG, "file too large (RLIMIT_FSIZE, ulimit -f, counts for it as well)"),
    ],
)
def test_a_scoreboard_that_cannot_be_made_is_no_fork_that_failed(number, reason):
    class Short:
        def board_for(self, _pool: Any) -> Any:
            raise OSError(number, os.strerror(number))

    found = spawn(cast(Server, Short()), Spawn(1, pool(), 0, 1))
    assert isinstance(found, SpawnFailed)
    assert found.reason == f"cannot make the scoreboard by memfd_create(2): {reason}"
