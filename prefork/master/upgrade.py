"""Upgrades in place: the master executes the program anew, under the same pid; listeners, workers and clients stay.

First comes a rehearsal: the program, as it is on the disk now, is started beside the running one. It reads a copy of the
estate and the configuration, and loads the applications, as ``prefork check`` does. If it fails, or does not come to an
end in time, nothing changes. Then the master leaves the estate in memory that outlives its program, and executes
the new one, which goes on with everything and rolls a new generation out.

Should the new program fail all the same before it has taken over, the workers find the master gone: they finish what they
have and leave, and the guard sees to it.
"""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, NamedTuple

from prefork.config.schema import Config
from prefork.control.server import ControlServer, Reply
from prefork.errors import CommandError, PreforkError
from prefork.log import logger
from prefork.master.estate import Descriptor, decode, encode
from prefork.master.probe import probe
from prefork.master.release import Origin
from prefork.master.server import Server, load_certificates
from prefork.supervisor.events import Resume
from prefork.supervisor.server import Phase, Supervisor
from prefork.system import activation, notify, process, signals
from prefork.system.signals import SignalQueue

# Tells a program what it was started for. Its name is not like PREFORK_MASTER__NAME, which is for the configuration.
VARIABLE = "_PREFORK_UPGRADE"
REHEARSE, SUCCEED = "rehearse", "succeed"
GOOD = b"good"
# What the command line puts before an error; lines that follow are its hint, or further errors.
ERROR = "error: "
# Beside the loading of the applications, which has its own clock, everything takes much less than this, in seconds.
MARGIN = 10.0
MAX_OUTPUT = 32768
READ_SIZE = 65536

Waiter = tuple[Reply, float]


class Role(NamedTuple):
    """What a program was started for: to rehearse, with a descriptor for its verdict, or to succeed; with an estate."""

    estate: int
    verdict: int | None


# In the new program.


def role() -> Role | None:
    """Return what the master has started this program for, None if it was not the master; asked for once."""
    match os.environ.pop(VARIABLE, "").split():
        case [word, estate, verdict] if word == REHEARSE:
            return Role(int(estate), int(verdict))
        case [word, estate] if word == SUCCEED:
            return Role(int(estate), None)
    return None


def rehearse(part: Role, read: Callable[[], Config]) -> None:
    """Try all that may fail after the master has executed this program. Raises PreforkError if something does."""
    assert part.verdict is not None
    past, _ = decode(_take(part.estate), live=False)
    Supervisor(lambda: 0.0).handle(Resume(past["supervisor"]), time.monotonic())
    load_certificates(past["server"]["config"])  # until the new generation serves, its workers may be born
    config = read()
    needed = sum(pool.boot_timeout for pool in config.pools.values()) + MARGIN
    os.write(part.verdict, f"{needed}\n".encode())
    load_certificates(config)
    for failure in probe(config).errors:
        raise failure
    os.write(part.verdict, GOOD + b"\n")


def inherit(part: Role) -> dict[str, Any]:
    """Return what the program before has left. Raises UnreadableError."""
    past, descriptors = decode(_take(part.estate), live=True)
    process.close_on_exec(descriptors)
    return dict(past)


def _take(memory: int) -> bytes:
    with open(memory, "rb") as file:
        file.seek(0)
        return file.read()


# In the running program.


def estate_of(
    server: Server, supervisor: Supervisor, control: ControlServer, waiters: list[Waiter]
) -> dict[str, Any]:
    """Return all that the next program needs; ``waiters`` are told how its first rollout goes, and wait since then."""
    held = server.pid_file
    waiting = [(reply, since) for reply, since in waiters if not reply.gone]
    return {
        "server": server.past(),
        "supervisor": supervisor.past(),
        "control": control.past([reply for reply, _ in waiting]),
        "waiting_since": [since for _, since in waiting],
        "inherited": [
            Descriptor(number) for number in server.listeners.inherited()
        ],  # found by the environment
        "pid_file": [held.path, Descriptor(held.descriptor)] if held else None,
    }


