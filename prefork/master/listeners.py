"""The listening sockets: bound before any fork, shared with the workers, and closed without a reset.

Nobody else's socket is ever touched: a path is taken over only when nobody answers there, and unlinked only while
it is still the file that was put there. An inherited socket is never shut either: it belongs to who passed it on,
and clients wait in its queue for the next start.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain

import msgspec

from prefork.config.listeners import Key
from prefork.config.schema import Config, Listen
from prefork.errors import ConfigError, ListenError, Problem
from prefork.log import logger
from prefork.master.holders import holder_of, is_being_left
from prefork.system import tcp
from prefork.system.activation import inherited_sockets, is_listening
from prefork.system.privileges import find_group, find_user
from prefork.units import UNIX_PATH_LIMIT, Address, InheritedAddress, TcpAddress, UnixAddress, short_hash

# How often an address is tried again that orphans are about to leave. Nothing else waits meanwhile: it is a start.
ORPHANS_PAUSE = 0.02
# What chown(2) takes for an owner or group that is to stay.
UNCHANGED = -1
NO_ACCESS = (None, None, None)


class Listener(msgspec.Struct):
    """A bound, listening socket; for a Unix socket also its file, and where this was put, whatever links led there."""

    listen: Listen
    socket: socket.socket
    file: tuple[int, int] | None = None
    real_path: str = ""
    shut: bool = False
    is_dead: bool = False
    awaits_bytes: bool = False

    @property
    def address(self) -> Address:
        """Where it listens in fact: with the port that the kernel chose for port 0."""
        if isinstance(self.listen.address, UnixAddress):
            return self.listen.address
        name = self.socket.getsockname()
        return UnixAddress(name) if self.socket.family == socket.AF_UNIX else TcpAddress(*name[:2])

    @property
    def is_inherited(self) -> bool:
        """Whether it belongs to somebody else, who has passed it on."""
        return isinstance(self.listen.address, InheritedAddress)

    def await_first_bytes(self, wanted: bool) -> None:
        """Let clients wait for a worker when they have said something, or as soon as they are connected.

        What a program sets itself stays, and so does what an inherited socket has: systemd knows DeferAcceptSec=.
        """
        if wanted != self.awaits_bytes and isinstance(self.listen.address, TcpAddress):
            tcp.await_first_bytes(self.socket, wanted)
            self.awaits_bytes = wanted


class Listeners:
    """All listeners of a server, by the keys of the configuration; an inherited name may mean several."""

    def __init__(self) -> None:
        self._open: dict[Key, list[Listener]] = {}
        # Unix sockets that no client can find any more, while a rollout puts others in their place.
        self._lost: dict[Key, list[Listener]] = {}
        self._inherited = inherited_sockets(os.environ)

    def of(self, key: Key) -> list[Listener]:
        """Return the listeners that are open for a key."""
        return self._open.get(key, [])

    def past(self) -> dict[Key, list[Listener]]:
        """Return all of them, for a program that goes on with them."""
        return self._open

    def resume(self, past: dict[Key, list[Listener]]) -> None:
        """Go on with those of the program before."""
        self._open = past

    def inherited(self) -> list[int]:
        """Return the descriptors of the sockets that were passed to this process: an exec must not close them."""
        return [found.fileno() for found in chain.from_iterable(self._inherited.values())]

    def own_sockets(self) -> list[socket.socket]:
        """Return the sockets of all listeners that are not somebody else's."""
        return [listener.socket for listener in self._all() if not listener.is_inherited]

    def all(self) -> list[Listener]:
        """Return every listener."""
        return list(self._all())

    def _all(self) -> Iterator[Listener]:
        return chain.from_iterable(self._open.values())

    def open(self, wanted: Mapping[Key, Listen], patience: float = 0.0) -> list[Listener]:
        """Open what is wanted and not open yet, all or nothing, and return it.

        Workers of a dead master may hold an address until they have noticed: they are given ``patience`` seconds.
        Raises ListenError.
        """
        until = time.monotonic() + patience
        opened: dict[Key, list[Listener]] = {}
        rebound: dict[Key, list[Listener]] = {}
        try:
            for key, listen in wanted.items():
                if key not in self._open or not all(_reopen_doors(listener) for listener in self._open[key]):
                    opened[key] = self._obtain(listen, until)
                elif not any(_is_found(listener) for listener in self._open[key]):
                    logger.warning("%s: its file is gone; putting another one there", listen.address)
                    rebound[key] = self._obtain(listen, until)
        except ListenError:
            for listener in chain(*opened.values(), *rebound.values()):
                _close(listener)
            raise
        for key in opened.keys() & self._open.keys():
            for listener in self._open[key]:
                _close(listener)
        self._open |= opened
        for key, new in rebound.items():
            self._lost[key] = self._open[key]
            self._open[key] = [*self._lost[key], *new]
        return list(chain(*opened.values(), *rebound.values()))

    def settle_rebound(self, is_good: bool) -> bool:
        """End the time in which both a lost Unix socket and the one in its place are open; return whether there was one.

        Args:
            is_good: whether the rollout went well. Then all workers have the new one, and the old one's last clients
                were served by those that had both; if not, no worker has the new one.

        """
        lost, self._lost = self._lost, {}
        for key in lost.keys() & self._open.keys():
            old = [listener for listener in self._open[key] if any(listener is each for each in lost[key])]
            new = [
                listener for listener in self._open[key] if not any(listener is each for each in lost[key])
            ]
            self._open[key] = new if is_good else old
            for listener in old if is_good else new:
                (_leave if is_good else _close)(listener)
        return bool(lost)

    def _obtain(self, listen: Listen, until: float) -> list[Listener]:
        if isinstance(listen.address, InheritedAddress):
            return self._take_over(listen, listen.address.name)
        own = [listener for listener in self._all() if not listener.is_inherited]
        if wider := [listener for listener in own if _includes(listener.address, listen.address)]:
            raise ListenError(
                f"cannot listen on {listen.address}: this server listens on {wider[0].address} itself, which includes it",
                "a change from one to the other takes a new start: prefork stop, then prefork run",
            )
        narrower = [listener.socket for listener in own if _includes(listen.address, listener.address)]
        with tcp.shared_port(narrower):
            return [bind(listen, until, shares_port=bool(narrower))]

    def _take_over(self, listen: Listen, name: str) -> list[Listener]:
        """Return copies of inherited sockets, which stay open for a later configuration. Raises ListenError."""
        what = f"cannot listen on {listen.address}"
        if name not in self._inherited:
            names = ", ".join(self._inherited) or "none"
            raise ListenError(
                f"{what}: no socket of this name was inherited; there are: {names}",
                "systemd passes the sockets of a .socket unit, named by its FileDescriptorName=",
            )
        if not all(map(is_listening, self._inherited[name])):
            raise ListenError(
                f"{what}: expected listening stream sockets", "in the .socket unit: ListenStream=, Accept=no"
            )
        copies = [found.dup() for found in self._inherited[name]]
        for copy in copies:
            copy.setblocking(False)
        return [Listener(listen, copy) for copy in copies]

    def alter(self, wanted: Mapping[Key, Listen]) -> None:
        """Give open listeners the options that they have now: backlog, mode, owner and group. Raises ListenError."""
        for key, listen in wanted.items():
            for listener in self._open[key]:
                if listener.listen != listen and _is_found(listener):
                    _alter(listener, listen)

    def shut_doors(self, keys: Collection[Key]) -> None:
        """Let no new client in; those who wait stay. A Unix socket is unlinked, so it cannot be found any more."""
        for listener in chain.from_iterable(map(self.of, keys)):
            if not listener.shut and not listener.is_inherited:
                listener.shut = True
                if isinstance(listener.listen.address, TcpAddress):
                    tcp.refuse_handshakes(listener.socket)
                else:
                    _unlink_own(listener)

    def keep(self, keys: Collection[Key]) -> list[Address]:
        """Close all listeners but these, and return where they listened."""
        gone = [self._open.pop(key) for key in list(self._open) if key not in keys]
        unwanted = list(chain.from_iterable(gone))
        addresses = [listener.address for listener in unwanted]  # a closed socket does not know it any more
        for listener in unwanted:
            _close(listener)
        return addresses


