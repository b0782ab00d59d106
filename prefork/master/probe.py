"""Loads every application in a child process and says what is wrong: ``prefork check``. Nothing else happens."""

from __future__ import annotations

import os
import select
import signal
import struct
import time
from contextlib import suppress
from typing import NoReturn

import msgspec

from prefork.config.schema import Config, Folder, Pool
from prefork.errors import BootError
from prefork.master.machine import examine
from prefork.master.release import Origin, pin
from prefork.system import process, signals
from prefork.system.privileges import Account
from prefork.worker import main
from prefork.worker.settle import settle_in

READ_SIZE = 65536
# Before the verdict, its size: the end of file does not come while a process that the application has started lives.
SIZE = struct.Struct("!I")
# Far more than any traceback takes; what is longer is cut, and so no verdict.
MAX_VERDICT = 1 << 24


class Verdict(msgspec.Struct):
    """How the loading of one application went; no reason: well."""

    reason: str | None = None
    hint: str | None = None
    traceback: str = ""
    doubts: tuple[str, ...] = ()


class Findings(msgspec.Struct, frozen=True):
    """What the loading of all applications has shown.

    Attributes:
        errors: what keeps applications, or the hooks, from being loaded; empty if nothing does.
        doubts: what may be a mistake, in words.

    """

    errors: list[BootError]
    doubts: tuple[str, ...]


def probe(config: Config) -> Findings:
    """Load the hooks and the application of each pool of a configuration, and return what that has shown.

    Raises ConfigError for directories, users and groups that this machine does not have.
    """
    config = pin(config)
    path = Origin().pinned_path()
    accounts = examine(config)
    errors: dict[str, BootError] = {}
    doubts: dict[str, None] = {}
    for pool in config.pools.values():
        verdict = _load_in_child(config, pool, accounts[pool.name], path)
        doubts |= dict.fromkeys(verdict.doubts)
        if verdict.reason is not None:
            where = "" if verdict.reason.startswith("[hooks]") else f"[pool.{pool.name}] "
            message = f"{where}{verdict.reason}"  # the same of all pools if it is the hooks'
            errors[message] = BootError(message, verdict.hint, verdict.traceback)
    return Findings(list(errors.values()), tuple(doubts))


def _load_in_child(config: Config, pool: Pool, account: Account | None, path: tuple[Folder, ...]) -> Verdict:
    read, write = os.pipe()
    child = process.fork(lambda: _load(config, pool, account, path, write))
    os.close(write)
    try:
        data = _read_verdict(read, pool.boot_timeout)
    finally:
        with suppress(ProcessLookupError):
            child.send_signal(signal.SIGKILL)
        code = process.wait_for(child.pid)
        child.close()
        os.close(read)
    if data is None:
        return Verdict(f"not loaded after {pool.boot_timeout:g} s (boot_timeout)")
    if not data:
        return Verdict(f"its process ended while it was loaded: {code}")
    try:
        return msgspec.msgpack.decode(data, type=Verdict)
    except (
        msgspec.DecodeError,
        UnicodeDecodeError,
        RecursionError,
    ):  # the application has written there, too
        return Verdict("its process sent no verdict but something else while it was loaded")


def _load(
    config: Config, pool: Pool, account: Account | None, path: tuple[Folder, ...], write: int
) -> NoReturn:
    process.close_all_but([write])
    signals.unblock_all()
    try:
        settle_in(pool, config.master, account, path)
        verdict = Verdict(doubts=main.rehearse(pool, config.hooks.module))
    except BootError as error:
        verdict = Verdict(error.message, error.hint, error.traceback)
    with open(write, "wb") as pipe:
        data = msgspec.msgpack.encode(verdict)
        pipe.write(SIZE.pack(len(data)) + data)
    os._exit(0)


def _read_verdict(descriptor: int, timeout: float) -> bytes | None:
    """Return the verdict, nothing if the end of file comes before it, or None if it has not come in time."""
    until = time.monotonic() + timeout
    head = _read(descriptor, SIZE.size, until)
    return _read(descriptor, min(SIZE.unpack(head)[0], MAX_VERDICT), until) if head else head


def _read(descriptor: int, size: int, until: float) -> bytes | None:
    """Return exactly so many bytes, nothing if they end early, or None if they have not come in time."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    data = b""
    while len(data) < size:
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            return None
        piece = os.read(descriptor, min(READ_SIZE, size - len(data)))
        if not piece:
            return b""
        data += piece
    return data