class Rehearsal:
    """A run of the new program beside the master.

    Attributes:
        child: its process, in a session of its own.
        output: the end of what it prints.
        heard: what it has said of itself.
        failure: why it was ended, if it was.

    Raises OSError if it cannot be started.

    """

    def __init__(self, estate: bytes, origin: Origin, selector: selectors.BaseSelector) -> None:
        self.output = self.heard = b""
        self.failure: str | None = None
        self._selector = selector
        self._prints, prints = os.pipe()
        self._says, says = os.pipe()
        memory = _memory(estate)
        try:
            environment = _environment(origin, REHEARSE, memory, says)
            for name in (
                *activation.VARIABLES,
                *notify.VARIABLES,
            ):  # what the service manager says to the master
                environment.pop(name, None)
            self.child = process.start(origin.program(), environment, prints, [memory, says])
        except OSError:
            os.close(self._prints)
            os.close(self._says)
            raise
        finally:
            for descriptor in (prints, says, memory):
                os.close(descriptor)
        for descriptor in (self._prints, self._says):
            os.set_blocking(descriptor, False)

    def watch(self, on_word: Callable[[], None]) -> None:
        """Join the master's selector; ``on_word`` is called when it has said something."""

        def hear(_mask: int) -> None:
            if not self._hear():
                self._selector.unregister(self._says)
            on_word()

        def take(_mask: int) -> None:
            if not self._take_output():
                self._selector.unregister(self._prints)

        self._selector.register(self._says, selectors.EVENT_READ, hear)
        self._selector.register(self._prints, selectors.EVENT_READ, take)

    @property
    def is_good(self) -> bool:
        """Whether it has come to a good end."""
        return self.failure is None and GOOD in self.heard.split(b"\n")

    @property
    def needs(self) -> float | None:
        """How many seconds it needs from when it said so, which it does once it has read the configuration."""
        first, end, _ = self.heard.partition(b"\n")
        return float(first) if end else None

    def end(self, failure: str | None = None) -> None:
        """End it, if it has not been reaped."""
        self.failure = self.failure or failure
        process.kill_session(self.child)

    def close(self) -> None:
        """Take its last words and give back what the master held of it, once it is reaped."""
        while self._hear() or self._take_output():
            continue
        for descriptor in (self._says, self._prints):
            if descriptor in self._selector.get_map():
                self._selector.unregister(descriptor)
            os.close(descriptor)
        self.child.close()

    def _hear(self) -> bytes:
        data = _read(self._says)
        self.heard += data
        return data

    def _take_output(self) -> bytes:
        data = _read(self._prints)
        self.output = (self.output + data)[-MAX_OUTPUT:]
        return data


class Stage(Enum):
    """How far an upgrade has come. Before it rehearses, and before it executes, it waits for a verdict on a generation."""

    NONE = auto()
    ASKED = auto()
    REHEARSING = auto()
    REHEARSED = auto()


