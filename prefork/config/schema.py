"""Every option, declared once: type, default, range, unit and one line of documentation.

Validation (convert.py), conf/full.toml (starter.py) and ``prefork schema`` come from here. A field with a description is
a key of the TOML file; the few without one are filled in by the loader. ``None`` as a default means "none"; a default
that depends on something else is told in words (``otherwise``).
"""

from __future__ import annotations

import json
import shlex
from enum import StrEnum
from fractions import Fraction
from functools import cache
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from prefork.config.access import OFF
from prefork.units import Address, Share, write_size

DAY = 86400.0
YEAR = 366 * DAY
MANY = 1_000_000
MAX_WORKERS = 1000
MAX_PORT = 65535
GIB = 2**30
# A resource limit that is none; as resource.RLIM_INFINITY.
UNLIMITED = -1
MAX_LIMIT = 2**62
# The highest number that a CPU may have: CPU_SETSIZE of sched_setaffinity(2).
MAX_CPU = 1023
CPU_RANGES = r"^\s*[0-9]{1,4}(-[0-9]{1,4})?(\s*,\s*[0-9]{1,4}(-[0-9]{1,4})?)*\s*$"
# How a program is ready by default, and by its own word.
STARTED, NOTIFY = "started", "notify"
# The slot of a pool's template: it is no worker, and takes no worker's place.
TEMPLATE = -1


POOL_NAME = r"[A-Za-z0-9_-]{1,64}"
# What a pool can run: the key that says so is its kind.
KINDS = ("handler", "wsgi", "task", "command")
# Those whose requests, if they have any, prefork does not see.
UNSEEN = ("task", "command")
# What proxies say about a client, in the order of the README. The first two are what nearly every proxy sets.
CLIENT_FIELDS = (
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-prefix",
    "forwarded",
)
# The signals by which programs are told to leave, as kill(1) names them.
STOP_SIGNALS = ("TERM", "QUIT", "INT", "HUP", "USR1", "USR2", "WINCH")


class Unit(StrEnum):
    """How the value of an option is written."""

    CHOICE = "choice"
    COUNT = "count"
    WORKERS = "workers"
    DURATION = "duration"
    SIZE = "size"
    SHARE = "share"
    MODE = "mode"
    ACCOUNT = "account"
    PATH = "path"
    PATHS = "paths"
    NAME = "name"
    APPLICATION = "application"
    COMMAND = "command"
    SIGNAL = "signal"
    ADDRESS = "address"
    POOLS = "pools"
    LISTENERS = "listeners"
    VARIABLES = "variables"
    FLAG = "flag"
    ROOT_PATH = "root path"
    MODULE = "module"
    PATTERNS = "patterns"
    CPUS = "cpus"
    LIMIT = "limit"
    SIZE_LIMIT = "size limit"
    NETWORKS = "networks"
    FIELDS = "fields"
    READINESS = "readiness"
    TABLE = "table"
    FORMAT = "format"


def option(
    unit: Unit,
    description: str,
    *,
    otherwise: str = "",
    example: str = "",
    kind: str = "",
    foreign: str = "",
    **limits: Any,
) -> Meta:
    """Declare one option.

    Args:
        unit: how its value is written.
        description: one line of documentation.
        otherwise: its default in words, if that is no value.
        example: a value in TOML, shown by the reference where there is no default.
        kind: the only kind of pool that the option has a meaning for, if not all.
        foreign: the kinds that it has no meaning for, separated by blanks.
        limits: ``ge``, ``gt``, ``le`` as for ``msgspec.Meta``.

    """
    extra = {"unit": unit, "otherwise": otherwise, "example": example, "kind": kind, "foreign": foreign}
    return Meta(description=description, extra=extra, **limits)


def clock(description: str, kind: str = "") -> Meta:
    """Declare a duration that has to be above 0."""
    return option(Unit.DURATION, description, kind=kind, gt=0.0, le=YEAR)


def optional_clock(description: str, foreign: str = "") -> Meta:
    """Declare a duration that may be 0."""
    return option(Unit.DURATION, description, foreign=foreign, ge=0.0, le=YEAR)


