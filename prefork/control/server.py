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
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prefork.control.messages import MAX_REQUEST, Answer, Fault, Request, RequestError, decode_request, encode
from prefork.errors import ConfigError, ListenError, PreforkError

# A client that leaves this much unread, and yet more is to be said to it, is cut off.
MAX_UNREAD = 1024 * 1024
# Clients at once. A monitor that leaks connections must not take the master's descriptors.
MAX_CLIENTS = 64
BACKLOG = 64
READ_SIZE = 65536
TOO_LONG = f"expected a line of at most {MAX_REQUEST} bytes, found a longer one"
# struct ucred: pid, uid, gid (unix(7)).
CREDENTIALS = struct.Struct("3i")

Handle = Callable[[Request, "Reply"], None]


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

    def error(self, message: str, hint: str | None = None, traceback: str = "") -> None:
        """End the answer: it failed. A message of several lines is printed as several errors."""
        self._end(Answer(self.identity, error=Fault(message, hint, traceback)))

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
        listener: the socket that listens there already, if the program before this one has bound it.

    Raises ListenError when a running server listens there, something that is no socket is there, or the path
    cannot be bound.

    """

    def __init__(
        self, path: str, handle: Handle, *, owner_uid: int, listener: socket.socket | None = None
    ) -> None:
        self.path = path
        self._handle = handle
        self._owner_uid = owner_uid
        self._clients: set[_Client] = set()
        self._selector: selectors.BaseSelector | None = None
        self._listener = listener or _listen(path)
        self._inode = _inode(path)
        # Given up for a moment when descriptors run out, so that a waiting client can be taken and closed: left
        # in the queue it would wake the master for ever. The trick is libev's ("special problem of accept()ing").
        self._reserve: int | None = os.open(os.devnull, os.O_RDONLY)

    def register(self, selector: selectors.BaseSelector) -> None:
        """Join the master's selector. Every key's data is called by the loop with the mask of events."""
        self._selector = selector
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def past(self, awaiting: Sequence[Reply]) -> dict[str, Any]:
        """Return what a program that takes over needs to answer in place of this one.

        Args:
            awaiting: replies not gone that the next program will know how to end; it will have them in the same order.

        """
        clients = list(self._clients)
        places = [[clients.index(reply.client), reply.identity] for reply in awaiting]
        return {
            "path": self.path,
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
                    Reply(client, identity).error("the server was upgraded in the meantime", "ask again")
        return replies

    def _take_over(self, past: dict[str, Any]) -> _Client:
        assert self._selector is not None, "there is a loop to join"
        client = _Client(past["connection"], self._selector, self._handle, self._clients.discard)
        self._clients.add(client)
        client.resume(past)
        return client

    def close(self) -> None:
        """Close everything, and remove the path if it is still this server's."""
        if _inode(self.path) == self._inode:
            os.unlink(self.path)
        for client in list(self._clients):
            client.close()
        if self._selector is not None:
            self._selector.unregister(self._listener)
            self._selector = None
        self._listener.close()
        self._give_up_reserve()

    def _accept(self, _mask: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away()
            elif not isinstance(error, BlockingIOError | ConnectionAbortedError):
                raise
            return
        assert self._selector is not None, "only the selector calls this"
        client = _Client(connection, self._selector, self._handle, self._clients.discard)
        self._clients.add(client)
        refusal = self._refusal(connection)
        if refusal:
            client.refuse(refusal)

    def _refusal(self, connection: socket.socket) -> str:
        """Return why this client is not served, or nothing."""
        uid = _peer_uid(connection)
        if uid is not None and uid not in (0, self._owner_uid):
            return f"user {uid} may not control this server, expected user {self._owner_uid} or root"
        if len(self._clients) > MAX_CLIENTS:
            return f"{MAX_CLIENTS} clients are connected already"
        return ""

    def _turn_away(self) -> None:
        self._give_up_reserve()
        # Others may be quicker to take what was given up: then the client waits, and the reserve is got back later.
        with contextlib.suppress(OSError):
            self._listener.accept()[0].close()
        with contextlib.suppress(OSError):
            self._reserve = os.open(os.devnull, os.O_RDONLY)

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
    ) -> None:
        connection.setblocking(False)
        self.closed = False
        self._connection = connection
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
        self.say(answer)

    def refuse(self, reason: str) -> None:
        """Say why, and close as soon as that is sent."""
        self._reading = False
        self._incoming.clear()
        self.say(Answer(None, error=Fault(reason)))

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


def _listen(path: str) -> socket.socket:
    folder = os.path.dirname(path) or "."
    try:
        with _umask(0o077):
            os.makedirs(folder, exist_ok=True)
        with _locked(folder):
            _make_way(path)
            return _bind(path)
    except OSError as error:
        # Python says "AF_UNIX path too long" itself, without a number.
        reason = error.strerror or str(error)
        raise ListenError(
            f"cannot listen on the control socket {path}: {reason}",
            "master.control in the configuration says where it is",
        ) from error


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
def _locked(folder: str) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
