"""All that the master holds: configuration, listeners, scoreboards, workers, log. It decides nothing."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from setproctitle import setproctitle

from prefork import log
from prefork.config.listeners import all_keyed, keyed
from prefork.config.schema import TEMPLATE, Config, Folder, Pool
from prefork.errors import CommandError, ConfigError, ListenError, PreforkError
from prefork.log import Destination, Identity, Outlets, logger
from prefork.master.charge import Charge
from prefork.master.clock import SteadyClock
from prefork.master.guard import Guard
from prefork.master.listeners import Listeners
from prefork.master.machine import Accounts, examine
from prefork.master.oom import OomKills
from prefork.master.pidfile import PidFile
from prefork.master.release import Origin, pin
from prefork.scoreboard import Board, UnreadableBoard
from prefork.supervisor.actions import Spawn
from prefork.system import cgroup
from prefork.worker import channel, leaving, program
from prefork.worker.farewell import Farewell

if TYPE_CHECKING:
    import ssl

    from prefork.master.certificates import Certificates

# Rows of a pool's board: for the largest pool, its whole surge, and as many again that still drain.
ROWS = 4096


class Plan(msgspec.Struct, frozen=True):
    """A configuration with all that was looked up and opened for it.

    Attributes:
        accounts: whom the workers of each pool run as, if not as the master.
        outlets: where its logs go.
        path: the interpreter's sys.path, as its workers get it.
        certificates: what it speaks TLS by, if it does.

    """

    config: Config
    accounts: Accounts
    outlets: Outlets
    path: tuple[Folder, ...]
    certificates: Certificates | None = None

    @property
    def files(self) -> tuple[str, str]:
        """Return the names of the log and of the access log."""
        return self.config.log.file, self.config.log.access

    def outlets_of(self, pool: Pool) -> Outlets:
        """Return where the workers of a pool write to: requests are known to some kinds only."""
        return self.outlets if pool.kind == "wsgi" else msgspec.structs.replace(self.outlets, access=None)


class Death(msgspec.Struct, frozen=True):
    """How a pool's latest unexpected death came about; ``at`` is on the monotonic clock."""

    identity: Identity
    cause: str
    at: float


