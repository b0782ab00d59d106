"""Text <-> typed values: durations, sizes, shares and addresses as people write and read them."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
import re
from fractions import Fraction

import msgspec

# sizeof(sockaddr_un.sun_path) is 108 on Linux, its last byte the terminating NUL: unix(7).
UNIX_PATH_LIMIT = 107

_SECONDS: dict[str, int | Fraction] = {"d": 86400, "h": 3600, "m": 60, "s": 1, "ms": Fraction(1, 1000)}
_BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
# Digits are bounded because what follows is exact arithmetic on as many digits as there are.
_NUMBER = r"[0-9]{1,24}(?:\.[0-9]{1,9})?"
_PART = re.compile(rf"\s*({_NUMBER})\s*(ms|[dhms])", re.ASCII)
_DURATION = re.compile(rf"(?:{_PART.pattern})+\s*", re.ASCII)
_SIZE = re.compile(rf"({_NUMBER})\s*({'|'.join(_BYTES)})", re.ASCII)
_SHARE = re.compile(rf"({_NUMBER})\s*%", re.ASCII)
# sd_listen_fds_with_names(3): ASCII but control characters and ":"; a space would look like two names in a log.
_NAME = re.compile(r"[!-9;-~]{1,255}", re.ASCII)
_TCP = re.compile(r"(?:\[([^\[\]]*)\]|([^:]*)):([0-9]{1,5})", re.ASCII)

UNIX = "unix"
_NETWORK_EXPECTED = 'an address like "127.0.0.1", a network like "10.0.0.0/8", or "unix"'
_ADDRESS_EXPECTED = '"IP:PORT", "[IPv6]:PORT", "unix:PATH" or "fd:NAME"'
_DURATION_EXPECTED = 'seconds as a number, or a duration like "1m30s"'
_SIZE_EXPECTED = 'bytes as a whole number, or a size like "64MiB"'


class UnitError(ValueError):
    """A value that cannot be read; its text says what was expected and found, ``hint`` what to write instead."""

    def __init__(self, expected: str, value: object, hint: str | None = None) -> None:
        self.expected = expected
        self.found = shown(value)
        self.hint = hint
        super().__init__(f"expected {expected}, found {self.found}")


class TcpAddress(msgspec.Struct, frozen=True):
    """An IP address, IPv4 or IPv6, and a port; port 0 lets the kernel choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def includes(self, other: TcpAddress) -> bool:
        """Tell whether this one stands for all addresses of a machine, and another is one of them with the same port."""
        is_same_family = (":" in self.host) == (":" in other.host)
        is_wide = self.host in ("0.0.0.0", "::") and self.host != other.host  # noqa: S104 - nothing is bound
        return is_wide and is_same_family and self.port == other.port != 0


class UnixAddress(msgspec.Struct, frozen=True):
    """The path of a Unix socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


class InheritedAddress(msgspec.Struct, frozen=True):
    """The name of listening sockets that whoever started the server has passed to it."""

    name: str

    def __str__(self) -> str:
        return f"fd:{self.name}"


Address = TcpAddress | UnixAddress | InheritedAddress


class Share(msgspec.Struct, frozen=True):
    """A fixed number, or a percentage of a total that is known later."""

    number: int = 0
    percent: Fraction | None = None

    def of(self, total: int) -> int:
        """Return how many of ``total`` this is: rounded up, and at least 1."""
        part = self.number if self.percent is None else math.ceil(self.percent * total / 100)
        return max(1, part)

    def part_of(self, total: float) -> float:
        """Return how much of ``total`` this is, just as it comes out."""
        return float(self.number) if self.percent is None else float(self.percent) * total / 100

    def __str__(self) -> str:
        return str(self.number) if self.percent is None else f"{_decimal(self.percent)}%"


def parse_address(text: str) -> Address:
    """Return the address written as ``127.0.0.1:8000``, ``[::1]:8000`` or ``unix:run/web.sock``.

    Names are refused, also ``localhost``: what a name stands for may be several addresses, and others tomorrow.
    Raises UnitError.
    """
    if text.startswith("unix:"):
        return _unix_address(text)
    if text.startswith("fd:"):
        return _inherited_address(text)
    match = _TCP.fullmatch(text)
    if match is None:
        raise UnitError(_ADDRESS_EXPECTED, text, _address_hint(text))
    try:
        host = ipaddress.IPv6Address(match[1]) if match[2] is None else ipaddress.IPv4Address(match[2])
    except ValueError as error:
        raise UnitError(_ADDRESS_EXPECTED, text, _address_hint(text)) from error
    if int(match[3]) > 65535:
        raise UnitError("a port from 0 to 65535", text)
    return TcpAddress(str(host), int(match[3]))


def parse_network(text: str) -> str:
    """Return the canonical form of an address, a network in CIDR notation, or ``unix``, which stands for itself.

    Raises UnitError.
    """
    if text == UNIX:
        return UNIX
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise UnitError(_NETWORK_EXPECTED, text, _network_hint(text)) from error
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def check_unix_path(path: str) -> None:
    """Raise UnitError if no Unix socket can be bound to ``path``."""
    size = len(path.encode("utf-8", "surrogateescape"))
    if size > UNIX_PATH_LIMIT:
        raise UnitError(
            f"a socket's path of at most {UNIX_PATH_LIMIT} bytes", path, f"this one has {size} bytes"
        )
    if not path or path.endswith("/") or "\0" in path:
        raise UnitError("the path of a socket", path)


def parse_duration(value: str | float) -> float:
    """Return seconds, from seconds or from text like ``1m30s``, ``500ms``, ``1 h 30 m``.

    Raises UnitError, also for negative and infinite durations.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if 0 <= value < math.inf:
            return _finite(value)
    elif isinstance(value, str) and _DURATION.fullmatch(value):
        parts = _PART.findall(value)
        ranks = [list(_SECONDS).index(unit) for _, unit in parts]
        if ranks == sorted(set(ranks)):
            return float(sum(Fraction(number) * _SECONDS[unit] for number, unit in parts))
    hint = f'write {value} or "{value}s"' if isinstance(value, str) and value.isdecimal() else None
    raise UnitError(_DURATION_EXPECTED, value, hint)