def _alter(listener: Listener, listen: Listen) -> None:
    with _reported(listen):
        if not listener.is_inherited:
            listener.socket.listen(listen.backlog)
        if isinstance(listen.address, UnixAddress) and (listen.mode, listen.owner, listen.group) != NO_ACCESS:
            _set_access(listen, listen.address.path, listener.file)
    listener.listen = listen


def check_accounts(config: Config) -> None:
    """Raise ConfigError for owners and groups of Unix sockets that this machine does not have."""
    problems = []
    for pool in config.pools.values():
        for listen in pool.listen:
            try:
                _find_accounts(listen)
            except ConfigError as error:
                problems.append(Problem(f"[pool.{pool.name}] listen: {listen.address}: {error.message}"))
    if problems:
        raise ConfigError(problems)


def _includes(wide: Address, narrow: Address) -> bool:
    """Tell whether one address stands for all of this machine's, and another of them has the same port."""
    return isinstance(wide, TcpAddress) and isinstance(narrow, TcpAddress) and wide.includes(narrow)


def bind(listen: Listen, until: float = 0.0, *, shares_port: bool = False) -> Listener:
    """Return a new listener, waiting for orphans to leave the address until that moment on the monotonic clock.

    With ``shares_port`` there may be listeners of this server's own at one of the addresses that it stands for.
    Raises ListenError with a hint about who has the address.
    """
    while True:
        try:
            return _bind(listen, shares_port)
        except ListenError:
            if time.monotonic() >= until or not is_being_left(listen.address):
                raise
            time.sleep(ORPHANS_PAUSE)


