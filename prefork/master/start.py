"""The master from its start to its end: take what it needs in order, run the loop, give everything back."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack

from prefork import __version__
from prefork.config.schema import Config
from prefork.control import registry
from prefork.errors import BootError
from prefork.log import logger
from prefork.master import upgrade
from prefork.master.loop import Loop
from prefork.master.pidfile import PidFile
from prefork.master.release import Origin
from prefork.master.server import Server, draw_up
from prefork.master.upgrade import Role
from prefork.supervisor.actions import End
from prefork.system import cgroup, process, tree
from prefork.system.cpus import usable_cpus

# A guard shuts the listeners of a dead master after 0.75 s, whatever its workers do.
ORPHANS_TIME = 3.0

__all__ = ["run", "runtime_directory", "usable_cpus"]


def run(read: Callable[[], Config], source: str, file: str) -> int:
    """Run a server to its end and return its exit code.

    Args:
        read: reads the configuration, now and at each reload; raises ConfigError.
        source: the configuration's file, for the log.
        file: its absolute path as it was given, by which commands find the server.

    Raises ConfigError, ListenError, and BootError if an application does not load at this first start.

    """
    process.open_standard_streams()
    part = upgrade.role()
    if part is not None and part.verdict is not None:
        upgrade.rehearse(part, read)
        return 0
    tree.become_subreaper()
    origin = Origin()
    with ExitStack() as stack:
        if part is None:
            end = _serve(read, stack, source, file, origin)
        else:
            end = _go_on(part, read, stack, source, file, origin)
    if end.reason is not None:
        raise BootError(
            end.reason,
            "at the first start every pool has to get ready; prefork check loads the applications without a start",
            end.traceback,
        )
    return end.code


def runtime_directory() -> str:
    """Return the folder for sockets of servers that do not say where theirs is to be."""
    return registry.home(os.geteuid())


def _serve(read: Callable[[], Config], stack: ExitStack, source: str, file: str, origin: Origin) -> End:
    server = Server(draw_up(read(), origin), origin)
    config = server.config
    stack.callback(server.close)
    if config.master.pid_file is not None:
        server.pid_file = PidFile(config.master.pid_file)
        stack.callback(server.remove_pid_file)
    loop = Loop(server, read, file)
    stack.callback(loop.close)
    loop.control(config.master.control)
    stack.callback(loop.close_control)
    logger.info("prefork serves %s, control socket %s", source, config.master.control)
    if server.cgroup is not None:
        logger.debug("each program gets a cgroup below %s", server.cgroup)
        cgroup.remove_stale(server.cgroup)
    stack.callback(_clear_away, server)
    server.judge(server.plan.certificates)
    server.open_listeners(config, ORPHANS_TIME)
    end = loop.run(config)
    logger.info("the server has ended")
    return end


def _go_on(
    part: Role, read: Callable[[], Config], stack: ExitStack, source: str, file: str, origin: Origin
) -> End:
    """Serve on with what the program before has left."""
    past = upgrade.inherit(part)
    server = Server.resumed(past["server"], origin)
    stack.callback(server.close)
    if past["pid_file"] is not None:
        server.pid_file = PidFile(*past["pid_file"])
        stack.callback(server.remove_pid_file)
    loop = Loop(server, read, file)
    stack.callback(loop.close)
    control = loop.control(past["control"]["path"], past["control"])
    stack.callback(loop.close_control)
    logger.info("prefork %s goes on with %s, control socket %s", __version__, source, control.path)
    stack.callback(_clear_away, server)
    replies = control.resume(past["control"])
    end = loop.resume(past, list(zip(replies, past["waiting_since"], strict=True)))
    logger.info("the server has ended")
    return end


def _clear_away(server: Server) -> None:
    """Close what may still be open, and let the guard go last: it watches over what is."""
    server.listeners.keep(())
    guard = server.guard.pid
    server.guard.dismiss()
    if guard is not None:
        process.wait_for(guard)
    if server.cgroup is not None:
        cgroup.clear(server.cgroup)
    server.close_boards()