class Option(msgspec.Struct, frozen=True):
    """A declared option: its key, its type when written, with its limits, what ``option()`` was told, its default."""

    name: str
    type: Any
    meta: Meta
    default: Any

    def told(self, what: str) -> Any:
        """Return an argument that ``option()`` was given."""
        assert self.meta.extra is not None
        return self.meta.extra[what]

    @property
    def unit(self) -> Unit:
        """Return how the value is written."""
        return Unit(self.told("unit"))

    @property
    def table(self) -> type[msgspec.Struct]:
        """Return what an option that is a table consists of."""
        found: type[msgspec.Struct] = get_args(self.type)[0]
        return found

    def choices(self) -> tuple[str, ...]:
        """Return the values of an option that is a choice."""
        return get_args(get_args(self.type)[0])

    def written_default(self) -> str:
        """Return the default as TOML, or nothing if it is told in words or empty."""
        default = self.default
        if default in (None, (), {}, msgspec.NODEFAULT) or self.unit is Unit.TABLE:
            return ""
        if isinstance(default, float) and default.is_integer():
            return str(int(default))
        if self.unit is Unit.READINESS:
            return json.dumps(STARTED)
        if self.unit is Unit.SIZE and default and default % 1024 == 0:
            return json.dumps(write_size(default))
        return json.dumps(str(default) if isinstance(default, Share) else default)

    def documentation(self) -> str:
        """Return the line of documentation, with what the default and the range cannot tell."""
        kind, otherwise = self.told("kind"), self.told("otherwise")
        notes = [f"default: {otherwise}" if otherwise else "", f"{kind} only" if kind else ""]
        foreign = self.told("foreign").replace(" ", ", ")
        notes.append(f"not for {foreign}" if foreign else "")
        return "; ".join(filter(None, [self.meta.description, *notes]))

    def suits(self, kind: str) -> bool:
        """Return whether the option has a meaning for a kind of pool."""
        return self.told("kind") in ("", kind) and kind not in self.told("foreign").split()

    def sample(self) -> str:
        """Return a value that the option accepts, as TOML: its example, or else its default."""
        return self.told("example") or self.written_default()


@cache
def options(struct: type[msgspec.Struct]) -> dict[str, Option]:
    """Return the options of a table, by key and in the order of their declaration."""
    found = {}
    for field in msgspec.structs.fields(struct):
        metas = [argument for argument in get_args(field.type) if isinstance(argument, Meta)]
        if metas:
            default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            key = field.encode_name
            found[key] = Option(key, _written_type(field.type), metas[0], default)
    return found


def _written_type(annotated: Any) -> Any:
    """Return a field's type without None, which TOML cannot write and msgspec cannot limit."""
    union, *metas = get_args(annotated)
    plain = (
        [kind for kind in get_args(union) if kind is not type(None)] if type(None) in get_args(union) else []
    )
    return Annotated[plain[0], metas[0]] if plain else annotated


