"""Socket handlers for the tests."""

import os
import socketserver
import sys
import time

import prefork


def pid(sock, address):
    """Say who serves, and close."""
    sock.sendall(str(os.getpid()).encode())


def echo(sock, address):
    """Send back what comes, until the client's end."""
    while data := sock.recv(65536):
        sock.sendall(data)


def hold(sock, address):
    """Say who serves, then hold the connection until the client closes."""
    sock.sendall(str(os.getpid()).encode())
    while sock.recv(65536):
        pass


def command(sock, address):
    """Do what the client's line says."""
    line = sock.makefile("rb").readline().decode().split()
    verb, arguments = line[0], line[1:]
    if verb == "raise":
        raise RuntimeError("the handler's own mistake")
    if verb == "exit":
        sys.exit(int(arguments[0]))
    if verb == "close":
        sock.sendall(b"closed by the handler")
        sock.close()
    elif verb == "detach":
        sock.sendall(b"detached")
        os.close(sock.detach())
    elif verb == "sleep":
        time.sleep(float(arguments[0]))
        sock.sendall(b"slept")
    elif verb == "extend":
        prefork.current().extend(float(arguments[0]))
        time.sleep(float(arguments[1]))
        sock.sendall(b"slept")
    elif verb == "stopping":
        sock.sendall(b"waiting\n")
        stopped = prefork.current().stopping.wait(60)
        sock.sendall(b"stopping" if stopped else b"not stopping")
    elif verb == "who":
        worker = prefork.current()
        sock.sendall(f"{worker.pool} {worker.slot} {worker.generation} {os.getpid()}".encode())


def fork(sock, address):
    """Fork, and let both go on as if nothing had happened."""
    sock.sendall(b"forked" if os.fork() else b"")


def fork_and_exit(sock, address):
    """Fork a process that leaves as a program would."""
    if not os.fork():
        sys.exit(3)
    sock.sendall(b"forked")


class Shout(socketserver.StreamRequestHandler):
    """A class of the socketserver module."""

    def handle(self):
        self.wfile.write(self.rfile.readline().upper())
