"""The PROXY protocol, versions 1 and 2: what a balancer says about a connection before its client's first byte.

The specification is HAProxy's doc/proxy-protocol.txt; sections are named after it. Addresses are all that is taken:
the additional fields of version 2 (2.2.7) are skipped, and so is its checksum, as TCP has its own.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
FIXED: Final = 16  # bytes of version 2 before the addresses
V1: Final = b"PROXY "
MAX_V1: Final = 107  # 2.1: with its line break
TCP: Final = re.compile(
    rb"PROXY (?:TCP4 ([0-9.]{7,15}) ([0-9.]{7,15})|TCP6 ([0-9A-Fa-f:.]{2,45}) ([0-9A-Fa-f:.]{2,45})) "
    rb"(0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})"
)
UNKNOWN: Final = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?")
MAX_PORT: Final = 65535

LOCAL, PROXY = 0x20, 0x21  # version and command
STREAM, DATAGRAM = 1, 2  # transport protocols
# Sizes of one address, by family: IPv4, IPv6, Unix.
IPV4, IPV6, UNIX = 1, 2, 3
SIZES: Final = {IPV4: 4, IPV6: 16, UNIX: 108}


class ProxyError(Exception):
    """What has come is no PROXY header; the text says why. The connection has to be closed."""


class End(NamedTuple):
    """One end of the client's connection; of a Unix socket the host is empty."""

    host: str
    port: int


class Header(NamedTuple):
    """A PROXY header.

    Attributes:
        size: its length in bytes.
        source: the client's address; None if the connection is the balancer's own, a health check mostly.
        destination: the address that the client has connected to; None likewise.

    """

    size: int
    source: End | None = None
    destination: End | None = None


def read_header(data: bytes) -> Header | None:
    """Return the header that a connection begins with, or None if its end has not come yet.

    Raises ProxyError as soon as it is clear that there is none.
    """
    if data.startswith(SIGNATURE[: len(data)]):
        return _read_v2(data)
    if data.startswith(V1[: len(data)]):
        return _read_v1(data)
    raise ProxyError("it does not begin with one")


def _read_v1(data: bytes) -> Header | None:
    end = data.find(b"\r\n", 0, MAX_V1)
    if end < 0:
        if len(data) >= MAX_V1:
            raise ProxyError(f"its line is longer than {MAX_V1} bytes")
        return None
    line = data[:end]
    if UNKNOWN.fullmatch(line):
        return Header(end + 2)
    found = TCP.fullmatch(line)
    if found is None:
        raise ProxyError("its line is neither that of TCP4 or TCP6 nor UNKNOWN")
    source, destination = found[1] or found[3], found[2] or found[4]
    family = IPv4Address if found[1] else IPv6Address
    try:
        hosts = [_text(family(host.decode("ascii"))) for host in (source, destination)]
    except ValueError as error:
        raise ProxyError(str(error)) from None
    ports = [int(port) for port in (found[5], found[6])]
    if max(ports) > MAX_PORT:
        raise ProxyError("it has a port beyond 65535")
    return Header(end + 2, End(hosts[0], ports[0]), End(hosts[1], ports[1]))


def _read_v2(data: bytes) -> Header | None:
    if len(data) > len(SIGNATURE) and data[12] not in (LOCAL, PROXY):
        raise ProxyError(f"its version and command are {data[12]:#04x}, expected 0x20 or 0x21")
    if len(data) < FIXED:
        return None
    size = FIXED + int.from_bytes(data[14:16], "big")
    family, transport = data[13] >> 4, data[13] & 15
    if data[12] == PROXY:
        _check_transport(family, transport, size - FIXED)
    if len(data) < size:
        return None
    # 2.2: the balancer's own connection, whatever addresses follow; and one of a kind that it cannot tell.
    if data[12] == LOCAL or family == 0:
        return Header(size)
    return Header(size, *_read_ends(data, family))


def _check_transport(family: int, transport: int, size: int) -> None:
    if family == 0 and transport <= DATAGRAM:
        return
    if family not in SIZES or transport != STREAM:
        raise ProxyError(
            f"it is about a connection of family {family}, transport {transport}, expected a stream"
        )
    if size < 2 * SIZES[family] + (0 if family == UNIX else 4):
        raise ProxyError("it has no room for its addresses")


def _read_ends(data: bytes, family: int) -> tuple[End, End]:
    if family == UNIX:
        return End("", 0), End("", 0)
    one = SIZES[family]
    middle, end = FIXED + one, FIXED + 2 * one
    read = IPv4Address if family == IPV4 else IPv6Address
    return (
        End(_text(read(data[FIXED:middle])), int.from_bytes(data[end : end + 2], "big")),
        End(_text(read(data[middle:end])), int.from_bytes(data[end + 2 : end + 4], "big")),
    )


def _text(address: IPv4Address | IPv6Address) -> str:
    """Return an address as text; one of IPv4 that came as one of IPv6, where the other end is one, as what it is."""
    return str((isinstance(address, IPv6Address) and address.ipv4_mapped) or address)
