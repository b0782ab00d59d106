"""Where a coroutine waits, for people."""

from __future__ import annotations

import asyncio

from prefork.worker.aio import stack_of


async def outer(event: asyncio.Event) -> None:
    await inner(event)


async def inner(event: asyncio.Event) -> None:
    await event.wait()


def test_a_stack_leads_from_the_handler_to_what_it_awaits():
    async def run() -> str:
        event = asyncio.Event()
        task = asyncio.create_task(outer(event))
        await asyncio.sleep(0)
        found = stack_of(task.get_coro())
        event.set()
        await task
        assert stack_of(task.get_coro()) == ""
        return found

    lines = asyncio.run(run()).splitlines()
    places = [line.rpartition(" in ")[2] for line in lines if line.startswith("  File")]
    assert places == ["outer", "inner", "wait"]
    assert lines[1].strip() == "await inner(event)"
