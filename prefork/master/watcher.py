"""For development: a small process beside the master that watches files and tells it of changes (reload_on_change).

It runs the package watchfiles, which has threads of its own and so no place in a process that forks. It ends with the
master, is started again when it dies, and another one takes its place when the patterns change.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

import msgspec

from prefork.config.patterns import expression, folder_of, goes_deeper
from prefork.config.schema import Config
from prefork.log import logger
from prefork.system import process, signals
from prefork.system.process import Child

if TYPE_CHECKING:
    from watchfiles import Change

# Changes are told once none has come for STEP milliseconds, after GATHER milliseconds at the latest.
STEP = 100
GATHER = 1600
# A watcher that has died is started again after a pause, a longer one each time, unless it has lived for long.
PAUSE = 1.0
LONGEST_PAUSE = 60.0
LONG_LIFE = 10.0
MAX_PACKET = 65536
MAX_TEXT = 4096


class News(msgspec.Struct, frozen=True, tag=True):
    """Anything that the watcher says."""


class Watching(News, frozen=True):
    """From now on changes of these files are seen."""

    patterns: list[str]


class Changed(News, frozen=True):
    """A file has changed, and so many others with it."""

    path: str
    others: int


class Trouble(News, frozen=True):
    """Nothing can be watched, for this reason; the process ends now."""

    reason: str


_decoder = msgspec.msgpack.Decoder(Watching | Changed | Trouble)


def patterns_of(config: Config) -> tuple[str, ...]:
    """Return the patterns of all pools, each once."""
    found = (pattern for pool in config.pools.values() for pattern in pool.reload_on_change)
    return tuple(dict.fromkeys(found))


class Watcher:
    """The master's hold on the process that watches, if there is anything to watch.

    Args:
        set_title: gives a process its title.
        selector: of the master's loop.
        on_change: called when files have changed.
        later: calls a function after so many seconds.

    """

    def __init__(
        self,
        set_title: Callable[[str], None],
        selector: selectors.BaseSelector,
        on_change: Callable[[], None],
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._set_title = set_title
        self._selector = selector
        self._on_change = on_change
        self._later = later
        self._name = ""
        self._patterns: tuple[str, ...] = ()
        self._child: Child | None = None
        self._channel: socket.socket | None = None
        self._pause = PAUSE
        self._born = 0.0

    def follow(self, config: Config) -> None:
        """Watch what this configuration wants to have watched."""
        self._name = config.master.name
        wanted = patterns_of(config)
        if wanted != self._patterns:
            self._patterns = wanted
            self.dismiss()
            self._start()

    def mourn(self, pid: int) -> bool:
        """Take notice of a child's death; return whether it was the watcher, which is started again soon."""
        if self._child is None or self._child.pid != pid:
            return False
        while self._hear():
            pass
        self._forget()
        if time.monotonic() - self._born > LONG_LIFE:
            self._pause = PAUSE
        logger.error("the watcher of files has ended; the next try is in %.0f s", self._pause)
        self._later(self._pause, self._start)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        return True

    def dismiss(self) -> int | None:
        """End the watcher and return its pid, if there is one; it has yet to be reaped."""
        pid = None
        if self._child is not None:
            pid = self._child.pid
            with suppress(ProcessLookupError):
                self._child.send_signal(signal.SIGKILL)
        self._forget()
        return pid

    def _start(self) -> None:
        if not self._patterns or self._child is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            self._child = process.fork(lambda: self._be_watcher(theirs))
        except OSError as error:
            ours.close()
            logger.error("files are not watched: cannot fork: %s", error.strerror)
            self._later(LONGEST_PAUSE, self._start)
            return
        finally:
            theirs.close()
        self._channel, self._born = ours, time.monotonic()
        self._selector.register(ours, selectors.EVENT_READ, lambda _mask: self._hear())

    def _forget(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None
        if self._channel is not None:
            self._stop_listening(self._channel)
            self._channel.close()
            self._channel = None

    def _stop_listening(self, channel: socket.socket) -> None:
        if channel in self._selector.get_map():
            self._selector.unregister(channel)

    def _hear(self) -> bool:
        """Take one piece of news; return whether there may be more."""
        if self._channel is None:
            return False
        try:
            packet = self._channel.recv(MAX_PACKET)
        except BlockingIOError:
            return False
        if not packet:  # it is dead, or about to die: it will be reaped
            self._stop_listening(self._channel)
            return False
        self._take(_decoder.decode(packet))
        return True

    def _take(self, news: Watching | Changed | Trouble) -> None:
        match news:
            case Watching(patterns):
                logger.info("watching %s", ", ".join(patterns))
            case Changed(path, others):
                logger.info("%s has changed%s", path, f", and {others} more" if others else "")
                self._on_change()
            case Trouble(reason):
                logger.error("files are not watched: %s", reason)

    def _be_watcher(self, channel: socket.socket) -> NoReturn:
        process.close_all_but([channel.fileno()])
        signals.reset_for_worker()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to the whole group, it means the master
        signals.unblock_all()
        self._set_title(f"prefork: watcher {self._name}")
        _watch(channel, self._patterns)


def _watch(channel: socket.socket, patterns: Iterable[str]) -> NoReturn:
    """Tell of changes until the other end of the channel is closed.

    Folders below are watched only for patterns that need them: there may be very many.
    """
    groups: dict[bool, list[str]] = {}
    for pattern in patterns:
        groups.setdefault(goes_deeper(pattern), []).append(pattern)
    for is_deep, chosen in groups.items():
        threading.Thread(target=_report, args=(channel, chosen, is_deep), daemon=True).start()
    channel.recv(1)
    os._exit(0)


def _report(channel: socket.socket, patterns: list[str], is_deep: bool) -> None:
    try:
        _report_changes(channel, patterns, is_deep)
    except BaseException as error:  # noqa: BLE001 - the master is told, and starts another watcher
        _say(channel, Trouble(f"{type(error).__name__}: {error}"[:MAX_TEXT]))
        os._exit(1)


def _report_changes(channel: socket.socket, patterns: list[str], is_deep: bool) -> None:
    from watchfiles import watch

    folders = sorted({folder_of(pattern) for pattern in patterns})
    is_told = False
    for changes in watch(
        *folders,
        watch_filter=_filter(patterns),
        debounce=GATHER,
        step=STEP,
        rust_timeout=STEP,
        yield_on_timeout=True,  # the first time it says that it has begun
        recursive=is_deep,
        ignore_permission_denied=True,
    ):
        if not is_told:
            is_told = True
            _say(channel, Watching(patterns))
        if changes:
            paths = sorted(path for _, path in changes)
            _say(channel, Changed(paths[0][:MAX_TEXT], len(paths) - 1))


def _filter(patterns: list[str]) -> Callable[[Change, str], bool]:
    """Return what tells whether a changed file counts: what tools write beside their sources does not.

    Those are __pycache__, .git, editors' copies and the like within the pattern's folder, whatever is above it.
    """
    from watchfiles import DefaultFilter

    is_source = DefaultFilter()
    wanted = [(folder_of(pattern), expression(pattern)) for pattern in patterns]

    def counts(change: Change, path: str) -> bool:
        return any(
            found.fullmatch(path) and is_source(change, os.path.relpath(path, folder))
            for folder, found in wanted
        )

    return counts


def _say(channel: socket.socket, news: News) -> None:
    with suppress(OSError):  # the master has gone; so will this process
        channel.send(msgspec.msgpack.encode(news))