class Master(msgspec.Struct, frozen=True, kw_only=True):
    """The parent process."""

    name: Annotated[
        str,
        option(
            Unit.NAME,
            "the server's name, in logs and process titles",
            otherwise="the file's name without .toml",
            example='"shop"',
        ),
    ]
    directory: Annotated[
        str | None,
        option(
            Unit.PATH,
            "working directory of the workers, and first on their sys.path; relative paths start here",
            otherwise="workers run in the folder where the server was started; sys.path begins with this file's folder, then that one",
            example='"."',
        ),
    ] = None
    control: Annotated[
        str,
        option(
            Unit.PATH,
            "control socket, used by prefork status, reload, stop …",
            otherwise="NAME-HASH.sock in /run/prefork for root, in /tmp/prefork-UID for others",
            example='"run/shop.sock"',
        ),
    ]
    pid_file: Annotated[
        str | None,
        option(Unit.PATH, "file with the master's pid", otherwise="none", example='"run/shop.pid"'),
    ] = None
    user: Annotated[
        str | None,
        option(
            Unit.ACCOUNT,
            "user that workers run as (requires root)",
            otherwise="the master's user",
            example='"www"',
        ),
    ] = None
    group: Annotated[
        str | None,
        option(
            Unit.ACCOUNT,
            "group that workers run as (requires root)",
            otherwise="the user's group",
            example='"www"',
        ),
    ] = None
    umask: Annotated[
        int | None,
        option(
            Unit.MODE,
            "umask of the workers",
            otherwise="as inherited",
            example='"0027"',
            ge=0,
            le=0o777,
        ),
    ] = None


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """What is logged, and where to."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], option(Unit.CHOICE, "minimum level that is logged")
    ] = "info"
    format: Annotated[Literal["text", "json"], option(Unit.CHOICE, "text or json")] = "text"
    file: Annotated[str, option(Unit.PATH, '"-": stderr, or a path, reopened on SIGUSR1')] = "-"
    access: Annotated[
        str,
        option(
            Unit.PATH,
            'one line per request of wsgi pools: "off", "-": stdout, or a path, reopened on SIGUSR1',
        ),
    ] = OFF
    access_format: Annotated[
        str, option(Unit.FORMAT, "common, combined, json, or a template of the fields below")
    ] = "combined"


class Hooks(msgspec.Struct, frozen=True, kw_only=True):
    """Functions of the user's for moments of a worker's life."""

    module: Annotated[
        str | None,
        option(
            Unit.MODULE,
            "module whose functions before_fork, after_fork, ready, drain, exit and ended are called",
            otherwise="none",
            example='"shop.hooks"',
        ),
    ] = None


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """What a listener that speaks TLS shows to its clients, and wants to see of them."""

    certificate: Annotated[
        tuple[str, ...],
        option(
            Unit.PATHS,
            "certificate and chain in PEM; of a list, the one for the name the client asks for",
            example='"cert.pem"',
        ),
    ]
    key: Annotated[
        tuple[str, ...],
        option(
            Unit.PATHS,
            "private key in PEM; a list if certificate is one",
            otherwise="in the certificate's file",
            example='"key.pem"',
        ),
    ] = ()
    client_ca: Annotated[
        str | None,
        option(
            Unit.PATH,
            "CA certificates in PEM: clients must present a certificate issued by one of them",
            otherwise="clients need no certificate",
            example='"ca.pem"',
        ),
    ] = None

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Return each certificate's file with that of its key."""
        return tuple(zip(self.certificate, self.key or self.certificate, strict=True))

    def files(self) -> tuple[str, ...]:
        """Return every file that is named."""
        return (*self.certificate, *self.key, *([] if self.client_ca is None else [self.client_ca]))


class Listen(msgspec.Struct, frozen=True, kw_only=True):
    """One address that a pool listens on."""

    address: Annotated[
        Address,
        option(Unit.ADDRESS, "IP:PORT, [IPv6]:PORT, unix:PATH or fd:NAME", example='"unix:run/web.sock"'),
    ]
    backlog: Annotated[
        int, option(Unit.COUNT, "length of the queue of clients waiting to be accepted", ge=1, le=65535)
    ] = 2048
    mode: Annotated[
        int | None,
        option(
            Unit.MODE,
            "a Unix socket's permissions",
            otherwise="by the umask",
            example='"0660"',
            ge=0,
            le=0o777,
        ),
    ] = None
    owner: Annotated[
        str | None,
        option(Unit.ACCOUNT, "a Unix socket's owner", otherwise="the master's user", example='"www"'),
    ] = None
    group: Annotated[
        str | None,
        option(Unit.ACCOUNT, "a Unix socket's group", otherwise="the master's group", example='"www"'),
    ] = None
    proxy_protocol: Annotated[
        bool,
        option(
            Unit.FLAG,
            "every connection must begin with a PROXY header, version 1 or 2",
            foreign="command",
        ),
    ] = False
    trusted: Annotated[
        tuple[str, ...] | None,
        option(
            Unit.NETWORKS,
            "peers whose trusted_fields are used, for this listener",
            otherwise="as [pool.NAME.http] says",
            example='["10.0.0.0/8"]',
            kind="wsgi",
        ),
    ] = None
    tls: Annotated[
        Tls | None,
        option(
            Unit.TABLE,
            "TLS at this listener",
            otherwise="the pool's",
            foreign="command",
            example='{ certificate = "cert.pem", key = "key.pem" }',
        ),
    ] = None


