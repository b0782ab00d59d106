"""Applications that fork, and start programs and threads, as users' code does."""

import asyncio
import atexit
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import prefork

FORK = multiprocessing.get_context("fork")
threads = ThreadPoolExecutor(2)
processes = []


def app(environ, start_response):
    """Do what the path says and answer with what came of it."""
    _, verb, *arguments = environ["PATH_INFO"].split("/")
    body = str(VERBS[verb](*arguments)).encode()
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield body


def sleeper(daemon=True):
    made = FORK.Process(target=time.sleep, args=(600,), daemon=daemon)
    made.start()
    return made


def pool():
    with FORK.Pool(2) as found:
        return found.map(abs, [-1, 2])


def terminate():
    made = sleeper()
    made.terminate()
    made.join()
    return made.exitcode


def leave():
    """Leave a forked process and a program behind."""
    program = subprocess.Popen(["sleep", "600"], start_new_session=True)
    return f"{sleeper().pid} {program.pid}"


def leave_all_but_one():
    made = [subprocess.Popen(["sleep", "600"]), subprocess.Popen(["sleep", "600"])]
    prefork.detach(made[1].pid)
    return " ".join(str(found.pid) for found in made)


def hang():
    print(leave(), file=sys.stderr)
    time.sleep(600)


def orphan():
    """Leave a forked process behind whose parent is gone, and return its pid."""
    reading, writing = os.pipe()
    between = os.fork()
    if between == 0:
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
        os.write(writing, str(pid).encode())
        os._exit(0)
    os.waitpid(between, 0)
    return int(os.read(reading, 100))


def get_stuck():
    """Leave processes and orphans behind and a detached process, and hold the interpreter in C code."""
    shell = subprocess.run(["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"], stdout=subprocess.PIPE)
    free = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    prefork.detach(free.pid)
    print(leave(), int(shell.stdout), orphan(), free.pid, file=sys.stderr)
    re.match("(a+)+$", "a" * 64 + "b")


def fork_and_look():
    """Return what sockets a copy has."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        names = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        found = [os.readlink(name) for name in names if os.path.islink(name)]
        os.write(writing, repr([name for name in found if name.startswith("socket:")]).encode())
        os._exit(0)
    os.wait()
    return os.read(reading, 4096).decode()


def keep_executor():
    processes.append(ProcessPoolExecutor(2, mp_context=FORK))
    return list(processes[0].map(abs, [-1, 2]))


def jobs(file):
    """Have what goes on after the request, and what comes at the end, write to a file, in the order of their ends."""
    path = Path(bytes.fromhex(file).decode())

    def note(what):
        with path.open("a") as opened:
            opened.write(f"{what}\n")

    def work(what):
        while not prefork.current().stopping.is_set():
            time.sleep(0.01)
        time.sleep(0.1)
        note(what)

    worker = prefork.current()
    atexit.register(note, "atexit")
    threads.submit(work, "job")
    threading.Thread(target=work, args=("thread",)).start()
    return worker.slot


VERBS = {
    "pid": os.getpid,
    "pool": pool,
    "terminate": terminate,
    "leave": leave,
    "leave_all_but_one": leave_all_but_one,
    "hang": hang,
    "get_stuck": get_stuck,
    "fork_and_look": fork_and_look,
    "keep_executor": keep_executor,
    "jobs": jobs,
}


def handle(sock, address):
    """Answer with the pid of a process that holds the connection, too."""
    sock.sendall(str(sleeper().pid).encode())


async def handle_async(reader, writer):
    """Do the same in a coroutine."""
    writer.write(str(sleeper().pid).encode())
    await asyncio.sleep(0)