class Upgrade:
    """The upgrade that is under way, if any.

    Args:
        server, supervisor: the running master's.
        pending: the signals that this program has to take before another one can.
        selector: the master's.
        later: calls a function after so many seconds.
        estate: returns what is to be left, for the waiters that this one has.

    """

    def __init__(
        self,
        server: Server,
        supervisor: Supervisor,
        pending: SignalQueue,
        selector: selectors.BaseSelector,
        later: Callable[[float, Callable[[], None]], None],
        estate: Callable[[list[Waiter]], dict[str, Any]],
    ) -> None:
        self._server = server
        self._supervisor = supervisor
        self._pending = pending
        self._selector = selector
        self._later = later
        self._estate = estate
        self._rehearsal: Rehearsal | None = None
        self._stage = Stage.NONE
        self._waiters: list[Waiter] = []

    def ask(self, reply: Reply | None = None) -> None:
        """Begin an upgrade, or join the one that is under way; ``reply`` ends when its outcome is known."""
        if reply is not None:
            self._waiters.append((reply, time.monotonic()))
        if self._supervisor.phase is Phase.STOPPING:
            self._refuse("the server is stopping")
        elif self._stage is not Stage.NONE:
            self._say("one is under way already")
        else:
            self._reach(Stage.ASKED, "")

    def take(self, pid: int) -> None:
        """Take notice of a dead child; it may be the rehearsal's."""
        rehearsal = self._rehearsal
        if rehearsal is None or pid != rehearsal.child.pid:
            return
        self._rehearsal = None
        rehearsal.close()
        if rehearsal.is_good:
            self._reach(Stage.REHEARSED, "the new program is good; ")
        else:
            reason, before = last_words(rehearsal.output.decode("utf-8", "replace"))
            self._refuse(rehearsal.failure or f"the new program would not run: {reason}", before)

    def advance(self) -> None:
        """Do what can be done by now."""
        if self._supervisor.phase is Phase.STOPPING:
            self._withdraw()
        elif self._supervisor.can_be_resumed:
            if self._stage is Stage.ASKED:
                self._rehearse()
            elif self._stage is Stage.REHEARSED:
                self._execute()

    def _reach(self, stage: Stage, text: str) -> None:
        self._stage = stage
        if not self._supervisor.can_be_resumed:
            self._say(f"{text}waiting until the generation on trial is judged")

    def _withdraw(self) -> None:
        """Give up, because the server stops."""
        if self._rehearsal is not None:
            self._rehearsal.end("the server is stopping")
        elif self._stage is not Stage.NONE:
            self._refuse("the server is stopping")

    def _rehearse(self) -> None:
        self._stage = Stage.REHEARSING
        self._say("trying the new program")
        try:
            estate, _ = encode(self._estate([]))
            self._server.origin.enter()
            self._rehearsal = rehearsal = Rehearsal(estate, self._server.origin, self._selector)
        except OSError as error:
            self._refuse(f"the new program cannot be started: {error.strerror}")
        except CommandError as error:
            self._refuse(error.message)
        else:
            rehearsal.watch(lambda: self._hear(rehearsal))
            limit = max(pool.boot_timeout for pool in self._server.config.pools.values())
            self._set_clock(rehearsal, limit, "the configuration was not read", lambda: not rehearsal.needs)

    def _hear(self, rehearsal: Rehearsal) -> None:
        if rehearsal.is_good:
            rehearsal.end()  # a program that goes on after the server, as prefork.serve() can be in one, is not to
        elif rehearsal.needs is not None:
            self._set_clock(rehearsal, rehearsal.needs, "its applications were not loaded", lambda: True)

    def _set_clock(
        self, rehearsal: Rehearsal, limit: float, missed: str, is_missed: Callable[[], bool]
    ) -> None:
        def strike() -> None:
            if self._rehearsal is rehearsal and is_missed():
                rehearsal.end(f"the new program hangs: {missed} within {limit:g} s")

        self._later(limit, strike)

    def _execute(self) -> None:
        """Become the new program; come back only if that is not possible, or has to wait for a turn of the loop."""
        signals.block_all()
        memory = None
        try:
            if not self._pending.is_empty():
                return  # its signals are this program's to take; those that come from now on, the next one's
            estate, descriptors = encode(self._estate(self._waiters))
            memory = _memory(estate)
            origin = self._server.origin
            origin.enter()
            logger.info("executing %s", " ".join(origin.program()))
            process.replace(origin.program(), _environment(origin, SUCCEED, memory), [memory, *descriptors])
        except OSError as error:
            self._refuse(f"the new program cannot be executed: {error.strerror}")
        except PreforkError as error:
            self._refuse(error.message)
        finally:
            if memory is not None:
                os.close(memory)
            signals.unblock_all()

    def _say(self, text: str) -> None:
        logger.info("upgrade: %s", text)
        for reply, _ in self._waiters:
            reply.progress(text)

    def _refuse(self, reason: str, traceback: str = "") -> None:
        self._stage = Stage.NONE
        logger.error("no upgrade: %s%s", reason, traceback and f"\n{traceback}")
        logger.info("upgrade: the server goes on as before")
        waiters, self._waiters = self._waiters, []
        for reply, _ in waiters:
            reply.error(reason, "the server goes on as before", traceback)


def last_words(output: str) -> tuple[str, str]:
    """Return why a program has ended, in a line or more, and what it said before, such as a traceback."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()] or ["it says nothing"]
    end = next((number for number, line in enumerate(lines) if line.startswith(ERROR)), len(lines) - 1)
    reason = "\n".join(line.removeprefix(ERROR).lstrip() for line in lines[end:])
    return reason, "\n".join(lines[:end])


def _environment(origin: Origin, *words: object) -> dict[str, str]:
    """Return the environment of a new program, which is in the start folder of this one, by its name."""
    return {**os.environ, "PWD": origin.started.name, VARIABLE: " ".join(map(str, words))}


def _memory(data: bytes) -> int:
    memory = os.memfd_create("prefork-estate")
    with open(memory, "wb", closefd=False) as file:
        file.write(data)
    return memory


def _read(descriptor: int) -> bytes:
    """Return what is there, nothing at the end of file or if there is nothing yet."""
    try:
        return os.read(descriptor, READ_SIZE)
    except BlockingIOError:
        return b""