class Server:
    """What the master holds.

    Args:
        plan: what the server starts with: the first generation's.

    """

    def __init__(self, plan: Plan, origin: Origin) -> None:
        self.plan = plan
        self.origin = origin
        self.next_plan: Plan | None = None
        self.generation = 1
        self.listeners = Listeners()
        self.charges: dict[int, Charge] = {}
        self.deaths: dict[str, Death] = {}
        self.clock = SteadyClock()
        self.watched = False
        self.pid_file: PidFile | None = None
        self.began = time.monotonic()
        self.cgroup = cgroup.home()
        name = plan.config.master.name
        self.guard = Guard(f"prefork: guard {name}", setproctitle)
        self.log = self._start_log()
        self._title = ""
        self._boards: dict[tuple[str, int], Board] = {}
        self._oom_kills = OomKills()
        self._left_cgroups: set[str] = set()

    def past(self) -> dict[str, Any]:
        """Return all that a program which takes over needs of this one's; nothing may be held ready now."""
        assert self.next_plan is None
        return {
            "config": self.plan.config,
            "accounts": self.plan.accounts,
            "outlets": self.plan.outlets,
            "generation": self.generation,
            "listeners": self.listeners.past(),
            # The channels of templates end with this program, and so do they: the next one has its own.
            "charges": {birth: charge for birth, charge in self.charges.items() if charge.slot != TEMPLATE},
            "boards": self._boards,
            "deaths": self.deaths,
            "clock": self.clock.past(),
            "began": self.began,
            "guard": self.guard.past(),
            "cgroup": self.cgroup,
        }

    @classmethod
    def resumed(cls, past: dict[str, Any], origin: Origin) -> Server:
        """Return what another program of this process has held; its interpreter's sys.path ended with it."""
        server = cls(Plan(past["config"], past["accounts"], past["outlets"], origin.pinned_path()), origin)
        load_code(server.config)  # for workers that are replaced before the new generation serves
        server.generation, server.began = past["generation"], past["began"]
        server.charges, server.deaths, server._boards = past["charges"], past["deaths"], past["boards"]
        server._release_rows()
        server.listeners.resume(past["listeners"])
        server.clock.resume(past["clock"])
        server.guard.resume(past["guard"])
        # There its living programs are, wherever it would find a place for new ones by now.
        server.cgroup = past.get("cgroup") or server.cgroup
        server._read_certificates_again()
        return server

    def _release_rows(self) -> None:
        """Give back the rows of templates: they have ended with the program that had them."""
        used = {(id(charge.board), charge.row) for charge in self.charges.values()}
        for board in self._boards.values():
            for row in board.taken():
                if (id(board), row) not in used:
                    board.release(row)

    def _read_certificates_again(self) -> None:
        """Read what the present configuration speaks TLS by; without it none of its workers can be born any more."""
        try:
            certificates = load_certificates(self.config)
        except ConfigError as error:
            logger.error("the certificates of generation %s are lost: %s", self.generation, error.message)
        else:
            self.plan = msgspec.structs.replace(self.plan, certificates=certificates)

    @property
    def config(self) -> Config:
        """Return the configuration that counts."""
        return self.plan.config

    def prepare(self, config: Config, only: Collection[str] | None = None) -> Config:
        """Open all that a configuration needs beside what is open, all or nothing, and hold it ready.

        Returns it with the real paths of its releases, which ``only`` some pools may look up anew.
        Raises ListenError, or ConfigError for directories, users and groups that this machine does not have, and for
        certificates and keys that cannot be used.
        """
        plan = draw_up(config, self.origin, only)
        try:
            self.judge(plan.certificates)
            self.open_listeners(config)
            self._renew_pid_file()
        except PreforkError:
            plan.outlets.close()
            raise
        self.withdraw()
        self.next_plan = plan
        return plan.config

    def remove_pid_file(self) -> None:
        """Remove the pid file, wherever it is by now."""
        if self.pid_file is not None:
            self.pid_file.close()

    def _renew_pid_file(self) -> None:
        """Write the pid file anew if it is gone, or its path leads to another folder by now. Raises ListenError."""
        if self.pid_file is not None and not self.pid_file.is_found:
            old, self.pid_file = self.pid_file, PidFile(self.pid_file.path)
            old.close()
            logger.warning("%s: the pid file was gone; it is there again", old.path)

    @property
    def latest(self) -> Config:
        """Return the configuration that is to count next, if there is one, else the one that counts."""
        return (self.next_plan or self.plan).config

    def prepare_again(self) -> Config:
        """Hold what counts already ready for another generation, unless something newer is; return which that is."""
        if self.next_plan is None:
            self.next_plan = self._reopened(self.plan)
        return self.latest

    def judge(self, certificates: Certificates | None) -> None:
        """Log which certificates clients will refuse; raise ConfigError if one is to replace another.

        One that is in use already, or that there is nothing better than, is served all the same: an expired
        certificate must not keep the next version of an application away, nor a whole server down.
        """
        if certificates is None:
            return
        if problems := certificates.problems(self.plan.certificates):
            raise ConfigError(problems)
        for doubt in certificates.doubts:
            logger.warning("%s", doubt)
        for problem in certificates.problems():
            logger.warning("%s; it is served all the same", problem.message)

    def settle_rebound(self, is_good: bool) -> None:
        """Let go of Unix sockets that nobody finds any more, or of those put in their place; the guard has to follow."""
        if self.listeners.settle_rebound(is_good):
            self.post_guard()

    def withdraw(self) -> None:
        """Forget the plan that was held ready."""
        if self.next_plan is not None:
            self.next_plan.outlets.close()
            self.next_plan = None

    def close(self) -> None:
        """Close the logs' files and the scoreboards: nothing is logged any more, and nobody is left to write."""
        self.withdraw()
        self.plan.outlets.close()
        for board in self._boards.values():
            board.close()
        self._boards.clear()

    def adopt(self, generation: int) -> None:
        """Let the plan of a generation count; one that is held ready may be of a later generation still."""
        if generation == self.generation:
            return
        assert self.next_plan is not None
        self.plan.outlets.close()
        self.plan, self.next_plan, self.generation = self.next_plan, None, generation
        self.log = self._start_log()
        try:
            self.listeners.alter(all_keyed(self.config))
        except ListenError as error:
            logger.error("%s; it keeps the options that it had", error.message)
        for pool in self.config.pools.values():
            for key in keyed(pool):
                for listener in self.listeners.of(key):
                    listener.await_first_bytes(_awaits_first_bytes(pool))
        self.forget_boards()

    def reopen_logs(self) -> None:
        """Write to the files that now have the logs' names, and have all workers do so. Raises ListenError.

        A worker of an older configuration, with other files, keeps those until its drain is over.
        """
        plan, next_plan = self._reopened(self.plan), None
        try:
            next_plan = self.next_plan and self._reopened(self.next_plan)
        except ListenError:
            plan.outlets.close()
            raise
        self._take_over(plan, next_plan)
        plans = {found.files: found for found in (self.next_plan, self.plan) if found is not None}
        for charge in self.charges.values():
            if charge.files in plans:
                outlets = plans[charge.files].outlets_of(charge.pool)
                channel.send(charge.channel, channel.ReopenLogs(), outlets.descriptors())

    def _take_over(self, plan: Plan, next_plan: Plan | None) -> None:
        for old in filter(None, (self.plan, self.next_plan)):
            old.outlets.close()
        self.plan, self.next_plan = plan, next_plan
        self.log.descriptor = plan.outlets.log

    @staticmethod
    def _reopened(plan: Plan) -> Plan:
        return msgspec.structs.replace(plan, outlets=log.open_outlets(*plan.files))

    def take_in(self, charge: Charge) -> None:
        """Hold a worker that was born, and have the guard watch it."""
        self.charges[charge.birth] = charge
        self.guard.add(charge)

    def template_for(self, spawn: Spawn) -> Charge | None:
        """Return the template that a worker is to be forked from: the latest of its pool and generation."""
        place = (spawn.pool.name, TEMPLATE, spawn.generation)
        found = (c for c in self.charges.values() if (c.pool.name, c.slot, c.generation) == place)
        return max(found, key=lambda charge: charge.birth, default=None)

    def plan_for(self, generation: int) -> Plan:
        """Return the plan that workers of a generation are made by."""
        return self.next_plan if self.next_plan is not None and generation > self.generation else self.plan

    def open_listeners(self, config: Config, patience: float = 0.0) -> None:
        """Open the listeners that a configuration has and that are not open yet. Raises ListenError.

        For ``patience`` seconds addresses are waited for that workers of a dead master are about to leave.
        """
        pools = {key: pool for pool in config.pools.values() for key in keyed(pool)}
        keys = all_keyed(config)
        for listener in self.listeners.open(keys, patience):
            pool = next(pool for key, pool in pools.items() if listener in self.listeners.of(key))
            listener.await_first_bytes(_awaits_first_bytes(pool))
            logger.info("listening on %s (pool %s)", listener.address, pool.name)

    def sockets_of(self, pool: Pool) -> tuple[socket.socket, ...]:
        """Return the listening sockets of a pool."""
        return tuple(listener.socket for key in keyed(pool) for listener in self.listeners.of(key))

    def as_bound(self, pool: Pool) -> Pool:
        """Return a pool with one entry in ``listen`` for each of its sockets: an inherited name may mean several."""
        listen = tuple(listen for key, listen in keyed(pool).items() for _ in self.listeners.of(key))
        return msgspec.structs.replace(pool, listen=listen)

    def inherited_of(self, pool: Pool) -> frozenset[int]:
        """Return the descriptors of a pool's listening sockets that somebody else has passed to the server."""
        found = (listener for key in keyed(pool) for listener in self.listeners.of(key))
        return frozenset(listener.socket.fileno() for listener in found if listener.is_inherited)

    def contexts_of(self, pool: Pool, certificates: Certificates | None) -> Mapping[int, ssl.SSLContext]:
        """Return what a pool's listeners speak TLS by, those that do, by the descriptors of their sockets."""
        if certificates is None:
            if speaks_tls(pool):
                raise ListenError("its certificates could not be read again after an upgrade")
            return {}
        contexts = (
            (listener.socket.fileno(), certificates.context_for(pool, listen))
            for key, listen in keyed(pool).items()
            for listener in self.listeners.of(key)
        )
        return {descriptor: context for descriptor, context in contexts if context is not None}

    @staticmethod
    def certificate_files(pool: Pool, certificates: Certificates | None) -> dict[str, bytes]:
        """Return the contents of a pool's certificates and keys, by their paths."""
        used = filter(None, map(pool.tls_at, pool.listen))
        return (
            {path: certificates.files[path] for tls in used for path in tls.files()} if certificates else {}
        )

    def board_for(self, pool: Pool) -> Board:
        """Return the scoreboard of a pool; another number of threads needs another one."""
        key = (pool.name, pool.threads)
        if key not in self._boards or isinstance(self._boards[key], UnreadableBoard):
            self._boards[key] = Board(ROWS, pool.threads)
            self._boards[key].watch(self.watched)
        return self._boards[key]

    def forget_boards(self) -> None:
        """Let go of scoreboards that no pool and no worker needs any more."""
        used = {id(charge.board) for charge in self.charges.values()}
        wanted = {(pool.name, pool.threads) for pool in self.config.pools.values()}
        for key, board in list(self._boards.items()):
            if key not in wanted and id(board) not in used:
                self._boards.pop(key).close()

    def close_boards(self) -> None:
        """Give all scoreboards back, once nobody is left who would show anything."""
        while self._boards:
            self._boards.popitem()[1].close()

    def watch(self, on: bool) -> None:
        """Let workers know whether the scoreboard is looked at by itself."""
        self.watched = on
        for board in self._boards.values():
            board.watch(on)

    def post_guard(self) -> None:
        """Put a new guard in place, one that knows the listeners and workers of now."""
        charges = self.charges.values()
        try:
            # Whom it does not know of, because there are no pidfds, may have a program that has yet to finish.
            programs = self.cgroup if all(charge.child.pidfd is not None for charge in charges) else None
            self.guard.post(self.listeners.own_sockets(), charges, programs)
        except OSError as error:
            logger.warning("there is no guard against a sudden death of the master: %s", error.strerror)

    def end_remains(self, charge: Charge) -> None:
        """Kill what the program of a dead worker has left; its cgroup can be removed when the last of them is dead."""
        left = program.end_remains(charge.snapshot().pid, charge.identity, self.cgroup)
        if left is not None:
            self._left_cgroups.add(left)

    def farewell_of(self, charge: Charge) -> Farewell | None:
        """Return what the hook ``ended`` of a worker is called by; nothing once its own plan is not known any more."""
        plan = self.plan_for(charge.generation)
        module = plan.config.hooks.module
        if charge.generation < self.generation or module is None or charge.pool.kind == "command":
            return None
        return Farewell(module, plan.config.master, plan.path, plan.accounts[charge.pool.name])

    def end_orphans(self, charge: Charge) -> None:
        """Kill what a dead worker has started and left behind, which this process has by now."""
        workers = {found.child.pid for found in self.charges.values()}
        stacks = charge.stacks_inode
        leaving.end_orphans(os.getpid(), charge.identity, stacks, workers, charge.detached)

    def remove_cgroups(self) -> None:
        """Remove the cgroups of ended programs that nobody is left in; asked for whenever somebody was reaped."""
        self._left_cgroups = {path for path in self._left_cgroups if not cgroup.remove(path)}

    def oom_killer_struck(self) -> bool:
        """Tell whether the kernel's OOM killer explains a death by SIGKILL."""
        return self._oom_kills.explain()

    def show(self, state: str) -> None:
        """Show what the master is doing in the process list."""
        title = f"prefork: master {self.config.master.name} gen={self.generation} [{state}]"
        if title != self._title:
            setproctitle(title)
            self._title = title

    def _start_log(self) -> Destination:
        settings = self.config.log
        own = Identity("master", os.getpid())
        return log.start(settings.level, settings.format, self.plan.outlets.log, own)


