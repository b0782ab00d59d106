"""What proxies say about the client: X-Forwarded-For, -Proto, -Host and -Prefix, and Forwarded (RFC 7239).

Anybody can write these fields, and each proxy adds what it has seen at the right end. So they are read from the right,
hop by hop, as long as the hop that has written one is trusted: the first address that is not trusted is the client's.
X-Forwarded-Proto, -Host and -Prefix do not tell which hop wrote what: there the rightmost member counts.

A proxy that sets one of them lets a client's others through, unless it is told not to. So a field is read only if it is
named as one that the proxies here set or remove; the others set nothing, and are compared with nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from prefork.protocols.http1 import Refusal, is_host
from prefork.protocols.memo import Memo

UNIX: Final = "unix"
# What is remembered of addresses and of claims, in bytes: clients come again and again, and what is said of them
# depends on the fields alone.
ADDRESSES_ROOM: Final = 1 << 18
CLAIMS_ROOM: Final = 1 << 19
ADDRESS_MEMORY: Final = 200  # an address as text, and its place in the table

FORWARDED: Final = "HTTP_FORWARDED"
FOR: Final = "HTTP_X_FORWARDED_FOR"
PROTO: Final = "HTTP_X_FORWARDED_PROTO"
HOST: Final = "HTTP_X_FORWARDED_HOST"
PREFIX: Final = "HTTP_X_FORWARDED_PREFIX"

# RFC 3986 3.2.2: without leading zeros, as ipaddress reads it, in a tenth of the time.
OCTET: Final = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
IPV4: Final = re.compile(rf"{OCTET}(?:\.{OCTET}){{3}}")

# RFC 7239 6: an address, in brackets if it is IPv6, and a port, which may be a made-up name.
NODE: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]++)\]|([0-9.]++))(?::(?:([0-9]{1,5})|_[A-Za-z0-9._-]++))?")
BARE_IPV6: Final = re.compile(r"[0-9A-Fa-f:.]++")  # without a zone, which could be any text
MAX_PORT: Final = 65535
# RFC 7239 4, with white space around semicolons too, as some write it.
PAIR: Final = re.compile(
    r"[ \t]*+(?:([!#$%&'*+.^_`|~0-9A-Za-z-]++)="
    r"(?:([!#$%&'*+.^_`|~0-9A-Za-z:\[\]-]++)"
    r'|"((?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]++|\\[\t \x21-\x7e\x80-\xff])*)"))?'
    r"[ \t]*+([;,]|$)"
)
ESCAPED: Final = re.compile(r"\\(.)")
PATH: Final = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+;=:@-]++|%[0-9A-Fa-f]{2})+)*/?")

Element = dict[str, str]
Key = tuple[str | None, ...]


class Claims(NamedTuple):
    """What trusted proxies say about a request; None where they say nothing.

    Attributes:
        address: the client's.
        port: the client's, empty if it is not known.
        scheme: ``http`` or ``https``, as the client sees it.
        host: what the client has sent as Host.
        prefix: the path, decoded into latin-1, that a proxy has taken away from the target's beginning.

    """

    address: str | None = None
    port: str = ""
    scheme: str | None = None
    host: str | None = None
    prefix: str | None = None


class Node(NamedTuple):
    """One hop of a request."""

    address: str
    port: str
    is_trusted: bool


class Trust:
    """Whom to believe, and about what.

    Args:
        trusted: addresses, networks, and ``unix`` for the peers of Unix sockets.
        fields: what is read, in small letters: ``x-forwarded-for``, …, ``forwarded``.

    """

    def __init__(self, trusted: Sequence[str], fields: Sequence[str]) -> None:
        self._unix = UNIX in trusted
        networks = [ip_network(network) for network in trusted if network != UNIX]
        self._networks = [network for network in networks if isinstance(network, IPv6Network)]
        # Those of IPv4 as text and as numbers: clients' addresses differ, and to make objects of them takes ten times as long.
        of_ipv4 = [network for network in networks if isinstance(network, IPv4Network)]
        self._addresses = {str(network[0]) for network in of_ipv4 if network.num_addresses == 1}
        self._ranges = [
            (int(network.network_address), int(network.netmask))
            for network in of_ipv4
            if network.num_addresses > 1
        ]
        self._fields = tuple(f"HTTP_{field.upper().replace('-', '_')}" for field in fields)
        self._known: Memo[str, bool] = Memo(ADDRESSES_ROOM, lambda _address, _trusted: ADDRESS_MEMORY)
        self._claims: Memo[Key, Claims] = Memo(CLAIMS_ROOM, _memory_of)

    def believes(self, address: str) -> bool:
        """Return whether what a peer says is believed; the address of a Unix socket's peer is empty."""
        if not address:
            return self._unix
        known = self._known.get(address)
        return self._look_up(address) if known is None else known

    def _look_up(self, address: str) -> bool:
        believes = self._believes_ipv4 if IPV4.fullmatch(address) else self._believes_ipv6
        trusted = believes(address)
        self._known.offer(address, trusted)
        return trusted

    def _believes_ipv4(self, address: str) -> bool:
        if address in self._addresses:
            return True
        if not self._ranges:
            return False
        number = int.from_bytes(bytes(map(int, address.split("."))))
        return any(number & mask == network for network, mask in self._ranges)

    def _believes_ipv6(self, address: str) -> bool:
        # A zone (fe80::1%eth0) is this machine's name for an interface, and no part of the address.
        found = _plain(ip_address(address.partition("%")[0]))
        if isinstance(found, IPv4Address):
            return self._believes_ipv4(str(found))
        return any(found in network for network in self._networks)

    def read(self, fields: Mapping[str, str]) -> Claims:
        """Return what a trusted peer says, and those before it.

        Args:
            fields: a head's, by their CGI names.

        Raises Refusal when Forwarded is malformed, or contradicts X-Forwarded-*: a proxy that writes the one and
        lets the other through would let the client choose.

        """
        key = tuple(map(fields.get, self._fields))
        return self._claims.get(key) or self._learn(key)

    def _learn(self, key: Key) -> Claims:
        said = {field: value for field, value in zip(self._fields, key, strict=True) if value}
        address, port = self._client(said[FOR]) if FOR in said else (None, "")
        claims = Claims(
            address,
            port,
            _scheme(_last(said[PROTO])) if PROTO in said else None,
            _host(_last(said[HOST])) if HOST in said else None,
            _prefix(_last(said[PREFIX])) if PREFIX in said else None,
        )
        if FORWARDED in said:
            claims = _unite(claims, self._read_standard(said[FORWARDED]))
        self._claims.offer(key, claims)
        return claims

    def _client(self, hops: str) -> tuple[str | None, str]:
        """Return the client's address and port by X-Forwarded-For."""
        node = None
        for hop in reversed(_members(hops)):
            found = self._node(hop)
            if found is None:
                break
            node = found
            if not node.is_trusted:
                break
        return (node.address, node.port) if node else (None, "")

    def _read_standard(self, value: str) -> Claims:
        node = None
        element: Element = {}
        for element in reversed(_elements(value)):
            found = self._node(element.get("for", ""))
            if found is None:
                break
            node = found
            if not node.is_trusted:
                break
        # Whoever wrote this element is trusted, so its scheme and host are what the client's hop has seen.
        return Claims(
            node and node.address,
            node.port if node else "",
            _scheme(element.get("proto", "")),
            _host(element.get("host", "")),
        )

    def _node(self, text: str) -> Node | None:
        """Return a hop, or None for what is no address: unknown, a made-up name, nonsense."""
        if IPV4.fullmatch(text):
            return Node(text, "", self._believes_ipv4(text))
        found = NODE.fullmatch(text)
        try:
            if found is not None:
                address = _plain(IPv6Address(found[1]) if found[1] else IPv4Address(found[2]))
            elif BARE_IPV6.fullmatch(text):
                address = _plain(IPv6Address(text))
            else:
                return None
        except ValueError:
            return None
        port = found[3] or "" if found else ""
        if port and int(port) > MAX_PORT:
            return None
        return Node(str(address), port, self.believes(str(address)))


