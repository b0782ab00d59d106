"""Threads and sockets are found and named."""

from __future__ import annotations

import _thread
import os
import socket
import threading

from prefork.system.leftovers import TASKS, open_sockets, other_threads


def end(thread: threading.Thread) -> None:
    """Return once a thread has ended for the kernel as well, which is some microseconds after ``join``."""
    thread.join()
    while os.path.exists(f"{TASKS}/{thread.native_id}"):
        pass


def test_threads_are_named_and_the_calling_one_is_left_out() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="flusher")
    before = other_threads()
    thread.start()
    try:
        assert sorted([*before, "flusher"]) == other_threads()
    finally:
        done.set()
        end(thread)


def test_a_thread_that_the_threading_module_does_not_know_is_found_too() -> None:
    before = other_threads()
    lock, started = _thread.allocate_lock(), _thread.allocate_lock()
    lock.acquire()
    started.acquire()
    _thread.start_new_thread(lambda: (started.release(), lock.acquire()), ())
    started.acquire()
    (name,) = set(other_threads()) - set(before)
    lock.release()
    while other_threads() != before:
        pass  # or the next test would find it
    assert name.endswith("(native)")


def test_a_thread_that_was_joined_is_left_out_while_the_kernel_still_lists_it() -> None:
    before = other_threads()
    for _ in range(100):
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        assert other_threads(thread) == before
        end(thread)


def test_threads_that_end_while_they_are_looked_at_are_no_mistake() -> None:
    for _ in range(100):
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        other_threads()
    end(thread)


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
