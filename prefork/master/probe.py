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

from prefork.config.schema import Config, Pool
from prefork.errors import BootError
from prefork.master.listeners import check_accounts
from prefork.master.server import check_templates
from prefork.system import process, signals
from prefork.system.privileges import Account, find_account
from prefork.worker import main

READ_SIZE = 65536
# Before the verdict, its size: the end of file does not come while a process that the application has started lives.
SIZE = struct.Struct("!I")


class Verdict(msgspec.Struct):
    """How the loading of one application went; no reason: well."""

    reason: str | None = None
    hint: str | None = None
    traceback: str = ""


def probe(config: Config) -> list[BootError]:
    """Return what keeps the applications of a configuration from being loaded; empty if nothing does.

    Raises ConfigError for users, groups and features that this machine does not have.
    """
    check_accounts(config)
    check_templates(config, process.has_subreapers())
    account = find_account(config.master.user, config.master.group)
    errors = []
    for pool in config.pools.values():
        verdict = _load_in_child(config, pool, account)
        if verdict.reason is not None:
            errors.append(BootError(f"[pool.{pool.name}] {verdict.reason}", verdict.hint, verdict.traceback))
    return errors


def _load_in_child(config: Config, pool: Pool, account: Account | None) -> Verdict:
    read, write = os.pipe()
    child = process.fork(lambda: _load(config, pool, account, write))
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
    return msgspec.msgpack.decode(data, type=Verdict)


def _load(config: Config, pool: Pool, account: Account | None, write: int) -> NoReturn:
    process.close_all_but([write])
    signals.unblock_all()
    try:
        main.prepare(pool, config.master, account)
        verdict = Verdict()
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
    return _read(descriptor, SIZE.unpack(head)[0], until) if head else head


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
