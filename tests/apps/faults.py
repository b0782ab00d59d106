"""A socket handler that misbehaves in the way that its client's line says."""

import ctypes
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

import prefork


def act(sock, address):
    """Read one line, and do what it says."""
    line = b""
    while not line.endswith(b"\n"):
        data = sock.recv(1)
        if not data:
            return
        line += data
    verb, *arguments = line.decode().split()
    VERBS[verb](sock, *arguments)


def say_pid(sock):
    sock.sendall(str(os.getpid()).encode())


def answer_unread(sock, size):
    """Answer without having read what the client has sent beside its line."""
    sock.sendall(b"x" * int(size))


def keep(sock):
    """Leave a reference to the socket behind."""
    KEPT.append(sock)
    sock.sendall(b"kept")


def leave(sock, code):
    os._exit(int(code))


def exit_from_python(sock, code):
    sock.sendall(b"leaving")
    sys.exit(int(code))


def crash(sock):
    ctypes.string_at(0)


def sleep(sock, seconds):
    sock.sendall(b"began ")
    time.sleep(float(seconds))
    sock.sendall(b"slept")


def hold(sock):
    """Be at work until the client has ended."""
    sock.sendall(b"began ")
    while sock.recv(1):
        pass


def spin(sock, seconds):
    """Compute in Python for some time."""
    sock.sendall(b"began ")
    until = time.monotonic() + float(seconds)
    while time.monotonic() < until:
        pass
    sock.sendall(b"done")


def regex(sock):
    """Hold the interpreter in C code for ever."""
    sock.sendall(b"began ")
    re.match(r"(a+)+$", "a" * 60 + "b")


def mask(sock):
    """Block TERM, in every way that a thread can."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    say_pid(sock)


def fork(sock):
    """Have a grandchild that keeps all descriptors, the connection's too."""
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    sock.sendall(str(pid).encode())


def start_program(sock):
    """Have a grandchild that runs another program."""
    program = subprocess.Popen(["sleep", "60"])
    sock.sendall(str(program.pid).encode())


def close_all(sock):
    os.closerange(3, 4096)


def close_channel(sock, seconds):
    """Close the channel to the master, and stay busy."""
    os.close(find_channel(sock))
    sleep(sock, seconds)


def write_rubbish(sock):
    os.write(find_channel(sock), b"rubbish")
    sock.sendall(b"written")


def find_channel(sock):
    """The one socket that keeps packets apart and is connected."""
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            if number == sock.fileno() or not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
        except OSError:
            continue
        with socket.socket(fileno=os.dup(number)) as found:
            if found.type == socket.SOCK_SEQPACKET:
                return number
    raise LookupError("no channel")


def allocate(sock):
    """Ask for more memory than there may be."""
    resource.setrlimit(resource.RLIMIT_AS, (2**29, resource.RLIM_INFINITY))
    try:
        bytearray(2**30)
    finally:
        sock.sendall(b"tried")


def eat(sock):
    """Take memory until somebody objects."""
    while True:
        KEPT.append(bytearray(b"x" * 2**22))


def wait_for_stop(sock):
    sock.sendall(b"waiting ")
    prefork.current().stopping.wait(60)
    sock.sendall(b"stopping")


def raise_late(sock):
    """Fail after a part of the answer."""
    sock.sendall(b"half")
    raise RuntimeError("the handler's own mistake")


def who(sock):
    worker = prefork.current()
    sock.sendall(f"{worker.pool} {worker.slot} {worker.generation} {os.getpid()}".encode())


def meet(sock, count):
    """Wait until so many connections are handled at once by this worker."""
    with MET:
        ARRIVED.append(sock)
        MET.notify_all()
        met = MET.wait_for(lambda: len(ARRIVED) >= int(count), 20)
    sock.sendall(b"met" if met else b"alone")


def extend(sock, seconds, spent):
    prefork.current().extend(float(seconds))
    spin(sock, spent)


KEPT = []
ARRIVED = []
MET = threading.Condition()
VERBS = {
    "allocate": allocate,
    "close_all": close_all,
    "close_channel": close_channel,
    "crash": crash,
    "eat": eat,
    "exit": exit_from_python,
    "extend": extend,
    "fork": fork,
    "hold": hold,
    "keep": keep,
    "leave": leave,
    "mask": mask,
    "meet": meet,
    "pid": say_pid,
    "program": start_program,
    "raise": raise_late,
    "regex": regex,
    "rubbish": write_rubbish,
    "sleep": sleep,
    "spin": spin,
    "stop": wait_for_stop,
    "unread": answer_unread,
    "who": who,
}


def one_argument(sock):
    """Not a handler."""


NUMBER = 42
