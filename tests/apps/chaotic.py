"""An application, a coroutine and a task that work for as long as chaos lasts."""

from __future__ import annotations

import asyncio
import time


def app(environ, start_response):
    environ["wsgi.input"].read()
    time.sleep(0.002)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]


async def handle(reader, writer):
    """Answer one request, as a small server of its own."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.lower().splitlines():
        if line.startswith(b"content-length:"):
            await reader.readexactly(int(line.split(b":")[1]))
    await asyncio.sleep(0.002)
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello")


def run(worker):
    worker.stopping.wait()
