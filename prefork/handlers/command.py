"""Pools that run an external program: where it is found, and the environment that it finds itself in."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping

from prefork.config.schema import Pool, Release
from prefork.errors import BootError

# What other managers say to their own programs: it would be believed by one that is not theirs (sd_notify(3),
# sd_listen_fds(3), sd_watchdog_enabled(3)).
OF_OTHERS = (
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "MAINPID",
)
# The settings of this prefork, and what one above it has said.
OF_PREFORK = "PREFORK_"
# Tells whatever a program starts from what others do.
MARK = "PREFORK_WORKER"
# The first descriptor that a program is given (SD_LISTEN_FDS_START).
FIRST_LISTENER = 3


# What only a shell understands: it is found in the first word of a command that was meant for one.
SHELL_SIGNS = "|&;<>()$`*?[]{}\"'\\~="
# How much of a file is read to tell what it is: more than the longest first line that Linux looks at (BINPRM_BUF_SIZE).
HEAD_SIZE = 512


def in_release(program: str, release: Release) -> str:
    """Return the path of a program that is named by a release's link, as the generation has it: its own program."""
    for folder in (release.start, *release.imports):
        if folder.real and program.startswith(folder.name + os.sep):
            return folder.real + program[len(folder.name) :]
    return program


def find(program: str) -> str:
    """Return the path of the program that a command begins with, as execvp(3) finds it.

    Raises BootError when there is none that this process may execute.
    """
    if os.sep in program:
        return _check(program, program)
    folders = os.environ.get("PATH", os.defpath)
    found = [os.path.join(folder, program) for folder in folders.split(os.pathsep)]
    present = [path for path in found if os.path.isfile(path)]
    executable = next((path for path in present if os.access(path, os.X_OK)), None)
    if executable is None and not present:
        raise BootError(f"cannot run {program!r}: no such program in PATH ({folders})", _remedy(program))
    return _check(executable or present[0], program)


def _check(path: str, written: str) -> str:
    where = f", from {os.getcwd()}" if not os.path.isabs(path) else ""
    if not os.path.exists(path):
        raise BootError(f"cannot run {path!r}: no such file{where}", _remedy(written))
    if os.path.isdir(path):
        raise BootError(f"cannot run {path!r}: permission denied: it is a folder")
    if not os.access(path, os.X_OK):
        raise BootError(
            f"cannot run {path!r}: permission denied", f"make it executable: chmod +x {shlex.quote(path)}"
        )
    _check_head(path)
    return path


def _remedy(written: str) -> str | None:
    """Return what to write instead of a program that is not there."""
    if written.startswith("~") or "$" in written:
        shell = json.dumps(["sh", "-c", f"exec {written}"])
        return f"only a shell replaces ~ and $NAME, and there is none: write the whole path, or command = {shell}"
    if os.sep not in written and os.path.isfile(written):
        return f'a program in this folder is written with it: command = ["./{written}", …]'
    if any(sign.isspace() for sign in written):
        return f"each word is a text of its own: command = {json.dumps(_words(written))}"
    return None


def _words(line: str) -> list[str]:
    """Return the words of a command line, or those that have a shell understand it."""
    try:
        words = shlex.split(line)
    except ValueError:  # quotes without an end
        words = []
    is_plain = (
        words and not any(sign in SHELL_SIGNS for sign in words[0]) and not {"|", "&&", ";", ">"} & set(words)
    )
    return words if is_plain else ["sh", "-c", line]


def _check_head(path: str) -> None:
    """Raise BootError for a script that the kernel cannot execute; what is no text is left to the kernel."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_SIZE)
    except OSError:
        return  # it may be executed and not be read
    first, newline, _ = head.partition(b"\n")
    if first.startswith(b"#!"):
        _check_interpreter(path, first[2:].decode("utf-8", "surrogateescape"))
    elif b"\0" not in head and head.isascii() and newline:
        raise BootError(
            f"cannot run {path!r}: exec format error: it is a text without a first line that names its interpreter",
            f'put #!/bin/sh, or what it is written in, into its first line; or write command = ["sh", {json.dumps(path)}]',
        )


def _check_interpreter(path: str, line: str) -> None:
    interpreter = re.split("[ \t]", line.strip(" \t"), maxsplit=1)[0]
    if os.path.exists(interpreter) and not line.endswith("\r"):
        return
    is_of_windows = line.endswith("\r")
    hint = f"its lines end as on Windows: sed -i 's/\\r$//' {shlex.quote(path)}" if is_of_windows else None
    raise BootError(
        f"cannot run {path!r}: no such file or directory for the interpreter that its first line names: {interpreter!r}",
        hint,
    )


def environment(
    inherited: Mapping[str, str], pool: Pool, slot: int, generation: int, notify: str | None, mark: str
) -> dict[str, str]:
    """Return the environment of a program of a pool, that this process is about to become.

    ``inherited`` is the one that this process has, ``notify`` the address for sd_notify(3) if the program is to
    say itself that it is ready, ``mark`` its worker's identity.
    """
    kept = (name for name in inherited if name not in OF_OTHERS and not name.startswith(OF_PREFORK))
    # A program in Python would keep what it prints until 8 KiB are full: it prints to a pipe.
    own = {"PYTHONUNBUFFERED": "1"} | {name: inherited[name] for name in kept} | pool.env
    own |= {
        "PREFORK_POOL": pool.name,
        "PREFORK_SLOT": str(slot),
        "PREFORK_GENERATION": str(generation),
        MARK: mark,
    }
    if pool.listen:
        count = len(pool.listen)
        names = ":".join([pool.name] * count)
        own |= {"LISTEN_FDS": str(count), "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": names}
    return own | ({"NOTIFY_SOCKET": notify} if notify else {})