def draw_up(config: Config, origin: Origin, only: Collection[str] | None = None) -> Plan:
    """Return a configuration with all that has to be looked up and opened for it beside the listeners.

    Raises ConfigError for directories, accounts, certificates and keys that cannot be used, ListenError for a log that cannot.
    """
    config = pin(config, only)
    accounts = examine(config)
    load_code(config)
    certificates = load_certificates(config)
    outlets = log.open_outlets(config.log.file, config.log.access)
    return Plan(config, accounts, outlets, origin.pinned_path(), certificates)


def load_code(config: Config) -> None:
    """Load what the workers of a configuration import of prefork and its dependencies, and this process has not yet.

    Later there may be another version on the disk, which does not fit the modules that are loaded: no worker could be
    replaced any more. Whether a handler or a task is asynchronous is not known before it is loaded.
    Raises CommandError if that has happened already.
    """
    try:
        if any(pool.kind in ("handler", "task") for pool in config.pools.values()):
            import prefork.worker.aio
        if any(map(speaks_tls, config.pools.values())):
            import prefork.master.certificates
            import prefork.worker.tls  # noqa: F401
    except Exception as error:
        raise CommandError(
            f"cannot load a part of prefork: {type(error).__name__}: {error}",
            "if another version has been installed since this server started, prefork upgrade takes it",
        ) from error


def speaks_tls(pool: Pool) -> bool:
    """Tell whether any of a pool's listeners needs a certificate."""
    return any(pool.tls_at(listen) for listen in pool.listen)


def load_certificates(config: Config) -> Certificates | None:
    """Return what a configuration speaks TLS by, None if it does not; raises ConfigError."""
    if not any(map(speaks_tls, config.pools.values())):
        return None
    # Otherwise OpenSSL would be in the memory of servers that do not need it.
    from prefork.master.certificates import Certificates

    return Certificates(config)


def _awaits_first_bytes(pool: Pool) -> bool:
    """Return whether clients speak before their server does, and nobody has to be woken by one who only connects."""
    return pool.kind == "wsgi" and pool.size_range[0] > 0
