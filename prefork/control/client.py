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

from prefork.control.messages import Answer, Request, decode_answer, encode
from prefork.errors import CommandError

# struct ucred: pid, uid, gid (unix(7)).
CREDENTIALS = struct.Struct("3i")
# From a server's last word to the end of its process, in seconds: it only has to remove its files.
FAREWELL = 10.0


class RefusedError(CommandError):
    """The server's own error; ``traceback`` is a worker's, and may be empty."""

    def __init__(self, message: str, hint: str | None = None, traceback: str = "") -> None:
        super().__init__(message, hint)
        self.traceback = traceback


class ServerGoneError(CommandError):
    """The server ended, or closed the connection, before it had answered."""


class Client:
    """A connection to a running server, to be used in a ``with`` statement.

    Args:
        path: the control socket's.
        timeout: how many seconds to wait for the server to take the connection, and for each line of an answer;
            None: for ever.

    Raises CommandError when no server listens there, or it may not be asked.

    """

    def __init__(self, path: str, timeout: float | None = None) -> None:
        self._path = path
        self._timeout = timeout
        self._last_id = 0
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.settimeout(timeout)
        self._connect()
        self._lines = self._connection.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()
        self._connection.close()

    def call(
        self,
        command: str,
        arguments: dict[str, Any],
        on_progress: Callable[[str], None] = lambda _text: None,
    ) -> dict[str, Any]:
        """Have a command performed and return its result; ``on_progress`` gets each line about how far it is.

        Raises RefusedError with the server's error, ServerGoneError if it ended instead, CommandError if it does not answer.
        """
        self._last_id += 1
        request = Request(self._last_id, command, arguments)
        self._send(encode(request))
        while True:
            answer = self._receive()
            if answer.error is not None:
                raise RefusedError(answer.error.message, answer.error.hint, answer.error.traceback)
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
                self.call("stop", {"now": now}, on_progress)
            if process is not None and not select.select([process], [], [], FAREWELL)[0]:
                raise CommandError(f"the server on {self._path} is done, but its process goes on running")
        finally:
            if process is not None:
                os.close(process)

    def _connect(self) -> None:
        try:
            self._connection.connect(self._path)
        except OSError as error:
            self._connection.close()
            raise self._cannot_connect(error) from error

    def _cannot_connect(self, error: OSError) -> CommandError:
        if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
            return CommandError(f"no server listens on {self._path}", "prefork run CONF starts one")
        if isinstance(error, PermissionError):
            return CommandError(
                f"no permission to connect to {self._path}", "be the user who runs the server, or root"
            )
        if isinstance(error, TimeoutError | BlockingIOError):
            return self._no_answer()
        return CommandError(f"cannot connect to {self._path}: {error.strerror or error}")

    def _send(self, line: bytes) -> None:
        try:
            self._connection.sendall(line)
        except TimeoutError as error:
            raise self._no_answer() from error
        except ConnectionError:
            return  # a server that refuses this client says why and closes: the reason is still to be read

    def _receive(self) -> Answer:
        try:
            line = self._lines.readline()
        except TimeoutError as error:
            raise self._no_answer() from error
        except ConnectionError:
            line = b""
        if not line.endswith(b"\n"):
            raise ServerGoneError(f"the server on {self._path} ended before it had answered")
        try:
            return decode_answer(line)
        except ValueError as error:
            raise CommandError(
                f"the server on {self._path} does not speak prefork's language: {error}"
            ) from error

    def _no_answer(self) -> CommandError:
        return CommandError(
            f"the server on {self._path} did not answer within {self._timeout:g} s",
            "its process may be stopped (SIGSTOP), or the machine starved",
        )

    def _server_process(self) -> int | None:
        """Return a descriptor of the process that listens there, readable once it has ended; None if there is none.

        Asked for before the end: afterwards the pid may be another process's.
        """
        if not hasattr(os, "pidfd_open") or not hasattr(socket, "SO_PEERCRED"):
            return None
        data = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        pid = CREDENTIALS.unpack(data)[0]
        try:
            return os.pidfd_open(pid)
        except OSError:
            return None  # in a pid namespace that this process cannot see
