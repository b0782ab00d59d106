"""How a worker stands to the queue of its listeners; a real epoll object and real connections over the loopback."""

from __future__ import annotations

import resource
import select
import socket
from collections.abc import Iterator

import pytest

from prefork.worker.acceptor import HEAD_START, SHORTAGE_PAUSE, SHUT_PAUSE, Acceptor

LIMIT = 10


class Worker:
    """An acceptor with its loop's part, the clients that connect, and the figures of the other workers."""

    def __init__(self, listeners: int = 1) -> None:
        self.epoll = select.epoll()
        self.listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(listeners)]
        for listener in self.listeners:
            listener.setblocking(False)
        self.least: int | None = None
        self.reports: list[str] = []
        self.sockets: list[socket.socket] = []
        self.acceptor = Acceptor(
            self.epoll, self.listeners, lambda _now: self.least, LIMIT, self.reports.append
        )
        self.acceptor.settle(0, 0.0)

    def connect(self, listener: int = 0) -> None:
        self.sockets.append(socket.create_connection(self.listeners[listener].getsockname()))

    def turn(self, now: float) -> bool:
        """Turn once without waiting; return whether a connection was taken."""
        for descriptor, _ in self.epoll.poll(0):
            self.acceptor.signal(descriptor, now)
        if (accepted := self.acceptor.take(now)) is None:
            return False
        self.sockets.append(accepted[0])
        return True

    def close(self) -> None:
        self.acceptor.close()
        self.epoll.close()
        for connection in [*self.sockets, *self.listeners]:
            connection.close()


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


def test_whoever_holds_nothing_takes_at_once_one_at_a_time(worker: Worker) -> None:
    assert not worker.turn(0.0)
    worker.connect()
    worker.connect()
    assert [worker.turn(0.0) for _ in range(3)] == [True, True, False]


def test_whoever_holds_clearly_more_lets_the_others_go_first(worker: Worker) -> None:
    worker.least = 0
    worker.acceptor.settle(2, 0.0)
    worker.connect()
    assert not worker.turn(0.0)
    assert worker.acceptor.due == HEAD_START
    assert worker.turn(HEAD_START)


def test_what_others_have_taken_meanwhile_is_no_matter(worker: Worker) -> None:
    worker.least = 0
    worker.acceptor.settle(2, 0.0)
    worker.connect()
    assert not worker.turn(0.0)
    worker.sockets.append(worker.listeners[0].accept()[0])
    assert not worker.turn(HEAD_START)
    assert worker.acceptor.due is None


def test_whoever_lets_others_go_first_forgets_nobody(worker: Worker) -> None:
    worker.least = 0
    worker.acceptor.settle(2, 0.0)
    for _ in range(3):
        worker.connect()
    taken = [worker.turn(moment * HEAD_START) for moment in range(8)]
    assert sum(taken) == 3


def test_no_listener_of_several_is_forgotten() -> None:
    worker = Worker(listeners=2)
    worker.least = 0
    for held in (0, 2):  # eager, and modest
        worker.acceptor.settle(held, 0.0)
        worker.connect(0)
        worker.connect(1)
        assert sum(worker.turn(moment * HEAD_START) for moment in range(6)) == 2
    worker.close()


def test_a_small_difference_is_no_reason_to_step_back(worker: Worker) -> None:
    for least, held in ((0, 1), (1, 2), (7, 8), (None, 9)):
        worker.least = least
        worker.acceptor.settle(held, 0.0)
        worker.connect()
        assert worker.turn(0.0)


def test_a_connection_that_waits_while_the_worker_changes_its_mind_is_not_forgotten(worker: Worker) -> None:
    worker.least = 0
    worker.acceptor.settle(2, 0.0)
    worker.connect()
    assert not worker.turn(0.0)
    worker.acceptor.settle(1, 0.0)
    assert worker.turn(0.0)


def test_at_the_limit_nobody_is_taken_until_there_is_room(worker: Worker) -> None:
    worker.acceptor.settle(LIMIT, 0.0)
    worker.connect()
    assert not worker.turn(0.0)
    assert not worker.epoll.poll(0)
    worker.acceptor.settle(LIMIT - 1, 0.0)
    assert worker.turn(0.0)