class Http(msgspec.Struct, frozen=True, kw_only=True):
    """What an HTTP request may be at most, and what is believed of it."""

    max_request_line: Annotated[
        int, option(Unit.SIZE, "maximum length of the request line; beyond it 414", ge=64, le=65536)
    ] = 8190
    max_headers: Annotated[
        int, option(Unit.COUNT, "maximum number of headers; beyond it 431", ge=1, le=10000)
    ] = 100
    max_header_size: Annotated[
        int,
        option(
            Unit.SIZE,
            "maximum length of a header; of all trailers and chunk extensions of a body; beyond it 431",
            ge=64,
            le=2**20,
        ),
    ] = 8190
    max_body: Annotated[
        int, option(Unit.SIZE, "maximum size of a request body; beyond it 413", ge=0, le=2**50)
    ] = GIB
    trusted: Annotated[
        tuple[str, ...],
        option(
            Unit.NETWORKS,
            'peers whose trusted_fields are used: addresses, networks, "unix"',
            example='["10.0.0.0/8"]',
        ),
    ] = ("127.0.0.1", "::1", "unix")
    trusted_fields: Annotated[
        tuple[str, ...],
        option(
            Unit.FIELDS,
            f"headers those peers set or strip; also {', '.join(CLIENT_FIELDS[2:])}",
            example='["forwarded"]',
        ),
    ] = CLIENT_FIELDS[:2]
    root_path: Annotated[
        str,
        option(Unit.ROOT_PATH, 'path where the application is mounted, such as "/shop": its SCRIPT_NAME'),
    ] = ""
    server_header: Annotated[bool, option(Unit.FLAG, "send the header Server: prefork")] = True


def limit(description: str, *, example: str, is_size: bool = False) -> Meta:
    """Declare a resource limit of setrlimit(2): a number or a size, or "unlimited"."""
    unit = Unit.SIZE_LIMIT if is_size else Unit.LIMIT
    return option(unit, description, otherwise="as inherited", example=example)


