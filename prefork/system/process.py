"""Processes: fork, watch, signal, reap, and what the kernel knows about them."""

from __future__ import annotations

import fcntl
import gc
import os
import re
import resource
import select
import signal
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import NoReturn

import msgspec

from prefork.errors import CommandError
from prefork.system import forks, signals, stdio

PAGE = os.sysconf("SC_PAGE_SIZE")
PRIVATE = re.compile(rb"^Private_\w+:\s*(\d+) kB$", re.MULTILINE)
# A process that could not even say what went wrong with it; as EX_SOFTWARE of sysexits.h.
BROKEN = 70
# From here on an exit status stands for a signal, in a shell and in what waits for this server.
SIGNALLED = 128


class Ended(msgspec.Struct, frozen=True):
    """How a child ended: exit code or signal, its peak resident memory in bytes, and what a shell makes of the two.

    ``status`` is the code, or 128 and the number of the signal (bash(1), EXIT STATUS).
    """

    code: int | None
    signal: str | None
    peak_memory: int
    status: int


class Child:
    """A process that this one has forked, or adopted, and not reaped yet.

    Args:
        pid: its number.
        pidfd: a descriptor for it, if there is one already; the child closes it.

    Attributes:
        pid: its number.
        pidfd: a descriptor that gets readable when it ends, or None where the kernel has none (Linux 5.3 has).

    """

    def __init__(self, pid: int, pidfd: int | None = None) -> None:
        self.pid = pid
        self.pidfd = open_pidfd(pid) if pidfd is None else pidfd

    def send_signal(self, number: int) -> None:
        """Send a signal. The child is not reaped, so its number cannot mean somebody else."""
        os.kill(self.pid, number)

    def close(self) -> None:
        """Close the descriptor, once the child is reaped."""
        if self.pidfd is not None:
            os.close(self.pidfd)


def fork(run: Callable[[], NoReturn]) -> Child:
    """Return a child that runs ``run``, which must not return and starts with all signals blocked.

    Raises OSError when there is no room for one more process.
    """
    stdio.flush()  # the child would print what is in the buffers once more
    signals.block_all()
    forks.begin_own()
    try:
        pid = os.fork()
        if pid == 0:
            _be_child(run)
        return Child(pid)
    finally:
        forks.end_own()
        signals.unblock_all()


def start(
    arguments: tuple[str, ...], environment: Mapping[str, str], output: int, inherited: Collection[int]
) -> Child:
    """Return a child that runs a program in a session of its own, so that no terminal's signal reaches it.

    Args:
        arguments: the program's path, and what it is told.
        environment: all of it.
        output: where its stdout and stderr go; stdin is empty.
        inherited: the further descriptors that it gets.

    Raises OSError when there is no room for one more process. A program that cannot be run says so on its output.

    """
    return fork(lambda: _run(arguments, environment, output, inherited))


def replace(
    arguments: tuple[str, ...], environment: Mapping[str, str], inherited: Collection[int]
) -> NoReturn:
    """Become another program, which keeps the pid, the children, the blocked signals and the inherited descriptors.

    Raises OSError if it cannot be run: then all is as before.
    """
    opened = [descriptor for descriptor in inherited if not os.get_inheritable(descriptor)]
    try:
        for descriptor in opened:
            os.set_inheritable(descriptor, True)
        execute(arguments[0], arguments, environment)
    finally:
        close_on_exec(opened)


def close_on_exec(descriptors: Iterable[int]) -> None:
    """Let no further program have these, as is Python's default; the standard streams are everybody's."""
    for descriptor in descriptors:
        if descriptor > 2:
            os.set_inheritable(descriptor, False)


def kill_session(child: Child) -> None:
    """Kill a child that was started as a program, with all that it has started itself and that stayed with it."""
    with suppress(ProcessLookupError):
        child.send_signal(signal.SIGKILL)  # it may not have its session yet
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def has_subreapers() -> bool:
    """Return whether a process can adopt its children's orphans here: on Linux (prctl(2))."""
    return sys.platform.startswith("linux")


