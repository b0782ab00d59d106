"""Shared memory that tells what every worker does: each row is written by its worker alone, and read by everyone.

Nobody locks. A figure is one aligned machine word, so it is stored and loaded whole. The description of a
request takes several words; it is kept twice, and a sequence number says which copy is the valid one. The writer
fills the other copy and then moves the number on, so a writer killed at any instant leaves a whole record behind,
and a reader that was overtaken sees the number move and reads again.

    board:  header | row 0 | row 1 | …                     the header is the master's; each begins a page of its own
    row:    figures (8 words) | lane 0 | lane 1 | …        one lane per thread that runs handlers
    lane:   sequence, requests, -, - | copy 0 | copy 1     copy: sequence, since, deadline, length, text

Times are seconds of the monotonic clock, which all processes of a machine share; 0 means none.

What a row says is a worker's word, and a worker runs code that the master does not trust. So a worker can write to its
own row only (``confine``; a page is what memory can be protected by), and whatever is read is checked: it is known,
finite and bounded, or the row has a ``fault``. The master believes nothing of the header; it only writes it.
"""

from __future__ import annotations

import heapq
import mmap
import os
import struct
import sys
from collections.abc import Collection
from enum import IntEnum
from typing import NamedTuple

import msgspec

WORD = 8
ROW_WORDS = 8
LANE_WORDS = 4
TEXT_SIZE = 214
COPY = struct.Struct(f"@QddH{TEXT_SIZE}s")
LANE_SIZE = LANE_WORDS * WORD + 2 * COPY.size
READ_TRIES = 64
# Who has been busy for less than this is about to be free again: most requests take less.
MOMENT = 0.01

# What can be protected by itself; the header and each row take a whole number of them.
PAGE = mmap.ALLOCATIONGRANULARITY
# What no figure exceeds that a worker has reason to write: pids and connections, requests, moments in seconds.
MOST = 2**31
MOST_REQUESTS = 2**53
LATEST = 1e10

# To be raised with every change of what is where, or means what: an upgrade in place leaves boards with old workers.
LAYOUT = 2
# Mappings that must not be freed (see _map_for_good).
_KEPT: list[mmap.mmap] = []
# Words of the header, of a row's figures and of a lane.
WATCHED, USED = range(2)
STATE, PID, CONNECTIONS, BUSY, SINCE, DEADLINE, BUSY_TIME = range(7)
SEQUENCE, REQUESTS = range(2)


class State(IntEnum):
    """What a row's worker says of itself."""

    FREE = 0
    STARTING = 1
    READY = 2
    DRAINING = 3


STATES = frozenset(map(int, State))


class Request(msgspec.Struct, frozen=True):
    """What one thread is doing: its text (``GET /path``, or the peer), since when, and its deadline (0: none)."""

    what: str
    since: float
    deadline: float


class Snapshot(msgspec.Struct, frozen=True):
    """One row, read whole: the worker's figures, and the requests it is busy with.

    ``since`` and ``deadline`` are those of the event loop's present turn; ``deadline`` is 0 while it waits.
    ``fault`` tells what of the row cannot be true; then everything else is that of an empty row.
    """

    state: State
    pid: int
    connections: int
    requests: int
    since: float
    deadline: float
    current: tuple[Request, ...]
    busy_since: float = 0.0
    busy_time: float = 0.0
    fault: str | None = None

    def busy_for(self, now: float) -> float:
        """Return for how many seconds of its life the worker could take no further request."""
        return self.busy_time + (max(0.0, now - self.busy_since) if self.busy_since else 0.0)


NOTHING = Snapshot(State.FREE, 0, 0, 0, 0.0, 0.0, ())


class Window(NamedTuple):
    """Memory that a row is written through: as bytes, words and times, and where in it the row begins."""

    map: mmap.mmap
    words: memoryview[int]
    times: memoryview[float]
    start: int


