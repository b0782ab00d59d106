"""Where a worker writes to: the server's log, and the access log if there is one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from prefork.handlers.access import Server
from prefork.log import Destination, logger
from prefork.worker.access import AccessLog
from prefork.worker.post import Post


class Logs:
    """Both logs of one worker.

    Args:
        destination: the server's log.
        access: the access log, if there is one.

    """

    def __init__(self, destination: Destination, access: AccessLog | None) -> None:
        self.access = access
        self._destination = destination

    def reopen(self, descriptors: Sequence[int]) -> None:
        """Write to other descriptors from now on: the log's comes first."""
        wanted = 1 if self.access is None else 2
        if len(descriptors) < wanted:
            # recvmsg(2) leaves out descriptors that the process has no room for.
            logger.warning(
                "the logs are not reopened: expected %s descriptors, found %s", wanted, len(descriptors)
            )
        for descriptor, reopen in zip(descriptors, self._reopeners(), strict=False):
            reopen(descriptor)

    def write(self) -> None:
        """Write what has been collected."""
        if self.access is not None:
            self.access.flush_last()

    def _reopeners(self) -> list[Callable[[int], None]]:
        return [self._destination.reopen, *([] if self.access is None else [self.access.reopen])]


def open_access_log(post: Post) -> AccessLog | None:
    """Return the access log of a worker, if its pool has one."""
    if post.outlets.access is None:
        return None
    server = Server(post.pool.name, post.slot, post.generation, os.getpid())
    return AccessLog(post.log.access_format, server, post.outlets.access)
