"""Applications that meddle with signals."""

import asyncio
import os
import signal
import sys
import time


class OutOfTimeError(Exception):
    """What a handler raises that comes too late."""


def late(number, frame):
    """Be what people write to limit a request's time."""
    raise OutOfTimeError


def app(environ, start_response):
    """Do what the path says, answer with the pid."""
    act(environ["PATH_INFO"])
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def handle(sock, address):
    """Do the same for a line."""
    act("/" + sock.recv(100).decode().strip())
    sock.sendall(str(os.getpid()).encode())


async def handle_async(reader, writer):
    """Do the same in a coroutine."""
    line = (await reader.readline()).decode().strip()
    loop = asyncio.get_running_loop()
    if line in ("add", "remove"):
        loop.add_signal_handler(signal.SIGTERM, lambda: print("heard", file=sys.stderr))
    if line == "remove":
        assert loop.remove_signal_handler(signal.SIGTERM)
        assert not loop.remove_signal_handler(signal.SIGTERM)
    act(f"/{line}")
    writer.write(str(os.getpid()).encode())


def act(path):
    if path == "/asyncio":
        asyncio.run(with_handlers(signal.SIGTERM, signal.SIGUSR1))
    elif path == "/asyncio-usr1":
        asyncio.run(with_handlers(signal.SIGUSR1))
    elif path == "/slow":
        print("begun", flush=True)
        time.sleep(0.5)


async def with_handlers(*numbers):
    for number in numbers:
        asyncio.get_running_loop().add_signal_handler(number, print)
    await asyncio.sleep(0)
