"""The commands that work on a TOML file: run, check, init, schema; and where to find the file's server."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence

import msgspec

from prefork.config.load import load
from prefork.config.order import longest_stop
from prefork.config.schema import Config, json_schema
from prefork.config.starter import starter
from prefork.control.registry import absolute
from prefork.errors import CommandError, ConfigError, PreforkError, Problem
from prefork.master.release import start_folder
from prefork.units import format_duration

MASTER_TABLE = re.compile(rb"^[ \t]*\[[ \t]*master[ \t]*\].*?(?=^[ \t]*\[|\Z)", re.MULTILINE | re.DOTALL)
# A configuration without pools is refused; this one is never bound.
ANY_POOL = b'\n[pool.any]\nlisten = ["127.0.0.1:1"]\nhandler = "any:any"\n'


class Source(msgspec.Struct, frozen=True):
    """A TOML file together with what the command line and the environment said when the command was started.

    A reload reads the file again much later; what was relative to the working directory stays relative to that one.
    """

    conf: str
    directory: str
    file: str
    environment: Mapping[str, str]
    settings: Sequence[str]

    def read(self) -> Config:
        """Return what the file says now; raises ConfigError."""
        return self._load(self._read_bytes(), self.environment, self.settings)

    def control(self) -> str:
        """Return the path of the server's control socket.

        A mistake elsewhere in the file must not hide a running server from its people, least of all while they
        repair it: then the table [master] alone is read. Raises ConfigError if that is not possible either.
        """
        try:
            return self.read().master.control
        except ConfigError as error:
            try:
                return self._read_master_table().master.control
            except ConfigError:
                raise error from None

    def _read_master_table(self) -> Config:
        table = MASTER_TABLE.search(self._read_bytes())
        environment = {
            name: value for name, value in self.environment.items() if name.startswith("PREFORK_MASTER__")
        }
        settings = [setting for setting in self.settings if setting.startswith("master.")]
        return self._load((table[0] if table else b"") + ANY_POOL, environment, settings)

    def _load(self, data: bytes, environment: Mapping[str, str], settings: Sequence[str]) -> Config:
        from prefork.master.start import runtime_directory, usable_cpus

        return load(
            data,
            source=self.conf,
            directory=self.directory,
            runtime_directory=runtime_directory(),
            cpus=usable_cpus(),
            environment=environment,
            settings=settings,
            file=self.file,
        )

    def _read_bytes(self) -> bytes:
        try:
            with open(os.path.join(self.directory, self.conf), "rb") as file:
                return file.read()
        except OSError as error:
            hint = "prefork init writes a first one" if isinstance(error, FileNotFoundError) else None
            if not os.path.isdir(self.directory):
                hint = f"the current folder, {self.directory}, has been deleted: cd to one that exists"
            raise ConfigError([Problem(f"cannot read {self.conf}: {error.strerror}", hint)]) from error


def source(conf: str, settings: Sequence[str]) -> Source:
    """Return a file as it is to be read by this command."""
    folder = start_folder()
    return Source(conf, folder, absolute(folder, conf), dict(os.environ), settings)


def run(conf: str, settings: Sequence[str]) -> int:
    """Run the server to its end and return the exit code; raises PreforkError."""
    from prefork.master import start

    found = source(conf, settings)
    return start.run(found.read, conf, found.file)


def check(conf: str, settings: Sequence[str]) -> tuple[str, list[PreforkError], tuple[str, ...]]:
    """Return what is to be said of a good file, what is wrong beside it (certificates, applications), and doubts.

    Raises ConfigError for what is wrong in the file.
    """
    from prefork.master.probe import probe

    config = source(conf, settings).read()
    workers = sum(pool.first_size for pool in config.pools.values())
    counts = f"{_count(len(config.pools), 'pool')}, {_count(workers, 'worker')}"
    stop = f"a stop takes at most {format_duration(longest_stop(config.pools))}"
    needs = "TimeoutStopSec and terminationGracePeriodSeconds have to be longer"
    verdict = f"{conf}: all is well: {counts}\n{stop}: {needs}"
    findings = probe(config)
    errors, doubts = _check_certificates(config)
    doubts = (*findings.doubts, *doubts, *_doubts_about_places(config))
    return verdict, [*errors, *findings.errors], doubts


def _doubts_about_places(config: Config) -> list[str]:
    """Return which programs may be such that only one can run at a time, though the file does not say what is to be done."""
    return [
        f"[pool.{pool.name}] command: each is started before the one that it replaces has ended; "
        'a program with a port or a lock of its own needs replace = "stop-first" ("start-first" if it has none)'
        for pool in config.pools.values()
        if pool.kind == "command" and not pool.listen and pool.may_exist_once
        if config.origins.get(f"pool.{pool.name}.replace") is None
    ]


def _check_certificates(config: Config) -> tuple[list[ConfigError], tuple[str, ...]]:
    """Return what keeps certificates from being used, and what is to be known about TLS otherwise."""
    from prefork.master.server import load_certificates

    try:
        certificates = load_certificates(config)
    except ConfigError as error:
        return [error], ()
    if certificates is None:
        return [], ()
    problems = certificates.problems()
    return [ConfigError(problems)] if problems else [], certificates.doubts


def init(directory: str) -> str:
    """Write the starter's files and return what to do with them.

    Raises CommandError, with nothing written, if one is there already or the folder cannot be used.
    """
    files = {os.path.join(directory, name): text for name, text in starter().items()}
    for path in files:
        if os.path.lexists(path):
            raise CommandError(
                f"{path} exists already; nothing was written", "prefork init DIR writes elsewhere"
            )
    try:
        os.makedirs(directory, exist_ok=True)
        for path, text in files.items():
            _write_new(path, text)
    except OSError as error:
        raise CommandError(f"cannot write {error.filename}: {error.strerror}") from error
    conf = next(path for path in files if path.endswith(".toml"))
    return f"wrote {', '.join(map(os.path.normpath, files))}\nhint: prefork run {os.path.normpath(conf)}"


def schema() -> str:
    """Return the JSON Schema of the TOML file."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False)


def _write_new(path: str, text: str) -> None:
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