def test_without_descriptors_it_waits_and_says_so_once(worker: Worker) -> None:
    worker.connect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        for _ in range(3):
            now = worker.acceptor.due or 100.0
            assert not worker.turn(now)  # from the second time on: the pause is over
            worker.acceptor.settle(0, now)
            assert not worker.turn(now)
            worker.acceptor.settle(0, now)
            assert worker.acceptor.due == now + SHORTAGE_PAUSE
            assert not worker.epoll.poll(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert worker.reports == ["cannot accept: Too many open files; connections wait in the queue"]
    worker.acceptor.settle(0, 200.0)
    assert worker.turn(200.0)


def test_the_queue_is_emptied_whatever_the_others_hold(worker: Worker) -> None:
    worker.least = 0
    worker.acceptor.settle(5, 0.0)
    for _ in range(3):
        worker.connect()
    taken = worker.acceptor.empty_queue()
    worker.sockets += [connection for connection, *_ in taken]
    assert len(taken) == 3


def test_who_leaves_takes_what_it_may_have_been_woken_for_and_no_more(worker: Worker) -> None:
    for _ in range(3):
        worker.connect()
    taken = worker.acceptor.leave(most=2)
    worker.sockets += [connection for connection, *_ in taken]
    assert len(taken) == 2
    assert not worker.acceptor.descriptors


def test_who_was_not_to_be_woken_takes_nothing_along(worker: Worker) -> None:
    worker.acceptor.settle(LIMIT, 0.0)
    worker.connect()
    assert not worker.acceptor.leave(most=1)


def test_what_waits_is_reported_again_when_another_worker_has_died() -> None:
    dying, living = Worker(), select.epoll()
    listener = dying.listeners[0]
    reports: list[str] = []
    acceptor = Acceptor(living, [listener.dup()], lambda _now: None, LIMIT, reports.append)
    acceptor.settle(0, 0.0)
    dying.connect()
    acceptor.look_again()
    ((descriptor, _),) = living.poll(0)
    acceptor.signal(descriptor, 0.0)
    taken = acceptor.take(0.0)
    assert taken is not None
    taken[0].close()
    acceptor.close()
    living.close()
    dying.close()


def test_a_listener_that_was_shut_down_is_left() -> None:
    worker = Worker(listeners=2)
    worker.listeners[0].shutdown(socket.SHUT_RDWR)
    assert not worker.turn(0.0)
    assert len(worker.acceptor.descriptors) == 1
    worker.connect(1)
    assert worker.turn(0.0)
    worker.close()


@pytest.mark.parametrize("held", [0, 2])  # eager, and modest
def test_a_listener_that_was_shut_down_is_tried_again_and_may_listen_by_then(held: int) -> None:
    worker = Worker(listeners=2)
    worker.least = 0
    worker.acceptor.settle(held, 0.0)
    address = worker.listeners[0].getsockname()
    worker.listeners[0].shutdown(socket.SHUT_RDWR)
    assert not any(worker.turn(number * HEAD_START) for number in range(2))
    assert not any(worker.turn(SHUT_PAUSE + number * HEAD_START) for number in range(1, 4))
    assert worker.acceptor.due is not None
    assert list(worker.acceptor.descriptors) == [worker.listeners[1].fileno()]
    worker.listeners[0].bind(address)
    worker.listeners[0].listen()
    worker.connect(0)
    assert not worker.turn(SHUT_PAUSE + 4 * HEAD_START)
    assert any(worker.turn(2 * SHUT_PAUSE + number * HEAD_START) for number in range(4, 8))
    assert worker.acceptor.descriptors.keys() == {each.fileno() for each in worker.listeners}
    worker.close()


def test_after_the_close_nothing_is_registered(worker: Worker) -> None:
    worker.acceptor.close()
    assert worker.acceptor.descriptors == {}
    assert worker.acceptor.due is None
