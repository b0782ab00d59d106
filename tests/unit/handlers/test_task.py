"""Which functions are tasks."""

from __future__ import annotations

from functools import partial

import pytest

from prefork.errors import BootError
from prefork.handlers.load import is_async
from prefork.handlers.task import adapt


def run(worker):
    return worker


async def run_async(worker):
    return worker


class Task:
    async def __call__(self, worker):
        return worker


@pytest.mark.parametrize(
    ("target", "is_coroutine"),
    [(run, False), (print, False), (run_async, True), (Task(), True), (partial(run_async), True)],
)
def test_whatever_takes_the_worker_is_a_task(target, is_coroutine):
    assert adapt(target) is target
    assert is_async(target) is is_coroutine


async def run_two(worker, other):
    return worker, other


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("text", "'text'"),
        (lambda: None, "def <lambda>(): too many positional arguments"),
        (run_two, "async def run_two(worker, other): missing a required argument: 'other'"),
    ],
)
def test_what_does_not_is_refused(target, found):
    with pytest.raises(BootError) as caught:
        adapt(target)
    assert caught.value.message == f"expected def run(worker), found {found}"
