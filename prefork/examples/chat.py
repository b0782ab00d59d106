"""A chat room for each worker: what a client types, all others in the room read. It closes when the worker drains."""

from __future__ import annotations

import asyncio

import prefork

PATIENCE = 65536  # what a client may leave unread, in bytes; who is slower is shown the door
room: dict[asyncio.StreamWriter, str] = {}


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one client until either side ends it."""
    goodbye = asyncio.create_task(close_on_drain(writer))
    try:
        await converse(reader, writer)
    finally:
        goodbye.cancel()


async def close_on_drain(writer: asyncio.StreamWriter) -> None:
    """Wait until the worker drains; then the conversation is over as if the client had left."""
    await prefork.current().stopped()
    writer.write(b"* the server restarts, come back in a moment\n")
    writer.close()


async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take a client into the room, and let everybody know what it says."""
    writer.write(b"* your name? ")
    name = (await reader.readline()).decode(errors="replace").strip()
    if not name:
        return
    room[writer] = name
    tell(f"* {name} is here; in the room: {', '.join(sorted(room.values()))}")
    try:
        while line := (await reader.readline()).decode(errors="replace"):
            tell(f"{name}: {line.rstrip()}", but=writer)
    finally:
        del room[writer]
        tell(f"* {name} has left")


def tell(text: str, but: asyncio.StreamWriter | None = None) -> None:
    """Say something to everybody in the room; a client who does not read must not make the others wait."""
    for writer in room:
        if writer is but or writer.is_closing():
            continue
        if writer.transport.get_write_buffer_size() > PATIENCE:
            writer.transport.abort()
        else:
            writer.write(f"{text}\n".encode())
