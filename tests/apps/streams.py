"""Asynchronous socket handlers for the tests."""

import asyncio
import os
import signal
import sys
import time
from functools import partial

import prefork


async def pid(reader, writer):
    """Say who serves, and close."""
    writer.write(str(os.getpid()).encode())


async def echo(reader, writer):
    """Send back what comes, until the client's end."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def hold(reader, writer):
    """Say who serves, then hold the connection until the client closes."""
    writer.write(str(os.getpid()).encode())
    await reader.read()


async def web(reader, writer):
    """Answer HTTP requests, as far as the tests' clients speak it, until the client closes or the worker drains."""
    stopped = asyncio.ensure_future(prefork.current().stopped())
    while True:
        line = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
        await asyncio.wait([line, stopped], return_when=asyncio.FIRST_COMPLETED)
        is_last = stopped.done()
        try:
            head = await (asyncio.wait_for(line, 0.5) if is_last else line)
        except (asyncio.IncompleteReadError, TimeoutError):
            break
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length or 0))
        is_last = is_last or b"Connection: close" in head
        body = str(os.getpid()).encode()
        end = b"Connection: close\r\n" if is_last else b""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), end, body))
        await writer.drain()
        if is_last:
            break
    stopped.cancel()


async def act(reader, writer):
    """Do what the client's line says."""
    verb, *arguments = (await reader.readline()).decode().split()
    await globals()[f"do_{verb}"](reader, writer, *arguments)


async def do_pid(reader, writer):
    writer.write(str(os.getpid()).encode())


async def do_who(reader, writer):
    worker = prefork.current()
    writer.write(f"{worker.pool} {worker.slot} {worker.generation} {os.getpid()}".encode())


async def do_peer(reader, writer):
    names = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
    writer.write(repr(names).encode())


async def do_raise(reader, writer):
    writer.write(b"half")
    raise RuntimeError("the handler's own mistake")


async def do_exit(reader, writer, code):
    writer.write(b"leaving")
    sys.exit(int(code))


async def do_exit_task(reader, writer, code):
    async def leave():
        sys.exit(int(code))

    writer.write(b"leaving")
    await asyncio.wait([asyncio.create_task(leave())])


async def do_fail_task(reader, writer):
    async def fail():
        raise RuntimeError("nobody waits for this task")

    asyncio.create_task(fail())  # noqa: RUF006
    await asyncio.sleep(0)


async def do_leave_task(reader, writer):
    """Leave a task behind that says at its end what became of it."""

    async def linger():
        try:
            await asyncio.sleep(1000)
        finally:
            sys.stderr.write("left behind, cancelled\n")

    linger.task = asyncio.create_task(linger())
    await asyncio.sleep(0)


async def do_close(reader, writer):
    writer.write(b"closed by the handler")
    writer.close()
    await writer.wait_closed()


async def do_unread(reader, writer, size):
    """Send so many bytes and return, whatever else the client has sent."""
    writer.write(bytes(int(size)))


async def do_sleep(reader, writer, seconds):
    writer.write(b"began ")
    await asyncio.sleep(float(seconds))
    writer.write(b"slept")


async def do_block(reader, writer, quiet, seconds):
    """Block the loop after a quiet time."""
    writer.write(b"began ")
    await asyncio.sleep(float(quiet))
    block(float(seconds))
    writer.write(b"done")


def block(seconds):
    time.sleep(seconds)


async def do_extend(reader, writer, more, seconds):
    prefork.current().extend(float(more))
    writer.write(b"began ")
    await asyncio.sleep(float(seconds))
    writer.write(b"done")


async def do_stubborn(reader, writer):
    """Take no notice of a cancellation, until the client closes."""
    writer.write(b"began ")
    while True:
        try:
            await reader.read()
            return
        except asyncio.CancelledError:
            continue


async def do_stop(reader, writer):
    writer.write(b"waiting ")
    await prefork.current().stopped()
    writer.write(b"stopping" if prefork.current().stopping.is_set() else b"not stopping")


async def do_thread(reader, writer):
    """Wait in an event loop of another thread."""
    writer.write(b"waiting ")
    await asyncio.to_thread(asyncio.run, prefork.current().stopped())
    writer.write(b"stopping")


async def do_signal(reader, writer):
    """Have the loop hear a signal, and answer when it has come."""
    heard = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, heard.set)
    writer.write(b"waiting ")
    await heard.wait()
    writer.write(b"heard")


async def do_fork(reader, writer):
    """Fork, and let both go on as if nothing had happened."""
    writer.write(b"forked" if os.fork() else b"")


class Greeter:
    """An object that is called."""

    async def __call__(self, _reader, writer):
        writer.write(b"hello from an object")


greeter = Greeter()


async def greet(word, reader, writer):
    writer.write(word)


partial_greet = partial(greet, b"hello from a part")


async def one_argument(reader):
    pass
