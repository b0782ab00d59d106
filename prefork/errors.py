"""Every error a user can see. Each class carries the exit code of the command that it ends."""

from __future__ import annotations

from typing import NamedTuple


class PreforkError(Exception):
    """Something failed in a way that a person can act on.

    Args:
        message: where, what was found and what was expected, in one line.
        hint: what to do about it, in one line; printed on a line of its own.

    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def sentence(self) -> str:
        """Return the message and the hint in one line, for where there is room for one only."""
        return f"{self.message}; {self.hint}" if self.hint else self.message


class CommandError(PreforkError):
    """An operation on a running server was asked for and did not succeed."""


class UsageError(PreforkError):
    """A command line that makes no sense."""

    exit_code = 2


class Problem(NamedTuple):
    """One thing wrong with a configuration: ``message`` says where, found and expected; ``hint`` what to write."""

    message: str
    hint: str | None = None


class ConfigError(PreforkError):
    """A configuration that cannot be used; carries all of its problems, never only the first."""

    exit_code = 2

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(problem.message for problem in problems))
        self.problems = problems


class ListenError(PreforkError):
    """An address that cannot be listened on, or a server that is running already."""

    exit_code = 3


class BootError(PreforkError):
    """A handler that cannot be loaded; ``traceback`` is the worker's own, and may be empty."""

    exit_code = 4

    def __init__(self, message: str, hint: str | None = None, traceback: str = "") -> None:
        super().__init__(message, hint)
        self.traceback = traceback
