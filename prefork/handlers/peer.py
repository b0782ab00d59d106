"""Who is at the other end: what PROXY headers and trusted proxies say about the client, and what becomes of it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from prefork.config.schema import Http, Listen, Pool
from prefork.protocols.forwarded import Claims, Trust
from prefork.protocols.proxy import End, Header, ProxyError, read_header

__all__ = [
    "Claims",
    "Door",
    "End",
    "Header",
    "ProxyError",
    "Trust",
    "believe",
    "doors_of",
    "mount",
    "read_header",
]


class Door:
    """What a listener says about the peers that come in there.

    Args:
        listen: the listener's options.
        http: the pool's, for what the listener leaves to it.

    Attributes:
        proxy_protocol: whether each connection has to begin with a PROXY header.

    """

    __slots__ = ("_trust", "proxy_protocol")

    def __init__(self, listen: Listen, http: Http) -> None:
        self.proxy_protocol = listen.proxy_protocol
        trusted = http.trusted if listen.trusted is None else listen.trusted
        self._trust = Trust(trusted, http.trusted_fields)

    def trust_in(self, host: str) -> Trust | None:
        """Return whom to believe beside a trusted peer; None if the peer itself is not trusted."""
        return self._trust if self._trust.believes(host) else None


def doors_of(pool: Pool, listeners: Sequence[socket.socket]) -> dict[int, Door]:
    """Return what a pool's listeners say, by their descriptors."""
    return {
        listener.fileno(): Door(listen, pool.http)
        for listener, listen in zip(listeners, pool.listen, strict=True)
    }


def mount(environ: dict[str, Any], root: str, prefix: str | None) -> None:
    """Say under which path the application is mounted, and take that path from PATH_INFO if it is there.

    Args:
        environ: the request's, whose SCRIPT_NAME is ``root`` already.
        root: the pool's ``root_path``, as PEP 3333 wants text.
        prefix: what a trusted proxy says that it has taken from the path's beginning.

    """
    path = environ["PATH_INFO"]
    is_there = path.startswith(root) and path[len(root) :][:1] in ("", "/")
    if is_there:
        environ["PATH_INFO"] = path[len(root) :]
    if prefix is not None:
        # A root that is not in the path is what the proxy has taken away, under the name that it gives itself.
        environ["SCRIPT_NAME"] = prefix + root if is_there else prefix


def believe(environ: dict[str, Any], claims: Claims) -> None:
    """Put into an environ what trusted proxies say about the client."""
    if claims.address is not None:
        environ["REMOTE_ADDR"] = claims.address
        environ["REMOTE_PORT"] = claims.port
    if claims.scheme is not None:
        environ["wsgi.url_scheme"] = claims.scheme
    if claims.host is not None:
        environ["HTTP_HOST"] = claims.host