class Limits(msgspec.Struct, frozen=True, kw_only=True, rename={"as_": "as"}):
    """What one worker may use at most, soft and hard, by the names of setrlimit(2); None: as inherited."""

    as_: Annotated[
        int | None, limit("address space: allocations beyond it fail", example='"4GiB"', is_size=True)
    ] = None
    core: Annotated[int | None, limit("largest core dump", example='"unlimited"', is_size=True)] = None
    cpu: Annotated[int | None, limit("seconds of CPU time, then SIGXCPU and SIGKILL", example="3600")] = None
    data: Annotated[
        int | None, limit("data segment: heap and private memory", example='"2GiB"', is_size=True)
    ] = None
    fsize: Annotated[
        int | None, limit("largest file that a worker may write", example='"1GiB"', is_size=True)
    ] = None
    memlock: Annotated[int | None, limit("memory locked into RAM", example='"8MiB"', is_size=True)] = None
    msgqueue: Annotated[
        int | None, limit("POSIX message queues of the user", example='"1MiB"', is_size=True)
    ] = None
    nofile: Annotated[
        int | None,
        option(
            Unit.LIMIT,
            "number of open descriptors",
            otherwise="raised as far as permitted, to what max_connections needs",
            example="4096",
        ),
    ] = None
    nproc: Annotated[int | None, limit("processes and threads of the user", example="512")] = None
    rtprio: Annotated[int | None, limit("highest real-time priority", example="0")] = None
    rttime: Annotated[
        int | None, limit("microseconds without a blocking call under real-time scheduling", example="200000")
    ] = None
    sigpending: Annotated[int | None, limit("queued signals of the user", example="1024")] = None
    stack: Annotated[
        int | None, limit("stack of the main thread and of new threads", example='"8MiB"', is_size=True)
    ] = None


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How many workers a pool has by load, instead of a fixed number."""

    min: Annotated[
        int,
        option(
            Unit.COUNT,
            "minimum number of workers; 0: the first client starts the first worker",
            ge=0,
            le=MAX_WORKERS,
        ),
    ] = 1
    max: Annotated[
        int,
        option(
            Unit.WORKERS,
            'maximum number of workers; "auto": one per usable CPU',
            example="4",
            ge=1,
            le=MAX_WORKERS,
        ),
    ]
    spare: Annotated[
        int, option(Unit.COUNT, "idle workers kept ready in addition to the busy ones", ge=0, le=MAX_WORKERS)
    ] = 1
    idle_for: Annotated[float, clock("a surplus worker is retired after this long, one at a time")] = 60.0
    max_memory: Annotated[
        int,
        option(
            Unit.SIZE,
            "no more workers than fit into this by resident size; 0: no limit",
            ge=0,
            le=2**50,
        ),
    ] = 0

    @property
    def at_rest(self) -> int:
        """Return how many workers there shall be while nothing happens."""
        return max(self.min, min(self.spare, self.max)) if self.min else 0

    def within(self, workers: int) -> int:
        """Return the number that is allowed and nearest to this one."""
        return max(self.min, min(workers, self.max))


class Folder(msgspec.Struct, frozen=True):
    """A folder, by its absolute path as it was written and by the real path that this had when the file was read.

    ``real`` is filled in by the master: only the machine knows where links lead.
    """

    name: str
    real: str = ""


class Release(msgspec.Struct, frozen=True):
    """The code that a pool's workers run: the folder they start in, and those that come first on their sys.path.

    Every worker of a generation has the same one, whatever links are switched meanwhile.
    """

    start: Folder = Folder("/")
    imports: tuple[Folder, ...] = ()


class Readiness(msgspec.Struct, frozen=True):
    """When a program is ready: after ``seconds``, or, if one of the others is set, once it says so, or its port accepts."""

    seconds: float = 1.0
    notify: bool = False
    port: int | None = None


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """A named group of equal workers with their listeners and one handler."""

    name: str
    release: Release = Release()
    listen: Annotated[
        tuple[Listen, ...],
        option(
            Unit.LISTENERS,
            "addresses, or tables { address, backlog, mode, owner, group, … }",
            example='["127.0.0.1:8000"]',
            foreign="task",
        ),
    ] = ()
    handler: Annotated[
        str | None,
        option(
            Unit.APPLICATION,
            "called for each connection: handle(sock, address), or async handle(reader, writer)",
            example='"shop.echo:handle"',
        ),
    ] = None
    wsgi: Annotated[
        str | None,
        option(
            Unit.APPLICATION,
            'WSGI application (PEP 3333), or a call that returns one: "shop.web:create_app()"',
            example='"shop.web:app"',
        ),
    ] = None
    task: Annotated[
        str | None,
        option(
            Unit.APPLICATION,
            "def run(worker), or async def: returns once worker.stopping is set",
            example='"shop.mail:send_queued"',
        ),
    ] = None
    command: Annotated[
        tuple[str, ...] | None,
        option(
            Unit.COMMAND,
            "program that stays in the foreground; it receives the listeners through LISTEN_FDS",
            example='["node", "assets.js"]',
        ),
    ] = None
    workers: Annotated[
        int,
        option(
            Unit.WORKERS,
            'number of worker processes; "auto": one per usable CPU',
            example="4",
            ge=1,
            le=MAX_WORKERS,
        ),
    ] = 1
    threads: Annotated[
        int,
        option(
            Unit.COUNT,
            "requests (or connections) that a worker handles at the same time, each in a thread",
            foreign="task command",
            ge=1,
            le=256,
        ),
    ] = 1
    preload: Annotated[
        bool,
        option(
            Unit.FLAG,
            "a template process loads the application once and forks the workers; Linux only",
            foreign="command",
        ),
    ] = False
    replace: Annotated[
        Literal["start-first", "stop-first"],
        option(
            Unit.CHOICE,
            'or "stop-first", for work that must not run twice: the old worker ends first',
            foreign="handler wsgi",
        ),
    ] = "start-first"
    restart: Annotated[
        Literal["always", "on-failure", "never", "once"],
        option(
            Unit.CHOICE,
            '"on-failure", "never", or "once": must exit with 0 before other pools start',
        ),
    ] = "always"
    after: Annotated[
        tuple[str, ...],
        option(
            Unit.POOLS,
            "pools that must be ready, or finished, before this one starts",
            example='["echo"]',
        ),
    ] = ()
    essential: Annotated[
        bool,
        option(
            Unit.FLAG,
            "the server shuts down with this pool's exit code once all of its workers have finished",
        ),
    ] = False
    boot_timeout: Annotated[float, clock("longest time until a new worker is ready")] = 60.0
    stall_timeout: Annotated[
        float,
        optional_clock(
            "longest time an event loop may be blocked, or a task may go without beat(); 0: no limit",
            "command",
        ),
    ] = 30.0
    request_timeout: Annotated[
        float,
        optional_clock(
            "longest request, or pause in a stream: stack logged, worker replaced; 0: no limit",
            "task command",
        ),
    ] = 30.0
    graceful_timeout: Annotated[
        float, clock("longest time a stopping worker may take to finish its requests")
    ] = 30.0
    drain_delay: Annotated[
        float,
        optional_clock(
            "keep accepting for this long after TERM, so that load balancers can take the server out", "task"
        ),
    ] = 0.0
    keepalive_timeout: Annotated[float, clock("longest time an idle connection is kept", "wsgi")] = 75.0
    read_timeout: Annotated[
        float, clock("longest time for a request's head, and for each pause within its body", "wsgi")
    ] = 10.0
    min_rate: Annotated[
        int,
        option(
            Unit.COUNT,
            "minimum bytes per second of a body, on average after read_timeout; below it 408; 0: none",
            kind="wsgi",
            ge=0,
            le=1_000_000_000,
        ),
    ] = 500
    write_timeout: Annotated[
        float, clock("longest time a client may accept no data of the response", "wsgi")
    ] = 30.0
    max_stream_time: Annotated[
        float,
        option(
            Unit.DURATION,
            "longest streamed response; then it is cut off; 0: no limit",
            kind="wsgi",
            ge=0.0,
            le=YEAR,
        ),
    ] = 0.0
    max_connections: Annotated[
        int,
        option(
            Unit.COUNT,
            "connections held by one worker; then idle ones are closed, oldest first",
            foreign="task command",
            ge=1,
            le=MANY,
        ),
    ] = 1000
    max_requests: Annotated[
        int,
        option(
            Unit.COUNT,
            "replace a worker after this many requests (or connections); 0: never",
            foreign="task command",
            ge=0,
            le=1_000_000_000,
        ),
    ] = 0
    max_requests_jitter: Annotated[
        Share,
        option(
            Unit.SHARE,
            "random addition to max_requests and max_age of each worker, at most this number or share",
            ge=0,
            le=1_000_000_000,
        ),
    ] = Share(percent=Fraction(10))
    max_memory: Annotated[
        int,
        option(
            Unit.SIZE,
            "replace a worker larger than this in three checks in a row, preloaded memory aside",
            ge=0,
            le=2**50,
        ),
    ] = 0
    max_age: Annotated[float, optional_clock("replace a worker after this long; 0: never")] = 0.0
    surge: Annotated[
        Share,
        option(
            Unit.SHARE,
            "additional workers during a rollout: a number, or a share of the pool's workers",
            ge=1,
            le=MAX_WORKERS,
        ),
    ] = Share(percent=Fraction(25))
    ready: Annotated[
        Readiness,
        option(
            Unit.READINESS,
            'after one second; { seconds = 3 }; { port = 9000 }: it accepts; "notify": READY=1',
            kind="command",
        ),
    ] = Readiness()
    reload: Annotated[
        Literal["always", "if-changed"],
        option(
            Unit.CHOICE,
            'or "if-changed": a reload keeps the workers if settings and release are unchanged',
            kind="command",
        ),
    ] = "always"
    stop_signal: Annotated[
        str,
        option(
            Unit.SIGNAL, f"signal that makes it finish and exit: {', '.join(STOP_SIGNALS)}", kind="command"
        ),
    ] = "TERM"
    env: Annotated[
        dict[str, str],
        option(Unit.VARIABLES, "environment variables of the workers", example='{ LANG = "C.UTF-8" }'),
    ] = {}
    user: Annotated[
        str | None,
        option(
            Unit.ACCOUNT,
            "user that its workers run as (requires root)",
            otherwise="master.user",
            example='"mail"',
        ),
    ] = None
    group: Annotated[
        str | None,
        option(
            Unit.ACCOUNT,
            "group that its workers run as (requires root)",
            otherwise="the user's group if user is given, else master.group",
            example='"mail"',
        ),
    ] = None
    umask: Annotated[
        int | None,
        option(
            Unit.MODE,
            "umask of its workers",
            otherwise="master.umask",
            example='"0027"',
            ge=0,
            le=0o777,
        ),
    ] = None
    directory: Annotated[
        str | None,
        option(
            Unit.PATH,
            "working directory of its workers, and first on their sys.path",
            otherwise="master.directory",
            example='"mail"',
        ),
    ] = None
    pythonpath: Annotated[
        tuple[str, ...],
        option(
            Unit.PATHS,
            "additional folders to import modules from; use it instead of PYTHONPATH in env",
            otherwise="none",
            example='["lib"]',
            foreign="command",
        ),
    ] = ()
    nice: Annotated[
        int | None,
        option(
            Unit.COUNT,
            "scheduling priority, from -20 (highest, requires root) to 19",
            otherwise="as inherited",
            example="5",
            ge=-20,
            le=19,
        ),
    ] = None
    cpu_affinity: Annotated[
        tuple[int, ...],
        option(Unit.CPUS, 'CPUs that its workers may run on: a list, or text like "0-3,6"', example="[0, 1]"),
    ] = ()
    no_new_privs: Annotated[
        bool,
        option(Unit.FLAG, "workers cannot gain privileges through setuid or file capabilities (prctl(2))"),
    ] = False
    reload_on_change: Annotated[
        tuple[str, ...],
        option(
            Unit.PATTERNS,
            "for development: reload when such a file changes; requires prefork[watch]",
            example='["src/**/*.py"]',
        ),
    ] = ()
    limits: Annotated[
        Limits, option(Unit.TABLE, "resource limits of each worker, by the names of setrlimit(2)")
    ] = Limits()
    http: Annotated[
        Http, option(Unit.TABLE, "limits of a request, and what is used from proxies", kind="wsgi")
    ] = Http()
    tls: Annotated[
        Tls | None,
        option(
            Unit.TABLE,
            "TLS for all listeners without a tls table of their own",
            otherwise="none",
            foreign="task command",
        ),
    ] = None

    scale: Annotated[
        Scale | None,
        option(
            Unit.TABLE,
            "number of workers by load, instead of workers",
            otherwise="none",
            foreign="task command",
        ),
    ] = None

    @property
    def kind(self) -> str:
        """Return which kind of work the pool does: one of KINDS."""
        return next((kind for kind in KINDS if getattr(self, kind) is not None), "wsgi")

    @property
    def application(self) -> str:
        """Return the ``module:attribute`` to be loaded, or the program to be run, as a shell would take it."""
        return self.handler or self.wsgi or self.task or shlex.join(self.command or ())

    @property
    def may_exist_once(self) -> bool:
        """Whether its work may be such that only one can do it at a time, though the file does not say so."""
        return self.kind in UNSEEN and not self.stops_first and self.restart != "once"

    @property
    def stops_first(self) -> bool:
        """Whether a worker starts only when the one before it has ended."""
        return self.replace == "stop-first"

    def place(self, slot: int) -> str:
        """Return what people call the worker in a slot: ``web/2``; or the pool's template: ``web/template``."""
        return f"{self.name}/{'template' if slot == TEMPLATE else slot}"

    @property
    def is_measured(self) -> bool:
        """Whether the master wants to see what workers are like while they are busy, deadlines or not."""
        return bool(self.max_memory or self.scale)

    @property
    def has_unseen_work(self) -> bool:
        """Whether nothing tells the master that a worker has something to do, while it must not grow too large."""
        return bool(self.max_memory) and self.kind in UNSEEN

    @property
    def first_size(self) -> int:
        """How many workers the pool starts with: one at least, to show that they can start."""
        return self.workers if self.scale is None else max(1, self.scale.at_rest)

    @property
    def size_range(self) -> tuple[int, int]:
        """The fewest and the most workers that the pool may be set to have while it is not stopped."""
        return (1, MAX_WORKERS) if self.scale is None else (self.scale.min, self.scale.max)

    def tls_at(self, listen: Listen) -> Tls | None:
        """Return how one of the pool's listeners speaks TLS, None if it does not."""
        return listen.tls or self.tls


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file, with absolute paths; pools in the file's order.

    ``origins`` tells where those values were written that only the machine can judge, by their dotted paths.
    """

    master: Master
    log: Log
    pools: dict[str, Pool]
    hooks: Hooks = Hooks()
    origins: dict[str, str] = {}

    def place(self, *path: str) -> str:
        """Return where the value at a path was written, for messages: file, line, table and key if that is known."""
        return self.origins.get(".".join(path), f"[{'.'.join(path[:-1])}] {path[-1]}")


_LINE = {"type": "string", "minLength": 1}
_SIZE = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?\s*([kKMGT]?B|[KMGT]iB)$"}
_AMOUNT = {"type": "integer", "minimum": 0, "maximum": MAX_LIMIT}
_CPU = {"type": "integer", "minimum": 0, "maximum": MAX_CPU}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the TOML file, for editors and for ``prefork schema``."""
    pool = _table_schema(Pool) | {"oneOf": [{"required": [kind]} for kind in KINDS]}
    pools = {"type": "object", "minProperties": 1, "additionalProperties": False}
    pools |= {"description": "pools by name", "patternProperties": {f"^{POOL_NAME}$": pool}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "prefork configuration",
        "type": "object",
        "additionalProperties": False,
        "required": ["pool"],
        "properties": {
            "master": _table_schema(Master),
            "log": _table_schema(Log),
            "hooks": _table_schema(Hooks),
            "pool": pools,
        },
    }


