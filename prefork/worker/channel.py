"""What master and worker say to each other, over a pair of SOCK_SEQPACKET sockets: one packet, one message."""

from __future__ import annotations

import array
import contextlib
import socket
import struct
from collections.abc import Sequence
from typing import TypeVar

import msgspec

# A packet longer than the kernel's buffer is refused whole; tracebacks are cut to fit (wmem_default is 208 KiB).
MAX_PACKET = 65536
MAX_TRACEBACK = 32768
MAX_REASON = 4096
MAX_DESCRIPTORS = 4
CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)
CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # macOS has none


class Message(msgspec.Struct, frozen=True, tag=True):
    """Anything said on the channel."""


class Ready(Message, frozen=True):
    """Worker: the handler is loaded, accepting begins."""


class BootFailed(Message, frozen=True):
    """Worker: the handler cannot be loaded, for this reason; the process ends now."""

    reason: str
    traceback: str = ""


def boot_failed(reason: str, traceback: str) -> BootFailed:
    """Return the message for a reason and a traceback of any length: the beginning of one, the end of the other."""
    return BootFailed(
        reason.encode("utf-8", "replace")[:MAX_REASON].decode("utf-8", "ignore"),
        traceback.encode("utf-8", "replace")[-MAX_TRACEBACK:].decode("utf-8", "ignore"),
    )


class Failed(Message, frozen=True):
    """Worker: its work has failed, for this reason; the process ends now."""

    reason: str
    traceback: str = ""


def failed(reason: str, traceback: str) -> Failed:
    """Return the message for a reason and a traceback of any length, cut as ``boot_failed`` does it."""
    cut = boot_failed(reason, traceback)
    return Failed(cut.reason, cut.traceback)


class Busy(Message, frozen=True):
    """Worker: a deadline is armed and the master did not look at the scoreboard."""


class Draining(Message, frozen=True):
    """Worker: it has left the queue of its listeners; what is in flight is being finished."""


class Born(Message, frozen=True):
    """Worker of a template, on its own channel: it exists, and is the master's child. The kernel tells who says so."""


class NotBorn(Message, frozen=True):
    """Template, on the channel of a worker that it was to fork: it could not, for this reason."""

    reason: str
    traceback: str = ""


def not_born(reason: str, traceback: str = "") -> NotBorn:
    """Return the message for a reason and a traceback of any length, cut as ``boot_failed`` does it."""
    cut = boot_failed(reason, traceback)
    return NotBorn(cut.reason, cut.traceback)


class Fork(Message, frozen=True):
    """Master, to a template: fork the worker of a slot, with a row of the scoreboard.

    Its channel and the pipe for its stacks come with this message; so do its logs, in the order of ``log`` and
    ``access``, unless their number says that they are standard streams, which a template has inherited.
    """

    slot: int
    row: int
    log: int
    access: int | None
    max_requests: int


class Spent(Message, frozen=True):
    """Worker: it has served as many requests as it was to serve, and goes on until it is told to drain."""

    max_requests: int


class Detached(Message, frozen=True):
    """Worker: it has a process below it that is to live on when the worker is killed; ``began`` as proc(5) tells it."""

    pid: int
    began: int


class HasEnded(Message, frozen=True):
    """Worker: among its hooks is ``ended``, to be called once this process is dead."""


class Drain(Message, frozen=True):
    """Master: leave the queue, finish what is in flight within ``grace`` seconds, and exit.

    With ``empty_queue`` nobody comes after this worker: what waits in the queue is accepted first.
    """

    grace: float
    empty_queue: bool = False


class LookAgain(Message, frozen=True):
    """Master: look at the listeners: a worker has died that may have been woken for a connection in their queue."""


class Leave(Message, frozen=True):
    """Master: exit at once, whatever is in flight."""


class ReopenLogs(Message, frozen=True):
    """Master: from now on write to the descriptors that come with this message: the log's, and the access log's."""