def fork_for_subreaper(run: Callable[[], NoReturn]) -> None:
    """Fork a process for the nearest subreaper above this one, whose child it becomes; it runs ``run`` as in ``fork``.

    It is the child of a child that ends at once. clone3(2) with CLONE_PARENT would do without the one between, but
    only os.fork() keeps the interpreter, and the handlers of libraries (pthread_atfork(3)), in order.
    Raises OSError when there is no room for one more process.
    """
    between = fork(lambda: _fork_and_end(run))
    between.close()
    failure = _errno_of(between.pid)
    if failure:
        raise OSError(failure, os.strerror(failure))


def reap(announce: Callable[[int], None] | None = None) -> Iterator[tuple[int, Ended]]:
    """Yield every child that has ended, and strangers that this process inherited as well (as pid 1 does).

    ``announce`` is told of each while it can still be seen that it is a child (``is_child``).
    """
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None:
                return
            if announce is not None:
                announce(found.si_pid)
            pid, status, usage = os.wait4(found.si_pid, 0)
        except ChildProcessError:
            return
        yield pid, _ended(status, usage)


def is_child(pid: int) -> bool:
    """Return whether a process is a child of this one that is not reaped yet, dead or alive."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (ChildProcessError, OverflowError):
        return False
    return True


def open_pidfd(pid: int) -> int | None:
    """Return a descriptor that names a process for good, or None where the kernel has none (Linux 5.3 has)."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def owner_of(pid: int) -> int | None:
    """Return the user that a living process runs as, None if there is no such process; where /proc is missing, our own."""
    if not os.path.exists("/proc/self"):
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, PermissionError, OverflowError):
            return None
        return os.geteuid()
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def signal_by_descriptor(pidfd: int, number: int) -> None:
    """Send a signal to a process that need not be a child of this one; it may be dead already."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def has_children() -> bool:
    """Return whether this process has a child, dead ones that are not reaped yet included."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def interpreter() -> tuple[str, ...]:
    """Return the beginning of a command line that runs this Python, with the options that it was started with."""
    # As multiprocessing does it; -P: nothing is imported from the working directory, which may be anybody's.
    return (sys.executable, *subprocess._args_from_interpreter_flags(), "-P")  # type: ignore[attr-defined]  # noqa: SLF001


def execute(path: str, arguments: tuple[str, ...], environment: Mapping[str, str]) -> NoReturn:
    """Become another program. Raises OSError if that is not possible."""
    os.execve(path, arguments, environment)  # noqa: S606 - no shell is meant


def end_by(name: str) -> NoReturn:
    """End this process by a signal, such as ``SIGTERM``, for who waits for it to see; no core is dumped."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    number = signal.Signals[name] if name in signal.Signals.__members__ else int(name.rpartition(" ")[2])
    with suppress(OSError):  # there is nothing to be reset about SIGKILL
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # a signal that ends nobody


def wait_for(pid: int) -> str:
    """Wait for a child to end and reap it; return in words how it ended."""
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return "reaped already"
    code = os.waitstatus_to_exitcode(status)
    return f"exit code {code}" if code >= 0 else _signal_name(-code)


def own_pid() -> int:
    """Return this process's number."""
    return os.getpid()


def has_terminal() -> bool:
    """Return whether this process has a controlling terminal (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def has_hung_up(descriptor: int) -> bool:
    """Return whether a descriptor is a terminal that has been closed (termios(3), poll(2): POLLHUP)."""
    try:
        is_device = stat.S_ISCHR(os.fstat(descriptor).st_mode)
    except OSError:
        is_device = False
    if not is_device:
        return False  # a pipe or a socket that hangs up says nothing about a terminal
    poll = select.poll()
    poll.register(descriptor, 0)
    return bool(poll.poll(0))


def halts() -> Iterator[tuple[int, bool]]:
    """Yield children that were halted by a signal (True), or continue after that (False)."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
        except ChildProcessError:
            return
        if found is None:
            return
        yield found.si_pid, found.si_code == os.CLD_STOPPED


