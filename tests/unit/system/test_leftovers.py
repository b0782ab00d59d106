"""Threads and sockets are found and named."""

from __future__ import annotations

import _thread
import socket
import threading
import time
from pathlib import Path

from prefork.system.leftovers import TASKS, _name_at, open_sockets, other_threads


def end(thread: threading.Thread) -> None:
    """Return once a thread has ended for the kernel as well, which is some microseconds after ``join``."""
    thread.join()
    while Path(f"{TASKS}/{thread.native_id}").exists():
        pass


def test_threads_are_named_and_the_calling_one_is_left_out() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="flusher")
    before = other_threads(())
    thread.start()
    try:
        assert sorted([*before, "flusher"]) == other_threads(())
    finally:
        done.set()
        end(thread)


def test_a_thread_that_the_threading_module_does_not_know_is_found_too() -> None:
    before = other_threads(())
    lock, started = _thread.allocate_lock(), _thread.allocate_lock()
    lock.acquire()
    started.acquire()
    _thread.start_new_thread(lambda: (started.release(), lock.acquire()), ())
    started.acquire()
    (name,) = set(other_threads(())) - set(before)
    lock.release()
    while other_threads(()) != before:
        pass  # or the next test would find it
    assert name.endswith("(native)")


def test_a_thread_that_is_known_is_left_out() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="orders")
    thread.start()
    found = other_threads({thread.native_id})
    done.set()
    end(thread)
    assert "orders" not in found


def test_a_thread_that_ends_while_it_is_looked_at_has_no_name() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    comm = Path(f"{TASKS}/{thread.native_id}/comm")
    with comm.open() as file:
        done.set()
        until = time.monotonic() + 30
        while comm.exists():  # nothing announces the end of a thread that Python has detached
            assert time.monotonic() < until
            time.sleep(0.001)
        # Opened again by its descriptor it is there, and cannot be read: so it is found by who has opened it in time.
        assert _name_at(f"/proc/self/fd/{file.fileno()}") is None
        assert _name_at(str(comm)) is None


def test_sockets_are_told_with_both_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            known = set(range(1024)) - {client.fileno(), listener.fileno()}
            found = open_sockets(known)
            here = f"127.0.0.1:{client.getsockname()[1]}"
            assert found == [f"inet 127.0.0.1:{port}", f"inet {here} -> 127.0.0.1:{port}"]


def test_a_pair_without_names_is_a_socket_and_what_is_known_is_left_out() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        known = set(range(1024)) - {ours.fileno()}
        assert open_sockets(known) == ["unix"]