def _table_schema(struct: type[msgspec.Struct]) -> dict[str, Any]:
    properties = {name: _option_schema(found) for name, found in options(struct).items()}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _option_schema(found: Option) -> dict[str, Any]:
    limits = {"minimum": found.meta.ge, "exclusiveMinimum": found.meta.gt, "maximum": found.meta.le}
    ranged = {key: limit for key, limit in limits.items() if limit is not None}
    schema = {"description": found.documentation()} | _value_schema(found, ranged)
    default = found.written_default()
    return schema | ({"default": json.loads(default)} if default else {})


def _value_schema(found: Option, ranged: dict[str, Any]) -> dict[str, Any]:
    if found.unit is Unit.LISTENERS:
        listen = _table_schema(Listen) | {"required": ["address"]}
        return {"type": "array", "minItems": 1, "items": {"anyOf": [{"type": "string"}, listen]}}
    if found.unit is Unit.TABLE:
        needed = [name for name, key in options(found.table).items() if key.default is msgspec.NODEFAULT]
        return _table_schema(found.table) | ({"required": needed} if needed else {})
    if found.unit is Unit.VARIABLES:
        return {"type": "object", "additionalProperties": {"type": "string"}}
    if found.unit is Unit.FIELDS:
        return {"type": "array", "items": {"enum": list(CLIENT_FIELDS)}}
    if found.unit in (Unit.NETWORKS, Unit.PATTERNS, Unit.POOLS):
        return {"type": "array", "items": {"type": "string"}}
    if found.unit is Unit.CHOICE:
        return {"enum": list(found.choices())}
    return _plain_schema(found.unit, ranged)


