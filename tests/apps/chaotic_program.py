"""A program that serves an inherited listener until SIGTERM, then finishes what it has; it keeps a child."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading

BODY = b"hello"
over = threading.Event()


def serve(client: socket.socket) -> None:
    with client, client.makefile("rb") as stream:
        length = 0
        while (line := stream.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        if line:
            stream.read(length)
            client.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n" + BODY)


def tell(what: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = os.environ["NOTIFY_SOCKET"]
        manager.sendto(what.encode(), "\0" + name[1:] if name.startswith("@") else name)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    subprocess.Popen(["sleep", "1000"])  # ends with the group
    listener = socket.socket(fileno=3)
    listener.settimeout(0.05)
    tell("READY=1")
    threads = []
    while not over.is_set():
        try:
            client, _ = listener.accept()
        except (TimeoutError, BlockingIOError):
            continue
        client.settimeout(20)
        threads.append(threading.Thread(target=serve, args=(client,)))
        threads[-1].start()
    for thread in threads:
        thread.join()


main()