def _bind(listen: Listen, shares_port: bool) -> Listener:
    if isinstance(listen.address, UnixAddress):
        return _bind_unix(listen, listen.address.path)
    assert isinstance(listen.address, TcpAddress)
    return _bind_tcp(listen, listen.address, shares_port)


def _bind_tcp(listen: Listen, address: TcpAddress, shares_port: bool) -> Listener:
    ipv6 = ":" in address.host
    made = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        with _reported(listen):
            # Connections of an earlier server in TIME_WAIT do not keep the port (socket(7)).
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if ipv6:
                # [::]:80 beside 0.0.0.0:80 means both, each said where it is meant (ipv6(7)).
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            with tcp.shared_port([made] if shares_port else []):
                made.bind((address.host, address.port))
                made.listen(listen.backlog)
            made.setblocking(False)
    except ListenError:
        made.close()
        raise
    return Listener(listen, made)


def _bind_unix(listen: Listen, path: str) -> Listener:
    """Bind beside the path and rename into place: clients find the old socket or the new one, ready, with its mode."""
    _check_free(path)
    beside = os.path.join(os.path.dirname(path), f".{os.getpid()}.{short_hash(path)}")
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _reported(listen):
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            with suppress(FileNotFoundError):
                os.unlink(beside)
            _bind_at(made, beside)
            bound = os.lstat(beside)
            file = (bound.st_dev, bound.st_ino)
            if (listen.mode, listen.owner, listen.group) != NO_ACCESS:
                _set_access(listen, beside, file)
            made.listen(listen.backlog)
            made.setblocking(False)
            os.rename(beside, path)
    except BaseException:
        made.close()
        with suppress(OSError):
            os.unlink(beside)
        raise
    return Listener(listen, made, file, os.path.realpath(path))


