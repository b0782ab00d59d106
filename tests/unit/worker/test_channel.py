"""The channel: what a worker sends may be anything, and whatever it is, the master reads a message or an error."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.worker import channel
from prefork.worker.channel import Born, ProtocolError, Ready

DEEP = b"\x82\xa4type\xa4Busy\xa1x" + b"\x91" * 60000 + b"\xc0"
NO_UTF8 = b"\x83\xa4type\xaaBootFailed\xa6reason\xa4\xff\xfe\xff\xfe\xa9traceback\xa0"


def send_raw(packet: bytes) -> tuple[socket.socket, socket.socket]:
    ours, theirs = channel.pair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 300000)
    theirs.send(packet)
    return ours, theirs


@pytest.mark.parametrize("packet", [b"rubbish", b"\x90", b"\xc1", DEEP, NO_UTF8, b"\x81\xa4type\xa4Born"])
@pytest.mark.parametrize("receive", [channel.receive_from_worker, channel.receive_from_master])
def test_rubbish_is_a_protocol_error_to_whoever_reads_it(packet, receive):
    ours, theirs = send_raw(packet)
    with ours, theirs, pytest.raises(ProtocolError):
        receive(ours)


@given(st.binary(min_size=1, max_size=200))
def test_no_packet_raises_anything_else(packet):
    ours, theirs = send_raw(packet)
    with ours, theirs:
        try:
            assert isinstance(channel.receive_from_worker(ours), channel.Message)
        except ProtocolError:
            return


def test_the_kernel_tells_who_says_that_it_is_born():
    ours, theirs = channel.pair()
    channel.ask_for_senders(ours)
    with ours, theirs:
        assert channel.send(theirs, Born())
        assert channel.receive_from_unborn(ours) == (Born(), os.getpid())


def test_descriptors_that_a_worker_sends_do_not_stay_open():
    ours, theirs = channel.pair()
    channel.ask_for_senders(ours)
    reader, writer = os.pipe()
    with ours, theirs:
        for message, receive in (
            (Born(), channel.receive_from_unborn),
            (Ready(), channel.receive_from_worker),
        ):
            assert channel.send(theirs, message, [writer] * 4)
            assert receive(ours)
    os.close(writer)
    assert os.read(reader, 1) == b""  # nobody holds a copy
    os.close(reader)