def format_duration(seconds: float) -> str:
    """Return ``250 ms``, ``31.2 s``, ``1 m 30 s``, ``2 h 5 m`` or ``3 d 4 h``: two units, for people."""
    if seconds < 0.9995:
        return f"{round(seconds * 1000)} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s" if seconds < 9.995 else f"{seconds:.1f} s"
    for large, small in (("m", "s"), ("h", "m")):
        whole = round(seconds / float(_SECONDS[small]))
        if whole < 60 * (60 if large == "m" else 24):
            return _pair(whole, 60, large, small)
    return _pair(round(seconds / 3600), 24, "d", "h")


def parse_size(value: str | int) -> int:
    """Return bytes, from bytes or from text like ``64MiB``, ``10kB``; a fraction of a byte is dropped.

    Raises UnitError.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise UnitError(_SIZE_EXPECTED, value, _size_hint(value))
    return int(Fraction(match[1]) * _BYTES[match[2]])


def format_size(size: int) -> str:
    """Return ``512 B``, ``12.3 MiB``: bytes for people."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        # 1023.95 would be printed as "1024.0".
        if amount < (1024 if unit == "B" else 1023.95):
            return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def write_size(size: int) -> str:
    """Return a size as ``parse_size`` reads it back, exactly: ``1GiB``, ``8190B``."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}"
    return f"{size}B"


def parse_share(value: str | int, least: int = 1) -> Share:
    """Return a share, from a whole number or from text like ``25%``; 0 is one only where ``least`` is 0.

    Raises UnitError.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return Share(number=value)
    match = _SHARE.fullmatch(value) if isinstance(value, str) else None
    percent = Fraction(match[1]) if match else Fraction(-1)
    if not 0 <= percent <= 100 or (least and not percent):
        raise UnitError(f'a whole number from {least}, or a share from "{least}%" to "100%"', value)
    return Share(percent=percent)


def shown(value: object) -> str:
    """Return a value as TOML would write it, cut to a length that fits into a message."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a huge number"  # Python refuses to write out integers beyond 4300 digits
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else str(value)
    text = printable(text)
    return text if len(text) <= 200 else f"{text[:160]}… ({len(text)} characters)"


def printable(text: str) -> str:
    """Return text with everything escaped that would break a line or steer a terminal."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def visible(text: str) -> str:
    """Return text of several lines with everything escaped in them that would steer a terminal."""
    return "\n".join(printable(line.expandtabs()) for line in text.split("\n"))


def short_hash(path: str) -> str:
    """Return a short name for a path, which may be no valid Unicode."""
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:10]


def _unix_address(text: str) -> UnixAddress:
    path = text.removeprefix("unix:")
    if path.startswith("@"):
        raise UnitError(
            "the path of a socket", text, "abstract sockets have no owner and no mode: write a path"
        )
    check_unix_path(path)
    return UnixAddress(path)


def _inherited_address(text: str) -> InheritedAddress:
    name = text.removeprefix("fd:")
    if not _NAME.fullmatch(name):
        raise UnitError(
            'the name of an inherited socket, as in "fd:web"', text, "systemd's FileDescriptorName= sets it"
        )
    return InheritedAddress(name)


def _address_hint(text: str) -> str | None:
    if text.startswith(("/", ".")):
        return f'write "unix:{text}"'
    host, _, port = text.rpartition(":")
    port = port or "8000"
    if host == "localhost":
        return f'write "127.0.0.1:{port}", "[::1]:{port}", or both'
    if host in ("", "*", "0") and port.isdecimal():
        return f'write "0.0.0.0:{port}" for all of this machine\'s IPv4 addresses, "[::]:{port}" for IPv6'
    if host.count(":") > 1 and not host.startswith("["):
        return f'write "[{host}]:{port}"'
    return None


def _network_hint(text: str) -> str | None:
    if text == "*":
        return 'write "0.0.0.0/0", "::/0", "unix" to believe everybody'
    if text == "localhost":
        return 'write "127.0.0.1", "::1"'
    try:
        return f'write "{ipaddress.ip_network(text, strict=False)}"'
    except ValueError:
        return None


def _size_hint(value: object) -> str | None:
    match = (
        re.match(rf"({_NUMBER})\s*([kmgt])", value, re.ASCII | re.IGNORECASE)
        if isinstance(value, str)
        else None
    )
    if match is None:
        return None
    prefix = match[2].upper()
    return f'write "{match[1]}{prefix}iB" (steps of 1024) or "{match[1]}{prefix}B" (steps of 1000)'


def _finite(value: float) -> float:
    try:
        return float(value)
    except OverflowError as error:  # a whole number beyond 1e308
        raise UnitError(_DURATION_EXPECTED, value) from error


def _pair(whole: int, base: int, large: str, small: str) -> str:
    first, rest = divmod(whole, base)
    return f"{first} {large} {rest} {small}" if rest else f"{first} {large}"


def _decimal(value: Fraction) -> str:
    """Return a fraction that was written in decimals just so again."""
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.9f}".rstrip("0")