def open_standard_streams() -> None:
    """Open /dev/null for each of the descriptors 0, 1 and 2 that is closed.

    Otherwise the next file or socket gets that number, and whatever is printed goes into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is this one (open(2)); programs that workers start inherit it.
            os.set_inheritable(open_null(os.O_RDWR), True)


def open_null(flags: int) -> int:
    """Return a descriptor of /dev/null. Raises CommandError where there is none, as in a folder made by hand for chroot(2)."""
    try:
        return os.open(os.devnull, flags | os.O_CLOEXEC)
    except OSError as error:
        raise CommandError(
            f"cannot open {os.devnull}: {(error.strerror or str(error)).lower()}",
            f"it is needed for streams that are closed; mknod -m 666 {os.devnull} c 1 3 makes it",
        ) from error


def close_all_but(kept: Iterable[int]) -> None:
    """Close every descriptor above 2 but these."""
    lowest = 3
    for descriptor in sorted(number for number in kept if number >= lowest):
        os.closerange(lowest, descriptor)
        lowest = descriptor + 1
    os.closerange(lowest, _descriptor_limit())


def raise_descriptor_limit(wanted: int) -> None:
    """Raise the soft limit of open descriptors to what is wanted, as far as the hard limit allows (getrlimit(2))."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def reserve_descriptors(wanted: int) -> None:
    """Have the kernel make room for so many descriptors, as far as the limit allows, while this process has one thread.

    With several threads each doubling of the table waits until no CPU can be using the old one (expand_fdtable in
    Linux's fs/file.c): the first thousand connections would cost a busy worker half a second in which it serves nobody.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = (wanted if soft == resource.RLIM_INFINITY else min(wanted, soft)) - 1
    with suppress(OSError):  # no memory: then it grows when it has to
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.close(fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, highest))
        finally:
            os.close(null)


def resident_memory(pid: int) -> int | None:
    """Return a process's resident memory in bytes (proc(5), statm), or None where that cannot be known."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * PAGE
    except (OSError, IndexError):
        return None


def private_memory(pid: int) -> int | None:
    """Return the memory that no other process shares, in bytes (proc(5), smaps_rollup), or None where that is not told."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return sum(int(size) * 1024 for size in PRIVATE.findall(file.read()))
    except OSError:  # Linux is older than 4.14, or the process is somebody's whose memory is not for us
        return None


def oom_kills() -> int | None:
    """Return how often the kernel's OOM killer has struck in this process's cgroup, or None if it does not say."""
    path = _oom_counter()
    if path is None:
        return None
    try:
        with open(path, encoding="ascii") as file:
            found = re.search(r"^oom_kill (\d+)$", file.read(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


@cache
def _oom_counter() -> str | None:
    """Return the file that counts: memory.events of cgroup v2, or memory.oom_control of v1."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return None
    places = [f"/sys/fs/cgroup{path}/memory.events" for _, controllers, path in lines if not controllers]
    places += [
        f"/sys/fs/cgroup/memory{path}/memory.oom_control"
        for _, controllers, path in lines
        if "memory" in controllers.split(",")
    ]
    return next((place for place in places if os.path.exists(place)), None)


def _fork_and_end(run: Callable[[], NoReturn]) -> NoReturn:
    try:
        fork(run)
    except OSError as error:
        os._exit(error.errno or BROKEN)
    os._exit(0)


def _errno_of(pid: int) -> int:
    """Wait for a child that ends with an errno; 0 if somebody else has reaped it, as with SIGCHLD ignored (wait(2))."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return 0


def _be_child(run: Callable[[], NoReturn]) -> NoReturn:
    # What the parent has allocated is the parent's: collecting it here would only copy its pages.
    gc.freeze()
    forks.end_own()
    try:
        run()
    except BaseException:  # noqa: BLE001 - whatever it was, it must not unwind into the parent's code
        traceback.print_exc()
    finally:
        os._exit(BROKEN)


def _run(
    arguments: tuple[str, ...], environment: Mapping[str, str], output: int, inherited: Collection[int]
) -> NoReturn:
    os.setsid()
    os.dup2(open_null(os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    close_all_but(inherited)
    for descriptor in inherited:
        os.set_inheritable(descriptor, True)
    signals.reset_for_worker()  # handlers end with this program, and none may speak to the master before
    signals.unblock_all()
    execute(arguments[0], arguments, environment)


def _open_pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _ended(status: int, usage: resource.struct_rusage) -> Ended:
    code = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * 1024
    if code >= 0:
        return Ended(code, None, peak, code)
    return Ended(None, _signal_name(-code), peak, SIGNALLED - code)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _descriptor_limit() -> int:
    """Return a number above every open descriptor: by what is open if the kernel tells, else by the limit."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return max(map(int, os.listdir(folder)), default=2) + 1
        except OSError:
            continue
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
