"""The other end of the control socket: ask the master of a running server, and wait for the end of its answer."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import msgspec

from prefork.control.messages import Answer, Identity, Request, decode_answer, encode
from prefork.errors import CommandError

# struct ucred: pid, uid, gid (unix(7)).
CREDENTIALS = struct.Struct("3i")
# A master answers within this many seconds, whatever its workers do.
PATIENCE = 10.0
READ_SIZE = 65536
# So often a question is asked that meets an upgrade.
TRIES = 5
# From a server's last word to the end of its process, in seconds: it only has to remove its files.
FAREWELL = 10.0


class RefusedError(CommandError):
    """The server's own error; ``traceback`` is a worker's, and may be empty; ``again`` if it can succeed now."""

    def __init__(
        self, message: str, hint: str | None = None, traceback: str = "", *, again: bool = False
    ) -> None:
        super().__init__(message, hint)
        self.traceback = traceback
        self.again = again


class NoServerError(CommandError):
    """Nobody listens there."""


class SilentError(CommandError):
    """The server did not answer in time."""


class ServerGoneError(CommandError):
    """The server ended, or closed the connection, before it had answered."""


class Client:
    """A connection to a running server, to be used in a ``with`` statement.

    Args:
        path: the control socket's.
        timeout: how many seconds to wait for the server to take the connection, and for each line of an answer.
        owner: the user who must be the one that answers; None for anybody from whom this process would take orders.

    Raises NoServerError when no server listens there, CommandError when it may not be asked.

    """

    def __init__(self, path: str, timeout: float = PATIENCE, owner: int | None = None) -> None:
        self._path = path
        self._timeout = timeout
        self._last_id = 0
        self._incoming = bytearray()
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.settimeout(timeout)
        self._connect()
        try:
            self._check_peer(owner)
        except CommandError:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def call(
        self,
        command: str,
        arguments: dict[str, Any],
        on_progress: Callable[[str], None] = lambda _text: None,
        *,
        lasting: bool = False,
    ) -> dict[str, Any]:
        """Have a command performed and return its result; ``on_progress`` gets each line about how far it is.

        A ``lasting`` one may take as long as it likes; if the server does not even say that it is there, that is progress, too.

        Raises RefusedError with the server's error, ServerGoneError if it ended instead, CommandError if it does not answer.
        """
        asked = self._ask(command, arguments)
        while True:
            answer = self._receive_lasting(on_progress) if lasting else self._receive()
            if answer.id not in (None, asked):
                continue  # it is only there
            if (error := answer.error) is not None:
                raise RefusedError(error.message, error.hint, error.traceback, again=error.again)
            if answer.result is not None:
                return answer.result
            on_progress(answer.progress or "")

    def stop(self, now: bool, on_progress: Callable[[str], None]) -> None:
        """Stop the server and return once its process has ended.

        Raises RefusedError with the server's error, CommandError if it does not go.
        """
        process = self._server_process()
        try:
            with contextlib.suppress(ServerGoneError):  # it may end in the middle of its answer
                self.call("stop", {"now": now}, on_progress, lasting=True)
            if process is not None and not select.select([process], [], [], FAREWELL)[0]:
                raise CommandError(f"the server on {self._path} is done, but its process goes on running")
        finally:
            if process is not None:
                os.close(process)

    def identify(self) -> Identity:
        """Return which server this is; one that is upgraded meanwhile is asked again."""
        try:
            return self._identity(TRIES)
        except msgspec.ValidationError as error:
            raise CommandError(
                f"the server on {self._path} identifies itself in another way: {error}"
            ) from error

    def _identity(self, tries: int) -> Identity:
        try:
            return msgspec.convert(self.call("identity", {}), Identity)
        except RefusedError as error:
            if error.message.startswith("unknown command"):
                raise self._is_older() from error
            if tries <= 1 or not error.again:
                raise
        return self._identity(tries - 1)

    def _is_older(self) -> CommandError:
        """Return what is to be said of a server that does not know the question which of them it is."""
        peer = self._peer()
        return CommandError(
            f"the server on {self._path} is of an older prefork, which does not tell which file it runs",
            f"{f'kill -TERM {peer[0]}' if peer else 'TERM'} ends it, prefork run starts the new one",
        )

    def _connect(self) -> None:
        try:
            self._connection.connect(self._path)
        except OSError as error:
            self._connection.close()
            raise self._cannot_connect(error) from error

    def _cannot_connect(self, error: OSError) -> CommandError:
        if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
            return NoServerError(f"no server listens on {self._path}", "prefork run CONF starts one")
        if isinstance(error, PermissionError):
            return CommandError(
                f"no permission to connect to {self._path}", "be the user who runs the server, or root"
            )
        if isinstance(error, TimeoutError | BlockingIOError):
            return self._no_answer()
        return CommandError(f"cannot connect to {self._path}: {error.strerror or error}")

    def _check_peer(self, owner: int | None) -> None:
        """Raise CommandError if the process that listens is not one of the right user: it may only pretend to obey."""
        peer = self._peer()
        if peer is None:
            return
        # Root may ask servers of any user; everybody else only their own, and root's, which will refuse them in words.
        own = [0, os.geteuid()] if os.geteuid() else [peer[1]]
        right = own if owner is None else [owner]
        if peer[1] not in right:
            raise CommandError(
                f"user {peer[1]} listens on {self._path}, expected a server of user {right[-1]}",
                f"pid {peer[0]} has bound that socket",
            )

    def _ask(self, command: str, arguments: dict[str, Any]) -> int:
        self._last_id += 1
        self._send(encode(Request(self._last_id, command, arguments)))
        return self._last_id

    def _receive_lasting(self, on_progress: Callable[[str], None]) -> Answer:
        """Return the next line; when none comes, ask whether the server is there."""
        asked = warned = False
        while True:
            try:
                return self._receive()
            except SilentError as silence:
                if asked and not warned:
                    warned = True
                    on_progress(f"{silence.message}: {silence.hint}; waiting")
                if not asked:
                    asked = True
                    self._ask("identity", {})

    def _send(self, line: bytes) -> None:
        try:
            self._connection.sendall(line)
        except TimeoutError as error:
            raise self._no_answer() from error
        except ConnectionError:
            return  # a server that refuses this client says why and closes: the reason is still to be read

    def _receive(self) -> Answer:
        while b"\n" not in self._incoming:
            try:
                data = self._connection.recv(READ_SIZE)
            except TimeoutError as error:
                raise self._no_answer() from error
            except ConnectionError:
                data = b""
            if not data:
                raise ServerGoneError(f"the server on {self._path} ended before it had answered")
            self._incoming += data
        line, _, rest = self._incoming.partition(b"\n")
        self._incoming = rest
        try:
            return decode_answer(bytes(line))
        except ValueError as error:
            raise CommandError(
                f"the server on {self._path} does not speak prefork's language: {error}"
            ) from error

    def _no_answer(self) -> SilentError:
        return SilentError(
            f"the server on {self._path} did not answer within {self._timeout:g} s",
            "its process may be stopped (SIGSTOP), or the machine starved",
        )

    def _server_process(self) -> int | None:
        """Return a descriptor of the process that listens there, readable once it has ended; None if there is none.

        Asked for before the end: afterwards the pid may be another process's.
        """
        peer = self._peer()
        if peer is None or not hasattr(os, "pidfd_open"):
            return None
        try:
            return os.pidfd_open(peer[0])
        except OSError:
            return None  # in a pid namespace that this process cannot see

    def _peer(self) -> tuple[int, int] | None:
        """Return pid and user of the process that listens there; None where the system does not tell."""
        if not hasattr(socket, "SO_PEERCRED"):
            return None
        data = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        pid, uid, _gid = CREDENTIALS.unpack(data)
        return pid, uid
