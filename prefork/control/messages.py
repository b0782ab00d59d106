"""What is said on the control socket: one JSON object per line, in both directions; pure.

A request is ``{"id": 1, "command": "reload", "arguments": {}}``. It is answered by any number of lines
``{"id": 1, "progress": "…"}`` and one that ends it: ``{"id": 1, "result": {…}}`` or ``{"id": 1, "error":
{"message": "…", "hint": null, "traceback": ""}}``. A line that is no request is answered with the id null.
"""

from __future__ import annotations

from typing import Any

import msgspec

# A request names a command, a pool and a number: a longer line is no request. Answers carry stacks, so only the
# reader's patience limits them. 64 KiB is what asyncio's StreamReader.readline() takes by default.
MAX_REQUEST = 65536
# The decoder's reason may quote a key of the line, however long.
MAX_REASON = 200
# What msgspec raises for a line that it cannot read: rubbish, bytes that are no UTF-8, brackets nested too deeply.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class RequestError(ValueError):
    """A line that is no request; ``id`` is the request's as far as it can be read, else None."""

    def __init__(self, message: str, identity: int | None = None) -> None:
        super().__init__(message)
        self.id = identity


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing that is asked of the master; ``arguments`` are complete and of the right types once decoded."""

    id: int
    command: str
    arguments: dict[str, Any] = {}


class Fault(msgspec.Struct, frozen=True):
    """Why a request failed; ``again`` if the same request can succeed now."""

    message: str
    hint: str | None = None
    traceback: str = ""
    again: bool = False


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of an answer: exactly one of ``progress``, ``result`` and ``error`` is there."""

    id: int | None
    progress: str | None = None
    result: dict[str, Any] | None = None
    error: Fault | None = None


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """The arguments of a command that takes none."""


class Reload(msgspec.Struct, forbid_unknown_fields=True):
    """The arguments of ``reload``: the pools that are rolled out; none means all."""

    pools: list[str] = []


class Restart(msgspec.Struct, forbid_unknown_fields=True):
    """The arguments of ``restart``."""

    pool: str


class Signal(msgspec.Struct, forbid_unknown_fields=True):
    """The arguments of ``signal``: it goes to the main process of each of the pool's programs (``USR1``)."""

    pool: str
    signal: str


class Scale(msgspec.Struct, forbid_unknown_fields=True):
    """The arguments of ``scale``; the largest number is the master's to know, 0 stops the pool."""

    pool: str
    workers: int


class Stop(msgspec.Struct, forbid_unknown_fields=True):
    """The arguments of ``stop``; ``now`` cuts off what is in flight."""

    now: bool = False


class Stacks(msgspec.Struct, forbid_unknown_fields=True):
    """The arguments of ``stacks``: one worker (``web/2``), or all."""

    worker: str | None = None


COMMANDS: dict[str, type[msgspec.Struct]] = {
    "status": Nothing,
    "reload": Reload,
    "restart": Restart,
    "signal": Signal,
    "scale": Scale,
    "stop": Stop,
    "reopen": Nothing,
    "stacks": Stacks,
    "upgrade": Nothing,
    "identity": Nothing,
}


class Current(msgspec.Struct):
    """A request that a worker is busy with; ``age`` in seconds."""

    what: str
    age: float


class WorkerStatus(msgspec.Struct):
    """One worker; ``age`` in seconds, ``memory`` in bytes, resident."""

    slot: int
    generation: int
    pid: int
    state: str
    age: float
    requests: int
    connections: int
    memory: int
    current: list[Current]


class TemplateStatus(msgspec.Struct):
    """A process that workers are forked from; ``age`` in seconds, ``memory`` in bytes, resident."""

    generation: int
    pid: int
    state: str
    age: float
    memory: int


class ListenerStatus(msgspec.Struct):
    """One listener; ``queue`` is how many clients wait in it, None where the kernel does not tell."""

    address: str
    queue: int | None
    backlog: int


class Death(msgspec.Struct):
    """How a pool's last worker died; ``ago`` in seconds."""

    worker: str
    pid: int
    cause: str
    ago: float


class PoolStatus(msgspec.Struct):
    """One pool; ``degraded`` says why it cannot have its wanted workers.

    ``done`` are those of them that have ended for good, ``waits_for`` the pools that its new generation comes after,
    ``size_range`` between which numbers it scales by load. ``release`` is the real path of the folder that its workers
    start in; ``is_preloaded`` if they have their code from memory, whatever happens to the files there; ``stopped`` if it
    was scaled to 0 by request.
    """

    name: str
    kind: str
    application: str
    wanted: int
    ready: int
    degraded: str | None
    restarts: int
    listeners: list[ListenerStatus]
    last_death: Death | None
    workers: list[WorkerStatus]
    done: int = 0
    waits_for: list[str] = []
    templates: list[TemplateStatus] = []
    size_range: tuple[int, int] | None = None
    stopped: bool = False
    release: str = ""
    is_preloaded: bool = False


class ServerStatus(msgspec.Struct):
    """The result of ``status``; ``uptime`` in seconds."""

    name: str
    pid: int
    version: str
    state: str
    generation: int
    uptime: float
    pools: list[PoolStatus]


class Identity(msgspec.Struct):
    """The result of ``identity``: which server this is, by its file as it was given and by the real path of that.

    It is answered at once, so it also tells a server that works on a request from one that is stopped.
    """

    name: str
    pid: int
    version: str
    file: str
    real: str
    state: str
    generation: int
    uptime: float


class _Identified(msgspec.Struct):
    id: int


_requests = msgspec.json.Decoder(Request)
_identities = msgspec.json.Decoder(_Identified)
_answers = msgspec.json.Decoder(Answer)


def encode(message: Request | Answer) -> bytes:
    """Return the message as one line."""
    try:
        return msgspec.json.encode(message) + b"\n"
    except UnicodeEncodeError:
        # A file name that is not UTF-8 stands in a Python string as lone surrogates, which JSON cannot carry.
        return msgspec.json.encode(_carriable(msgspec.to_builtins(message))) + b"\n"


def decode_request(line: bytes) -> Request:
    """Return the request on a line, with the defaults of its command's arguments filled in.

    Raises RequestError if the line is none, or names no known command, or its arguments are not the command's.
    """
    try:
        request = _requests.decode(line)
        kind = COMMANDS.get(request.command)
        if kind is None:
            expected = ", ".join(COMMANDS)
            raise RequestError(
                f"unknown command {_excerpt(request.command)}, expected one of {expected}", request.id
            )
        arguments = msgspec.to_builtins(msgspec.convert(request.arguments, kind))
    except UNREADABLE as error:
        found = _excerpt(line.decode("utf-8", "replace"))
        raise RequestError(
            f"expected a request, found {found}: {str(error)[:MAX_REASON]}", _identity(line)
        ) from error
    return msgspec.structs.replace(request, arguments=arguments)


def decode_answer(line: bytes) -> Answer:
    """Return the answer on a line; raises ValueError if it is none."""
    answer = _answers.decode(line)
    if sum(part is not None for part in (answer.progress, answer.result, answer.error)) != 1:
        raise ValueError(f"expected one of progress, result and error, found {_excerpt(line.decode())}")
    return answer


def _identity(line: bytes) -> int | None:
    try:
        return _identities.decode(line).id
    except UNREADABLE:
        return None


def _excerpt(text: str) -> str:
    return repr(text[:40]) + ("…" if len(text) > 40 else "")


def _carriable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_carriable(key): _carriable(item) for key, item in value.items()}
    return [_carriable(item) for item in value] if isinstance(value, list | tuple) else value
