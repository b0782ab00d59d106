"""A WSGI application that does to its worker what somebody who has taken it over might do."""

import os
import socket
import threading

import prefork
from prefork.worker import channel

CHANNEL = {
    "rubbish": b"rubbish",
    "utf8": b"\x83\xa4type\xaaBootFailed\xa6reason\xa4\xff\xfe\xff\xfe\xa9traceback\xa0",
    "deep": b"\x82\xa4type\xa4Busy\xa1x" + b"\x91" * 60000 + b"\xc0",
    "huge": b"\x82\xa4type\xa5Spent\xacmax_requests\xdb\xff\xff\xff\xff",
}
TIMES = {name: float(name) for name in ("nan", "inf", "-inf", "-1", "1e300")}


def app(environ, start_response):
    """Do what the path says, and answer with this worker's pid."""
    what = environ["PATH_INFO"].strip("/")
    row = prefork.current()._row
    if what in CHANNEL:
        send(CHANNEL[what])
    elif what in TIMES:
        row.lanes[0].extend(TIMES[what])
        send(b"\x81\xa4type\xa4Busy")  # have the master look
        threading.Event().wait(30)
    elif what == "state":
        row._words[row._first] = 77
        send(b"\x81\xa4type\xa4Busy")
        threading.Event().wait(30)
    elif what == "flood":
        threading.Thread(target=flood, daemon=True).start()
    elif what == "shut":
        shut_listeners()
    elif what == "random":
        for _ in range(100):
            row._words[int.from_bytes(os.urandom(1)) % len(row._words)] = int.from_bytes(os.urandom(8))
        send(b"\x81\xa4type\xa4Busy")
        send(os.urandom(40))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]


def send(packet):
    with masters() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 300000)
        found.send(packet)


def flood():
    with masters() as found:
        while True:
            channel.send(found, channel.Busy())


def masters():
    """Return a copy of the channel to the master."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        try:
            found = socket.socket(fileno=os.dup(descriptor))
        except OSError:
            continue
        if (found.family, found.type) == (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            return found
    raise RuntimeError("there is no channel")


def shut_listeners():
    """Shut every listening socket of this process down, which its siblings share."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        try:
            found = socket.socket(fileno=os.dup(descriptor))
        except OSError:
            continue
        with found:
            if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                found.shutdown(socket.SHUT_RDWR)