def _plain_schema(unit: Unit, ranged: dict[str, Any]) -> dict[str, Any]:
    whole = {"type": "integer"} | ranged
    number = {"type": "number"} | ranged
    ways: dict[Unit, list[dict[str, Any]]] = {
        Unit.COUNT: [whole],
        Unit.WORKERS: [whole, {"const": "auto"}],
        Unit.DURATION: [number, _text_schema(r"^\s*([0-9]+(\.[0-9]+)?\s*(d|h|m|s|ms)\s*)+$")],
        Unit.SIZE: [whole, _SIZE],
        Unit.SHARE: [whole, _text_schema(r"^[0-9]+(\.[0-9]+)?\s*%$")],
        Unit.PATHS: [_LINE, {"type": "array", "minItems": 1, "items": _LINE}],
        Unit.MODE: [_text_schema(r"^(0o)?[0-7]{1,4}$"), whole],
        Unit.ACCOUNT: [{"type": "string"}, {"type": "integer", "minimum": 0}],
        Unit.COMMAND: [{"type": "array", "minItems": 1, "items": {"type": "string"}}],
        Unit.READINESS: [
            {"enum": [STARTED, NOTIFY]},
            _single_schema("seconds", {"type": "number", "exclusiveMinimum": 0, "maximum": YEAR}),
            _single_schema("port", {"type": "integer", "minimum": 1, "maximum": MAX_PORT}),
        ],
        Unit.SIGNAL: [_text_schema(f"^(SIG)?({'|'.join(STOP_SIGNALS)})$")],
        Unit.FLAG: [{"type": "boolean"}],
        Unit.CPUS: [{"type": "array", "minItems": 1, "items": _CPU}, _text_schema(CPU_RANGES)],
        Unit.LIMIT: [_AMOUNT, {"const": "unlimited"}],
        Unit.SIZE_LIMIT: [_AMOUNT, _SIZE, {"const": "unlimited"}],
        Unit.ROOT_PATH: [_text_schema(r"^(/[^/?#%\s]+)*$")],
    }
    found = ways.get(unit, [_LINE])
    return found[0] if len(found) == 1 else {"anyOf": found}


def _single_schema(name: str, value: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a table with one key."""
    return {"type": "object", "additionalProperties": False, "required": [name], "properties": {name: value}}


def _text_schema(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}
