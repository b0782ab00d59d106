"""What programs say by sd_notify(3), and who is believed."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

import pytest

from prefork.worker.notices import MAX_NOTICES, Notices


def say(notices: Notices, data: bytes, *descriptors: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + notices.address[1:])
        socket.send_fds(sock, [data], descriptors)


@pytest.fixture
def notices():
    return Notices({os.getuid()})


def test_each_assignment_is_taken(notices):
    say(notices, b"READY=1\nSTATUS=all is well\n")
    say(notices, b"STOPPING=1")
    assert list(notices.take()) == ["READY=1", "STATUS=all is well", "STOPPING=1"]
    assert list(notices.take()) == []


def test_others_are_not_believed():
    notices = Notices({os.getuid() + 1})
    say(notices, b"READY=1")
    assert list(notices.take()) == []


def test_descriptors_that_come_along_are_closed(notices):
    read, write = os.pipe()
    say(notices, b"BARRIER=1", write)
    os.close(write)
    assert list(notices.take()) == ["BARRIER=1"]
    assert os.read(read, 1) == b""
    os.close(read)


def test_a_flood_is_taken_in_bounded_pieces(notices):
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.setblocking(False)
    sender.connect("\0" + notices.address[1:])
    sent = 0
    with sender, suppress(BlockingIOError):
        while sent < 10 * MAX_NOTICES:
            sent += bool(sender.send(b"READY=1"))
    assert len(list(notices.take())) == min(sent, MAX_NOTICES) > 1