def _bind_at(made: socket.socket, path: str) -> None:
    """Bind to a path that may be longer than an address may be: a temporary name can be longer than the one in the end."""
    if len(os.fsencode(path)) <= UNIX_PATH_LIMIT:
        made.bind(path)
        return
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        made.bind(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    finally:
        os.close(folder)


def _check_free(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return  # nothing there; if the folder is the trouble, bind says so
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"cannot listen on unix:{path}: a file is there that is no socket", "move it away")
    if _answers(path):
        raise ListenError(
            f"cannot listen on unix:{path}: a running server listens there", "stop it, or choose another path"
        )


def _answers(path: str) -> bool:
    """Tell whether somebody listens on a Unix socket; a full queue is somebody's too."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        found = probe.connect_ex(path)
    return found in (0, errno.EAGAIN, errno.EINPROGRESS)


def _set_access(listen: Listen, path: str, file: tuple[int, int] | None) -> None:
    """Give a Unix socket its mode, owner and group, if it is still the one that was bound. Raises OSError.

    Its folder may belong to the user of the workers, who can put a link to a file of root's in its place: so the socket is
    opened first, by a descriptor that only names it (O_PATH, open(2)), and what is changed is what that descriptor names.
    """
    owner, group = _find_accounts(listen)
    with _name_of(path, file) as name:
        if listen.mode is not None:
            os.chmod(name, listen.mode)
        if (owner, group) != (UNCHANGED, UNCHANGED):
            os.chown(name, owner, group)


@contextmanager
def _name_of(path: str, file: tuple[int, int] | None) -> Iterator[str]:
    """Give a name by which a socket's file is found whatever becomes of its path; where there is none, the path."""
    if not hasattr(os, "O_PATH") or not os.path.exists("/proc/self/fd"):
        _check_is(os.lstat(path), file)
        yield path
        return
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _check_is(os.fstat(descriptor), file)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _check_is(found: os.stat_result, file: tuple[int, int] | None) -> None:
    if (found.st_dev, found.st_ino) != file:
        raise OSError(errno.ESTALE, "another file has taken the place of its socket")


def _find_accounts(listen: Listen) -> tuple[int, int]:
    owner = UNCHANGED if listen.owner is None else find_user(listen.owner)
    group = UNCHANGED if listen.group is None else find_group(listen.group)
    return owner, group


def _reopen_doors(listener: Listener) -> bool:
    """Let clients in again; return False for a Unix socket that cannot be found any more. Raises ListenError."""
    if listener.shut and isinstance(listener.listen.address, TcpAddress):
        try:
            tcp.allow_handshakes(listener.socket)
        except PermissionError as error:
            raise ListenError(
                f"cannot listen on {listener.listen.address}: it is just being given up",
                "try again in a moment",
            ) from error
        listener.shut = False
    return not listener.shut and not listener.is_dead


def _leave(listener: Listener) -> None:
    """Close a Unix socket that no new client can find, but not for the workers that hold it: they serve on."""
    _unlink_own(listener)
    listener.socket.close()


def _close(listener: Listener) -> None:
    if not listener.shut:
        _unlink_own(listener)
    if not listener.is_inherited:
        # Workers may still hold copies: shutting the socket down refuses clients for all of them at once.
        with suppress(OSError):
            listener.socket.shutdown(socket.SHUT_RDWR)
    listener.socket.close()


def _unlink_own(listener: Listener) -> None:
    """Remove a Unix socket's file, also from an old release that its path does not lead to any more."""
    if isinstance(listener.listen.address, UnixAddress):
        for path in dict.fromkeys((listener.listen.address.path, listener.real_path)):
            if _is_at(listener, path):
                os.unlink(path)


def _is_found(listener: Listener) -> bool:
    """Tell whether clients can find a listener: a Unix socket's path may mean another file by now, or none."""
    address = listener.listen.address
    return not isinstance(address, UnixAddress) or _is_at(listener, address.path)


def _is_at(listener: Listener, path: str) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == listener.file


@contextmanager
def _reported(listen: Listen) -> Iterator[None]:
    """Turn an operating system's error into one line with a hint."""
    try:
        yield
    except ConfigError as error:
        raise ListenError(f"cannot listen on {listen.address}: {error.message}") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ListenError(
            f"cannot listen on {listen.address}: {reason}", _hint(error, listen.address)
        ) from error


def _hint(error: OSError, address: Address) -> str | None:
    if error.errno == errno.EADDRINUSE and isinstance(address, TcpAddress):
        return holder_of(address) or "find who listens there with: ss -ltnp"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address; ip address shows those it has"
    if error.errno == errno.EACCES and isinstance(address, TcpAddress):
        return f"ports below 1024 need root or CAP_NET_BIND_SERVICE; {address.port + 8000} does not"
    return None
