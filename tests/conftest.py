"""What all tests share: how often a test of chance repeats, and hypothesis without a clock."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

# The machine may be busy with something else: how long an example takes says nothing about the code.
settings.register_profile(
    "prefork",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("prefork")


# A shell starts what runs in its background with SIGINT ignored, and programs inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--long``, which runs tests of chance with all their repetitions."""
    parser.addoption("--long", action="store_true", help="run all repetitions of tests of chance (hours)")


@pytest.fixture
def repetitions(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """Give a function that returns ``full`` with ``--long`` and ``sample`` without it."""
    is_long = request.config.getoption("--long")

    def repeat(full: int, sample: int) -> int:
        return full if is_long else sample

    return repeat