class Board:
    """The rows of one pool's workers.

    Args:
        rows: how many workers can have a row at once. Only rows that are written take memory.
        lanes: how many threads of one worker run handlers.
        descriptor: the memory of a board that exists already; None makes a new one.
        taken: the rows of it that workers have.

    Attributes:
        descriptor: the memory, which outlives the program that has it mapped; None where the system has no such.
        layout: tells boards of one version of prefork from those of another.

    """

    layout: tuple[int, ...] = (LAYOUT, PAGE, ROW_WORDS, LANE_SIZE)

    def __init__(
        self, rows: int, lanes: int, descriptor: int | None = None, taken: Collection[int] = ()
    ) -> None:
        assert LANE_SIZE % WORD == 0, f"a lane of {LANE_SIZE} bytes would misalign the words of the next one"
        self.rows = rows
        self.lanes = lanes
        self._row_size = _whole_pages(ROW_WORDS * WORD + lanes * LANE_SIZE)
        self._size = PAGE + rows * self._row_size
        self.descriptor = _memory(self._size) if descriptor is None else descriptor
        self._view(mmap.mmap(-1 if self.descriptor is None else self.descriptor, self._size))
        self._free = [row for row in range(rows) if row not in taken]
        self._used = max(taken, default=-1) + 1
        self._own: dict[int, Window] = {}

    def _view(self, found: mmap.mmap) -> None:
        self.map = found
        self.words = memoryview(found).cast("Q")
        self.times = memoryview(found).cast("d")

    def confine(self, number: int) -> None:
        """Leave this process one row to write; all else can only be read from now on.

        The process must have a single thread. Where a board is no file (see ``descriptor``), everything stays as it is.
        """
        if self.descriptor is None:
            return
        own = _map_for_good(
            self.descriptor, self._row_size, self.row_at(number), mmap.PROT_READ | mmap.PROT_WRITE
        )
        if not self._own:  # a template's worker is confined once more: the whole can only be read by then
            self._unmap()
            self._view(_map_for_good(self.descriptor, self._size, 0, mmap.PROT_READ))
        self._own[number] = Window(own, memoryview(own).cast("Q"), memoryview(own).cast("d"), 0)

    def window(self, number: int) -> Window:
        """Return what a row is written through."""
        return self._own.get(number) or Window(self.map, self.words, self.times, self.row_at(number))

    def claim(self) -> int:
        """Return the number of the lowest free row, cleaned for a worker about to be born.

        Raises IndexError when all are taken.
        """
        number = heapq.heappop(self._free)
        start = self.row_at(number)
        self.map[start : start + self._row_size] = bytes(self._row_size)
        self.words[start // WORD + STATE] = State.STARTING
        self.words[USED] = self._used = max(self._used, number + 1)
        return number

    def release(self, number: int) -> None:
        """Give back the row of a worker that is dead, so that nobody counts it any more."""
        self.words[self.row_at(number) // WORD + STATE] = State.FREE
        heapq.heappush(self._free, number)

    def taken(self) -> list[int]:
        """Return the rows that workers have."""
        return sorted({*range(self.rows)} - {*self._free})

    def close(self) -> None:
        """Give back the memory and its descriptor; others that have it mapped keep it."""
        self._unmap()
        self.forget_descriptor()

    def forget_descriptor(self) -> None:
        """Close the descriptor; what is mapped stays so."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def _unmap(self) -> None:
        self.words.release()
        self.times.release()
        self.map.close()

    def row(self, number: int) -> Row:
        """Return the view of one row through which its worker writes."""
        return Row(self, number)

    def watch(self, watched: bool) -> None:
        """Say whether the master looks here now and then; if not, who arms a deadline has to wake it."""
        self.words[WATCHED] = watched

    def read(self, number: int) -> Snapshot:
        """Return what one row says, never half of it, and nothing that cannot be."""
        first = self.row_at(number) // WORD
        lanes = [self.lane_at(number, lane) for lane in range(self.lanes)]
        current = tuple(request for lane in lanes if (request := self._read_lane(lane)) is not None)
        state, *counts = (self.words[first + word] for word in (STATE, PID, CONNECTIONS))
        times = [self.times[first + word] for word in (SINCE, DEADLINE, BUSY, BUSY_TIME)]
        requests = sum(self.words[lane // WORD + REQUESTS] for lane in lanes)
        all_times = [*times, *(time for request in current for time in (request.since, request.deadline))]
        if fault := _fault(state, counts, requests, all_times):
            return msgspec.structs.replace(NOTHING, fault=fault)
        return Snapshot(
            state=State(state),
            pid=counts[0],
            connections=counts[1],
            requests=requests,
            since=times[0],
            deadline=times[1],
            current=current,
            busy_since=times[2],
            busy_time=times[3],
        )

    def row_at(self, number: int) -> int:
        """Return the offset of a row in bytes."""
        return PAGE + number * self._row_size

    def lane_at(self, number: int, lane: int) -> int:
        """Return the offset of a row's lane in bytes."""
        return self.row_at(number) + lane_offset(lane)

    def _read_lane(self, lane: int) -> Request | None:
        for _ in range(READ_TRIES):
            sequence = self.words[lane // WORD + SEQUENCE]
            copy = COPY.unpack_from(self.map, copy_at(lane, sequence))
            if self.words[lane // WORD + SEQUENCE] == sequence == copy[0]:
                _, since, deadline, length, text = copy
                return Request(text[:length].decode("latin-1"), since, deadline) if since else None
        return None  # overtaken every time: requests come and go faster than they can be read, none is old


class UnreadableBoard(Board):
    """Stands for the board of workers of a version that lays it out in another way: they run on, unwatched."""

    layout = ()

    def __init__(self) -> None:
        super().__init__(rows=0, lanes=0)
        self.close()

    def read(self, number: int) -> Snapshot:  # noqa: ARG002 - whichever it is
        """Return what is known of a row: nothing."""
        return NOTHING

    def watch(self, watched: bool) -> None:
        """Do nothing: its workers could not tell."""

    def release(self, number: int) -> None:
        """Do nothing: the row is nobody's any more, and nobody else will have it."""


class Row:
    """One worker's own figures, for that worker to write.

    Plain indexing throughout: these are stores on the path of every request.
    """

    def __init__(self, board: Board, number: int) -> None:
        own = board.window(number)
        self._words = own.words
        self._times = own.times
        self._first = own.start // WORD
        self._busy_since = self._busy_time = 0.0
        # What the master and the other workers write.
        self._all_words = board.words
        self._all_times = board.times
        self._place = board.row_at(number) // WORD
        self._stride = (board.row_at(1) - board.row_at(0)) // WORD
        self._rows = board.rows
        self.lanes = [Lane(own, own.start + lane_offset(lane)) for lane in range(board.lanes)]

    def set_state(self, state: State) -> None:
        """Say what the worker is."""
        self._words[self._first + STATE] = state

    def set_pid(self, pid: int) -> None:
        """Say which process this is."""
        self._words[self._first + PID] = pid

    def set_connections(self, count: int) -> None:
        """Say how many connections the worker holds."""
        self._words[self._first + CONNECTIONS] = count

    def set_busy(self, since: float) -> None:
        """Say since when the worker could not take one more request; 0 if it could."""
        self._times[self._first + BUSY] = self._busy_since = since

    def set_free(self, now: float) -> None:
        """Say that the worker could take one more request, and add the time for which it could not."""
        if self._busy_since:
            self._busy_time += max(0.0, now - self._busy_since)
            self._times[self._first + BUSY_TIME] = self._busy_time
            self._times[self._first + BUSY] = self._busy_since = 0.0

    def turn(self, now: float, timeout: float) -> None:
        """Say that the event loop has woken up and by when it must have come round (``timeout`` 0: whenever)."""
        self._times[self._first + SINCE] = now
        self._times[self._first + DEADLINE] = now + timeout if timeout else 0.0

    def rest(self) -> None:
        """Say that the event loop waits, or runs a handler, which has a deadline of its own."""
        self._times[self._first + DEADLINE] = 0.0

    @property
    def requests(self) -> int:
        """Return how many requests the worker has served."""
        return sum(lane.requests for lane in self.lanes)

    def is_watched(self) -> bool:
        """Return whether the master looks at the board now and then (see ``Board.watch``)."""
        return self._all_words[WATCHED] != 0

    def least_of_others(self, now: float) -> int | None:
        """Return the smallest number of connections held by another worker that could take one soon, if any."""
        words, times, place, stride = self._all_words, self._all_times, self._place, self._stride
        least = None
        for other in range(PAGE // WORD, PAGE // WORD + min(words[USED], self._rows) * stride, stride):
            if other == place or words[other + STATE] != State.READY:
                continue
            if not 0.0 < times[other + BUSY] < now - MOMENT:
                count = words[other + CONNECTIONS]
                if least is None or count < least:
                    least = count
        return least


class Lane:
    """What one thread of a worker is doing, for that thread to write."""

    def __init__(self, own: Window, at: int) -> None:
        self._map = own.map
        self._words = own.words
        self._times = own.times
        self._sequence_at = at // WORD + SEQUENCE
        self._requests_at = at // WORD + REQUESTS
        self._copies = (copy_at(at, 0), copy_at(at, 1))
        self._since_at = (copy_at(at, 0) // WORD + 1, copy_at(at, 1) // WORD + 1)
        self._sequence = 0
        self._what = b""
        self._since = 0.0
        self.deadline = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether a request runs on this lane."""
        return self._since > 0.0

    @property
    def requests(self) -> int:
        """How many requests this lane has counted."""
        return self._words[self._requests_at]

    def begin(self, what: bytes, now: float, timeout: float) -> None:
        """Say that a request begins; it has ``timeout`` seconds (0: as long as it likes)."""
        self._what = what
        self._since = now
        self._write(now + timeout if timeout else 0.0)

    def extend(self, deadline: float) -> None:
        """Give the present request until ``deadline`` instead."""
        self._write(deadline)

    def end(self) -> None:
        """Say that the request is done, and count it."""
        self._times[self._since_at[self._sequence & 1]] = self._since = self.deadline = 0.0  # as pause does
        self._words[self._requests_at] += 1

    def count(self) -> None:
        """Count one request that is done."""
        self._words[self._requests_at] += 1

    def pause(self) -> None:
        """Say that nobody works on the request for now: its client has to take what there is first."""
        # A single word is never half written, and the copy that is valid is right with either of its values.
        self._times[self._since_at[self._sequence & 1]] = self._since = self.deadline = 0.0

    def _write(self, deadline: float) -> None:
        sequence = self._sequence = self._sequence + 1
        what = self._what
        COPY.pack_into(
            self._map,
            self._copies[sequence & 1],
            sequence,
            self._since,
            deadline,
            min(len(what), TEXT_SIZE),
            what,
        )
        self._words[self._sequence_at] = sequence
        self.deadline = deadline


def _memory(size: int) -> int | None:
    """Return memory as a file, so that a program that replaces this one can map it too; None: only by this one."""
    if not hasattr(os, "memfd_create"):
        return None
    descriptor = os.memfd_create("prefork-scoreboard")
    os.fchmod(
        descriptor, 0o600
    )  # by /proc anybody could open it for writing otherwise (memfd_create(2): 0777)
    os.ftruncate(descriptor, size)
    return descriptor


def _map_for_good(descriptor: int, size: int, offset: int, protection: int) -> mmap.mmap:
    """Map a part of a file for the rest of this process's life, without keeping the file open.

    Before Python 3.13 a mapping has a duplicate of the descriptor, which gets the lowest free number and is closed with the
    mapping: so that is never freed.
    """
    if sys.version_info >= (3, 13):
        return mmap.mmap(descriptor, size, prot=protection, offset=offset, trackfd=False)
    free = os.dup(descriptor)
    os.close(free)
    found = mmap.mmap(descriptor, size, prot=protection, offset=offset)
    os.close(free)
    _KEPT.append(found)
    return found


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _fault(state: int, counts: list[int], requests: int, times: list[float]) -> str | None:
    """Return what of a row cannot be true, if anything; NaN is not between any two numbers."""
    if state not in STATES:
        return f"a state of {state}"
    for count in counts:
        if count > MOST:
            return f"a count of {count}"
    if requests > MOST_REQUESTS:
        return f"a count of {requests} requests"
    for time in times:
        if not 0.0 <= time <= LATEST:
            return f"a time of {time}"
    return None


def lane_offset(lane: int) -> int:
    """Return the offset in bytes of a lane within its row."""
    return ROW_WORDS * WORD + lane * LANE_SIZE


def copy_at(lane: int, sequence: int) -> int:
    """Return the offset in bytes of the copy that is valid under a sequence number."""
    return lane + LANE_WORDS * WORD + (sequence & 1) * COPY.size