def _memory_of(key: Key, _claims: Claims) -> int:
    """Return how many bytes a table takes that keeps claims, about: the fields, and texts that are parts of them."""
    return 600 + 100 * len(key) + 4 * sum(map(len, filter(None, key)))


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return an IPv4 address that was written as one of IPv6 (RFC 4291 2.5.5.2) as what it is."""
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _members(value: str) -> list[str]:
    """Return the members of a list; empty ones mean nothing (RFC 9110 5.6.1.2)."""
    return [stripped for member in value.split(",") if (stripped := member.strip(" \t"))]


def _last(value: str) -> str:
    return value.rpartition(",")[2].strip(" \t")


def _scheme(text: str) -> str | None:
    scheme = text.lower()
    return scheme if scheme in ("http", "https") else None


def _host(text: str) -> str | None:
    return text if text and text[0] != ":" and is_host(text) else None


def _prefix(text: str) -> str | None:
    if not text or not PATH.fullmatch(text):
        return None
    return unquote_to_bytes(text.rstrip("/")).decode("latin-1")


def _elements(value: str) -> list[Element]:
    """Return the elements of a Forwarded field. Raises Refusal if it is malformed."""
    elements: list[Element] = [{}]
    for name, content, separator in _pairs(value):
        if name:
            if name in elements[-1]:
                raise Refusal(400, f"Forwarded has a second {name} for the same hop")
            elements[-1][name] = content
        if separator == ",":
            elements.append({})
    return [element for element in elements if element]


def _pairs(value: str) -> Iterator[tuple[str, str, str]]:
    """Yield names, values and what follows them.

    A quote that a client has left open would swallow what the proxy has added: nothing is guessed then.
    """
    at = 0
    while at < len(value):
        found = PAIR.match(value, at)
        if found is None:
            raise Refusal(400, "Forwarded is malformed")
        name, token, quoted, separator = found.groups()
        content = token if quoted is None else ESCAPED.sub(r"\1", quoted)
        yield (name or "").lower(), content or "", separator
        at = found.end()


def _unite(common: Claims, standard: Claims) -> Claims:
    for name, one, other in zip(Claims._fields, common, standard, strict=True):
        if one and other and one.lower() != other.lower():
            raise Refusal(400, f"Forwarded and X-Forwarded-* contradict each other about the {name}")
    return Claims(
        common.address or standard.address,
        common.port or standard.port,
        common.scheme or standard.scheme,
        common.host or standard.host,
        common.prefix,
    )
