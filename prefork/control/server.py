"""The master's end of the control socket: driven by the master's own selector, it never blocks and has no thread.

A path is bound under a lock on its folder: whoever finds that nobody answers there may replace it, one at a time,
so a living server's path is never taken from it, however many start at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import selectors
import socket
import stat
import struct
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prefork.control.messages import MAX_REQUEST, Answer, Fault, Request, RequestError, decode_request, encode
from prefork.control.registry import claim, home
from prefork.errors import ConfigError, ListenError, PreforkError

# A client that leaves this much unread, and yet more is to be said to it, is cut off.
MAX_UNREAD = 1024 * 1024
# Clients of one user at once. A monitor that leaks connections must not take the master's descriptors, and those of the
# server's user must leave room for root.
MAX_CLIENTS = 64
# A client that is owed nothing is closed after so many seconds without a request. When all places are taken, the one that
# has been idle the longest gives way after SHORT_IDLE, as nginx closes idle connections when worker_connections run out.
MAX_IDLE = 30.0
SHORT_IDLE = 1.0
# For so long a folder may be locked by another server that is just starting, in seconds.
LOCK_PATIENCE = 5.0
LOCK_PAUSE = 0.02
BACKLOG = 64
READ_SIZE = 65536
TOO_LONG = f"expected a line of at most {MAX_REQUEST} bytes, found a longer one"
# struct ucred: pid, uid, gid (unix(7)).
CREDENTIALS = struct.Struct("3i")

Handle = Callable[[Request, "Reply"], None]
Later = Callable[[float, Callable[[], None]], None]


class Reply:
    """The answer to one request. It may be given at once or much later, and the client may have left by then.

    An answer ends once: what is said after the end, or after the client has left, is dropped.
    """

    def __init__(self, client: _Client, identity: int) -> None:
        self.client = client
        self.identity = identity

    @property
    def gone(self) -> bool:
        """Whether nobody waits for this answer any more."""
        return self.client.closed or not self.client.awaits(self.identity)

    def progress(self, text: str) -> None:
        """Say how far it is."""
        if not self.gone:
            self.client.say(Answer(self.identity, progress=text))

    def result(self, result: dict[str, Any]) -> None:
        """End the answer: it went well."""
        self._end(Answer(self.identity, result=result))

    def error(
        self, message: str, hint: str | None = None, traceback: str = "", *, again: bool = False
    ) -> None:
        """End the answer: it failed. A message of several lines is printed as several errors.

        ``again`` says that the same request can succeed now.
        """
        self._end(Answer(self.identity, error=Fault(message, hint, traceback, again)))

    def fail(self, error: PreforkError) -> None:
        """End the answer with an error as the command line would show it."""
        if isinstance(error, ConfigError):
            lines = [
                line for problem in error.problems for line in (problem.message, _hint(problem.hint)) if line
            ]
            self.error("\n".join(lines))
        else:
            self.error(error.message, error.hint, getattr(error, "traceback", ""))

    def _end(self, answer: Answer) -> None:
        if not self.gone:
            self.client.end(self.identity, answer)


class ControlServer:
    """The listener and its clients.

    Args:
        path: where to listen. A missing folder is made with mode 0700; the socket has mode 0600 from its birth.
        handle: called with each request and the reply through which it is answered, now or later.
        owner_uid: the user who may ask, besides root.
        later: calls a function after so many seconds.
        past: what the program before this one has left, which has bound the socket already.
        now: the clock for idle clients, in seconds.

    Raises ListenError when a running server listens there, something that is no socket is there, or the path
    cannot be bound.

    """

    def __init__(
        self,
        path: str,
        handle: Handle,
        *,
        owner_uid: int,
        later: Later,
        past: dict[str, Any] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self._handle = handle
        self._owner_uid = owner_uid
        self._later = later
        self._now = now
        self._clients: set[_Client] = set()
        self._selector: selectors.BaseSelector | None = None
        self._listener: socket.socket = past["listener"] if past else _listen(path)
        self.bound: str = past.get("bound", path) if past else _resolved(path)
        self._inode = past.get("inode", _inode(path)) if past else _inode(path)
        # Given up for a moment when descriptors run out, so that a waiting client can be taken and closed: left
        # in the queue it would wake the master for ever. The trick is libev's ("special problem of accept()ing").
        self._reserve: int | None = os.open(os.sep, os.O_RDONLY)

    def register(self, selector: selectors.BaseSelector) -> None:
        """Join the master's selector. Every key's data is called by the loop with the mask of events."""
        self._selector = selector
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def restore(self) -> bool:
        """Listen at the path anew if it no longer leads to this server's socket; return whether that was so.

        Somebody may have deleted the socket, or the path leads through a link that has been switched. Raises ListenError,
        with the old socket as it was, if the path cannot be bound.
        """
        if self._inode is not None and _inode(self.path) == self._inode:
            return False
        listener = _listen(self.path, patience=0.0)
        if self._selector is not None:
            self._selector.unregister(self._listener)
            self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._remove_socket()
        self._listener.close()
        self._listener, self.bound, self._inode = listener, _resolved(self.path), _inode(self.path)
        return True

    def past(self, awaiting: Sequence[Reply]) -> dict[str, Any]:
        """Return what a program that takes over needs to answer in place of this one.

        Args:
            awaiting: replies not gone that the next program will know how to end; it will have them in the same order.

        """
        clients = list(self._clients)
        places = [[clients.index(reply.client), reply.identity] for reply in awaiting]
        return {
            "path": self.path,
            "bound": self.bound,
            "inode": self._inode,
            "listener": self._listener,
            "clients": [client.past() for client in clients],
            "awaiting": places,
        }

    def resume(self, past: dict[str, Any]) -> list[Reply]:
        """Take over the clients of the program before, and return the replies that were to be ended by this one.

        Whoever awaits another one is told that it will not come.
        """
        clients = [self._take_over(found) for found in past["clients"]]
        replies = [Reply(clients[place], identity) for place, identity in past["awaiting"]]
        known = {(id(reply.client), reply.identity) for reply in replies}
        for client in clients:
            for identity in client.awaited():
                if (id(client), identity) not in known:
                    Reply(client, identity).error(
                        "the server was upgraded in the meantime", "ask again", again=True
                    )
        return replies

    def _take_over(self, past: dict[str, Any]) -> _Client:
        assert self._selector is not None, "there is a loop to join"
        client = self._admit(past["connection"])
        client.resume(past)
        return client

    def _admit(self, connection: socket.socket) -> _Client:
        assert self._selector is not None, "there is a loop to join"
        client = _Client(connection, self._selector, self._handle, self._clients.discard, self._now)
        self._clients.add(client)
        self._later(MAX_IDLE, lambda: self._check_idle(client))
        return client

    def _check_idle(self, client: _Client) -> None:
        if client.closed:
            return
        left = MAX_IDLE - client.idle()
        if left <= 0:
            client.dismiss(f"no request within {MAX_IDLE:g} s")
        if not client.closed:
            self._later(max(left, SHORT_IDLE), lambda: self._check_idle(client))

    def close(self) -> None:
        """Close everything, and remove the path if it is still this server's."""
        self._remove_socket()
        for client in list(self._clients):
            client.close()
        if self._selector is not None:
            self._selector.unregister(self._listener)
            self._selector = None
        self._listener.close()
        self._give_up_reserve()

    def _remove_socket(self) -> None:
        if self._inode is not None and _inode(self.bound) == self._inode:
            with contextlib.suppress(OSError):  # its folder may have become another user's: then it stays
                os.unlink(self.bound)

    def _accept(self, _mask: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away()
            elif not isinstance(error, BlockingIOError | ConnectionAbortedError):
                raise
            return
        client = self._admit(connection)
        refusal = self._refusal(client)
        if refusal:
            client.refuse(refusal)

    def _refusal(self, client: _Client) -> str:
        """Return why this client is not served, or nothing."""
        if client.uid is not None and client.uid not in (0, self._owner_uid):
            return f"user {client.uid} may not control this server, expected user {self._owner_uid} or root"
        others = [other for other in self._clients if other.uid == client.uid and other is not client]
        if len(others) < MAX_CLIENTS:
            return ""
        idlest = max(others, key=_Client.idle)
        if idlest.idle() < SHORT_IDLE:
            return f"{MAX_CLIENTS} clients are connected already"
        idlest.close()
        return ""

    def _turn_away(self) -> None:
        self._give_up_reserve()
        # Others may be quicker to take what was given up: then the client waits, and the reserve is got back later.
        with contextlib.suppress(OSError):
            self._listener.accept()[0].close()
        with contextlib.suppress(OSError):
            self._reserve = os.open(os.sep, os.O_RDONLY)

    def _give_up_reserve(self) -> None:
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None


class _Client:
    """One connection, buffered in both directions."""

    def __init__(
        self,
        connection: socket.socket,
        selector: selectors.BaseSelector,
        handle: Handle,
        on_close: Callable[[_Client], None],
        now: Callable[[], float],
    ) -> None:
        connection.setblocking(False)
        self.closed = False
        self.uid = _peer_uid(connection)
        self._connection = connection
        self._now = now
        self._active_at = now()
        self._selector = selector
        self._handle = handle
        self._on_close = on_close
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._reading = True
        self._awaited: set[int] = set()
        self._events = 0
        self._settle()

    def past(self) -> dict[str, Any]:
        """Return all that a program which takes over needs to know of this client."""
        return {
            "connection": self._connection,
            "incoming": self._incoming,
            "outgoing": self._outgoing,
            "reading": self._reading,
            "awaited": self._awaited,
        }

    def resume(self, past: dict[str, Any]) -> None:
        """Go on with a client where the program before was."""
        self._incoming, self._outgoing = past["incoming"], past["outgoing"]
        self._reading, self._awaited = past["reading"], past["awaited"]
        self._settle()

    def awaited(self) -> list[int]:
        """Return the ids of the requests that are not answered yet."""
        return sorted(self._awaited)

    def awaits(self, identity: int) -> bool:
        """Return whether the request of this id is not answered yet."""
        return identity in self._awaited

    def idle(self) -> float:
        """Return for how many seconds it has asked nothing, and has taken nothing of what it is sent; 0 if it waits."""
        return 0.0 if self._awaited and not self._outgoing else self._now() - self._active_at

    def ready(self, mask: int) -> None:
        """Do what the selector says is possible. It may say so of a connection that was closed meanwhile."""
        if mask & selectors.EVENT_WRITE and not self.closed:
            self._send()
        if mask & selectors.EVENT_READ and self._reading and not self.closed:
            self._receive()
        self._settle()

    def say(self, answer: Answer) -> None:
        """Send a line, or keep it until the client reads."""
        if len(self._outgoing) > MAX_UNREAD:
            self.close()
        if self.closed:
            return
        self._outgoing += encode(answer)
        self._send()
        self._settle()

    def end(self, identity: int, answer: Answer) -> None:
        """Send the last line of an answer."""
        self._awaited.discard(identity)
        self._active_at = self._now()
        self.say(answer)

    def refuse(self, reason: str) -> None:
        """Say why, and close as soon as that is sent."""
        self._reading = False
        self._incoming.clear()
        self.say(Answer(None, error=Fault(reason)))

    def dismiss(self, reason: str) -> None:
        """Close a connection that has been idle for too long; if it reads, it hears why."""
        if not self._outgoing:
            self._reading = False
            self._outgoing += encode(Answer(None, error=Fault(reason)))
            self._send()
        self.close()

    def close(self) -> None:
        """Close the connection; answers that are still owed are dropped."""
        if self.closed:
            return
        self.closed = True
        if self._events:
            self._selector.unregister(self._connection)
        self._connection.close()
        self._on_close(self)

    def _settle(self) -> None:
        """Ask the selector for what is wanted next; close when nothing is, and nothing is owed.

        A client that closed its half but is owed an answer leaves the selector: its end of file is for good,
        and would be reported for ever.
        """
        if self.closed:
            return
        events = (selectors.EVENT_READ if self._reading else 0) | (
            selectors.EVENT_WRITE if self._outgoing else 0
        )
        if not events and not self._awaited:
            self.close()
        elif events != self._events:
            self._register(events)

    def _register(self, events: int) -> None:
        if self._events and events:
            self._selector.modify(self._connection, events, self.ready)
        elif events:
            self._selector.register(self._connection, events, self.ready)
        else:
            self._selector.unregister(self._connection)
        self._events = events

    def _send(self) -> None:
        try:
            while self._outgoing:
                sent = self._connection.send(self._outgoing)
                del self._outgoing[:sent]
                self._active_at = self._now()
        except BlockingIOError:
            pass  # the selector tells when there is room again
        except OSError:
            self.close()  # whatever it is, nobody is there to hear of it

    def _receive(self) -> None:
        try:
            data = self._connection.recv(READ_SIZE)
        except BlockingIOError:
            return
        except ConnectionError:
            self.close()
            return
        # At the end of file what is left counts as a line: printf … | nc -U leaves the newline out.
        self._incoming += data or b"\n"
        self._take_lines()
        self._reading = self._reading and bool(data)

    def _take_lines(self) -> None:
        *lines, rest = bytes(self._incoming).split(b"\n")
        self._incoming[:] = rest
        for line in lines:
            self._take_line(line)
        if len(rest) > MAX_REQUEST:
            self.refuse(TOO_LONG)

    def _take_line(self, line: bytes) -> None:
        if self.closed or not self._reading:
            return
        if len(line) > MAX_REQUEST:
            self.refuse(TOO_LONG)
        elif line.strip():
            self._take_request(line)

    def _take_request(self, line: bytes) -> None:
        try:
            request = decode_request(line)
        except RequestError as error:
            self.say(Answer(error.id, error=Fault(str(error))))
            return
        if self.awaits(request.id):
            self.say(Answer(None, error=Fault(f"the request with id {request.id} is not answered yet")))
            return
        self._awaited.add(request.id)
        self._active_at = self._now()
        self._perform(request, Reply(self, request.id))

    def _perform(self, request: Request, reply: Reply) -> None:
        try:
            self._handle(request, reply)
        except PreforkError as error:
            reply.fail(error)
        except Exception:  # noqa: BLE001 - a command must never end the server: who asked gets the traceback
            reply.error(
                f"the server failed in the command {request.command}", traceback=traceback.format_exc()
            )


def _hint(hint: str | None) -> str:
    return f"hint: {hint}" if hint else ""


def _listen(path: str, patience: float = LOCK_PATIENCE) -> socket.socket:
    folder = os.path.dirname(path) or "."
    try:
        if folder == home(os.geteuid()):
            claim(folder)
        else:
            with _umask(0o077):
                os.makedirs(folder, exist_ok=True)
        with _locked(folder, patience):
            _make_way(path)
            return _bind(path)
    except OSError as error:
        # Python says "AF_UNIX path too long" itself, without a number.
        reason = error.strerror or str(error)
        raise ListenError(
            f"cannot listen on the control socket {path}: {reason}",
            "master.control in the configuration says where it is",
        ) from error


def _resolved(path: str) -> str:
    """Return a path that leads to the same socket after links on the way to it have been switched."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)


def _bind(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _umask(0o177):
            listener.bind(path)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _make_way(path: str) -> None:
    """Remove a socket that nobody listens on any more; raises ListenError for anything else that is there."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(
            f"cannot listen on the control socket {path}: expected nothing or a socket there, found something else",
            "move it away, or set master.control to another path",
        )
    if _is_alive(path):
        raise ListenError(
            f"cannot listen on the control socket {path}: a running server listens there",
            f"prefork status {path} shows it; another server needs a master.name or master.control of its own",
        )
    os.unlink(path)


def _is_alive(path: str) -> bool:
    """Return whether somebody listens; a server too busy or stopped to answer is alive as well."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True  # its backlog is full
    return True


def _inode(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _peer_uid(connection: socket.socket) -> int | None:
    """Return who connected; None where the system does not tell: there the socket's mode alone protects it."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    _pid, uid, _gid = CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, option, CREDENTIALS.size))
    return int(uid)


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def _locked(folder: str, patience: float) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor, folder, patience)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: str, patience: float) -> None:
    """Lock a folder. Others who may read it can lock it as well, and keep it so: that must not hang a server."""
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise ListenError(
                    f"cannot listen in {folder}: another process has locked this folder",
                    "set master.control to a path in a folder that is this server's alone",
                ) from None
            time.sleep(LOCK_PAUSE)
        else:
            return
