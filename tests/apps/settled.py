"""Says what the process is that it runs in: a socket handler, one JSON object per connection.

It imports only what the master has imported: another user may not be allowed to read root's Python.
"""

import ctypes
import json
import os
import resource
import sys


def handle(sock, address):
    """Tell everything, and do what a path in the environment says to write."""
    if "WRITE" in os.environ:
        open(os.environ["WRITE"], "x").close()
    tasks = [int(task) for task in os.listdir("/proc/self/task")]
    found = {
        "user": os.getresuid(),
        "group": os.getresgid(),
        "groups": os.getgroups(),
        "home": [os.environ.get(name) for name in ("HOME", "USER", "LOGNAME")],
        "directory": os.getcwd(),
        "path": sys.path[:2],
        "threads": len(tasks),
        "nice": sorted({os.getpriority(os.PRIO_PROCESS, task) for task in tasks}),
        "cpus": sorted({tuple(sorted(os.sched_getaffinity(task))) for task in tasks}),
        "no_new_privs": sorted({no_new_privs(task) for task in tasks}),
        "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
        "limits": {
            name.removeprefix("RLIMIT_").lower(): resource.getrlimit(getattr(resource, name))
            for name in dir(resource)
            if name.startswith("RLIMIT_")
        },
    }
    sock.sendall(json.dumps(found).encode())


def no_new_privs(task):
    """Return what the kernel says of one thread (proc(5))."""
    with open(f"/proc/self/task/{task}/status") as file:
        status = file.read()
    return int(status.partition("NoNewPrivs:")[2].split()[0])
