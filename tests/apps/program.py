"""A program for pools of kind command: plain Python without prefork; each argument is something that it does, in order."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

leaving = False


def notify(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + os.environ["NOTIFY_SOCKET"][1:])
        sock.send(text.encode())


def describe():
    """Tell what a program finds: all that it did not make itself."""
    return {
        "environment": dict(os.environ),
        "pid": os.getpid(),
        "session": os.getsid(0),
        "group": os.getpgid(0),
        "user": os.getuid(),
        "directory": os.getcwd(),
        "arguments": sys.argv,
        "descriptors": {
            name: os.readlink(f"/proc/self/fd/{name}") for name in sorted(os.listdir("/proc/self/fd"))[:-1]
        },
    }


def child(*verbs, session):
    return subprocess.Popen([sys.executable, __file__, *verbs], start_new_session=session)


def orphan():
    """Leave somebody behind who has a session of its own, no parent, and nothing of this environment."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execve(sys.executable, [sys.executable, __file__, "deaf", "pid=orphan", "sleep=600"], {})
        os._exit(0)
    os.wait()


def serve():
    """Answer each request with this process's pid, until it is told to leave."""
    listener = socket.socket(fileno=3)
    listener.settimeout(0.02)
    while not leaving:
        try:
            client, _ = listener.accept()
        except TimeoutError:
            continue
        client.settimeout(10)
        while b"\r\n\r\n" not in client.recv(65536):
            continue
        body = str(os.getpid()).encode()
        client.sendall(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            continue
        client.close()


def write_pid(path):
    Path(f"{path}.tmp").write_text(str(os.getpid()))
    Path(f"{path}.tmp").rename(path)


def flood(count):
    sys.stdout.writelines(f"line {number}\n" for number in range(int(count)))
    sys.stdout.flush()


def close(_):
    os.close(1)
    os.close(2)


def be_deaf(_):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def be_polite(name):
    def leave(*_):
        global leaving
        leaving = True
        print(f"told by {name}", flush=True)

    signal.signal(getattr(signal, f"SIG{name}"), leave)


def wait_for(path):
    while not Path(path).exists():
        time.sleep(0.01)


def take(path):
    """Wait for a file and remove it: one of several who wait gets it."""
    while True:
        try:
            os.unlink(path)
        except FileNotFoundError:
            time.sleep(0.01)
        else:
            return


def allocate(size):
    global kept
    kept = b"x" * int(size)


def sleep(seconds):
    until = time.monotonic() + float(seconds)
    while time.monotonic() < until and not leaving:
        time.sleep(max(0, min(0.02, until - time.monotonic())))


VERBS = {
    "ready": lambda _: notify("READY=1"),
    "stopping": lambda _: notify("STOPPING=1"),
    "status": lambda text: notify(f"STATUS={text}"),
    "tell": lambda path: Path(path).write_text(json.dumps(describe())),
    "pid": write_pid,
    "print": lambda text: print(text, flush=True),
    "write": lambda text: os.write(1, text.encode()),
    "long": lambda size: sys.stdout.write("x" * int(size)) and sys.stdout.flush(),
    "flood": flood,
    "close": close,
    "deaf": be_deaf,
    "polite": be_polite,
    "child": lambda verbs: child(*re.split("[,;]", verbs), session=False),
    "away": lambda verbs: child(*verbs.split(","), session=True),
    "orphan": lambda _: orphan(),
    "await": wait_for,
    "take": take,
    "allocate": allocate,
    "sleep": sleep,
    "serve": lambda _: serve(),
    "kill": lambda name: os.kill(os.getpid(), getattr(signal, f"SIG{name}")),
    "exit": lambda code: sys.exit(int(code)),
}

if __name__ == "__main__":
    for argument in sys.argv[1:]:
        verb, _, value = argument.partition("=")
        VERBS[verb](value)