class Signal(Message, frozen=True):
    """Master, to the worker of a program: send it this signal (``USR1``)."""

    name: str


class WriteLogs(Message, frozen=True):
    """Master: write what has been collected for the access log; this process may be about to be killed."""


FromWorker = Ready | BootFailed | Failed | Busy | Draining | Spent | Detached | HasEnded
FromUnborn = Born | NotBorn
FromMaster = Drain | LookAgain | Leave | ReopenLogs | Signal | WriteLogs | Fork

_from_unborn = msgspec.msgpack.Decoder(FromUnborn)
_from_worker = msgspec.msgpack.Decoder(FromWorker)
_from_master = msgspec.msgpack.Decoder(FromMaster)
_encoder = msgspec.msgpack.Encoder()
T = TypeVar("T")


class ProtocolError(Exception):
    """A packet that is no message of this channel: the process at the other end is not in its right mind."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Return the master's end, non-blocking, and the worker's end, blocking."""
    masters, workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    masters.setblocking(False)
    return masters, workers


def send(channel: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> bool:
    """Send one message, with descriptors if given; return whether the other end was there and had room for it."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
    ancillary = [rights] if descriptors else []
    with contextlib.suppress(OSError):
        channel.sendmsg([_encoder.encode(message)], ancillary, socket.MSG_NOSIGNAL)
        return True
    return False


def receive_from_worker(channel: socket.socket) -> FromWorker | None:
    """Return the next message, or None at the end of file.

    Raises BlockingIOError when there is none yet, ProtocolError for rubbish.
    """
    try:
        packet = channel.recv(MAX_PACKET)
    except ConnectionError:
        return None
    return _decode(_from_worker, packet) if packet else None


def ask_for_senders(channel: socket.socket) -> None:
    """Have the kernel tell with each packet which process has sent it (unix(7), SO_PASSCRED)."""
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


def receive_from_unborn(channel: socket.socket) -> tuple[FromUnborn, int] | None:
    """Return what is heard of a worker that a template was to fork, and the pid of who says it; None at the end of file.

    The pid is the kernel's word, not the sender's: a template runs code that the master must not believe. Descriptors
    that come with the packet are closed by the kernel, as there is no room for them.

    Raises BlockingIOError when there is nothing yet, ProtocolError for rubbish.
    """
    try:
        packet, ancillary, _flags, _address = channel.recvmsg(MAX_PACKET, socket.CMSG_SPACE(CREDENTIALS.size))
    except ConnectionError:
        return None
    return (_decode(_from_unborn, packet), _sender(ancillary)) if packet else None


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int:
    """Return the pid of a packet's sender, 0 if it is not known."""
    for level, kind, data in ancillary:
        if (level, kind, len(data)) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, CREDENTIALS.size):
            return int(CREDENTIALS.unpack(data)[0])
    return 0


def receive_from_master(channel: socket.socket) -> tuple[FromMaster, list[int]] | None:
    """Return the next message and the descriptors that came with it; or None once the master is gone.

    Raises ProtocolError for rubbish.
    """
    try:
        packet, descriptors = _receive(channel)
    except OSError:
        return None  # the handler closed the descriptor: whoever cannot hear the master is on its own
    return (_decode(_from_master, packet), descriptors) if packet else None


def _receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """Return a packet, and descriptors that no program inherits which this process may start."""
    packet, ancillary, _flags, _address = channel.recvmsg(
        MAX_PACKET, socket.CMSG_SPACE(4 * MAX_DESCRIPTORS), CLOSE_ON_EXEC
    )
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return packet, descriptors.tolist()


def _decode(decoder: msgspec.msgpack.Decoder[T], packet: bytes) -> T:
    try:
        return decoder.decode(packet)
    except (
        msgspec.DecodeError,
        UnicodeDecodeError,
        RecursionError,
    ) as error:  # text that is no UTF-8; deep nesting
        raise ProtocolError(f"expected a message, found {packet[:40]!r}") from error
