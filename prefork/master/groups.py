"""Key exchange without finite fields: one handshake with ffdhe8192 costs the server 200 ms of CPU, and the client none.

The attack is D(HE)at (CVE-2002-20001, CVE-2022-40735). OpenSSL 3 offers ffdhe2048 to ffdhe8192 for TLS 1.3, and the
standard library cannot take them away before Python 3.15. So before, OpenSSL is told directly; and whichever way it was
done, a handshake in memory proves it. Where it cannot be done, that is said.
"""

from __future__ import annotations

import ctypes
import importlib
import ssl
import sys
from typing import Final

GROUPS: Final = "X25519:P-256:P-384"
# Since OpenSSL 3.5 clients and servers agree on this one first, against those who record traffic for later.
HYBRID: Final = "X25519MLKEM768"
FFDHE2048: Final = 0x0100
X25519: Final = 0x001D
# Of OpenSSL's ssl.h: what the macro SSL_CTX_set1_groups_list calls SSL_CTX_ctrl with.
SSL_CTRL_SET_GROUPS_LIST: Final = 92
# The versions of CPython whose SSLContext is known to begin with its SSL_CTX * (PySSLContext in Modules/_ssl.c).
KNOWN_LAYOUT: Final = ((3, 11), (3, 12), (3, 13), (3, 14))


def restrict_groups(context: ssl.SSLContext) -> None:
    """Let a server's context agree on elliptic curves only, if there is a way to do so: see ``is_restricted``."""
    groups = f"{HYBRID}:{GROUPS}" if _knows_hybrid() else GROUPS
    if hasattr(context, "set_groups"):  # Python 3.15
        context.set_groups(groups)
    elif sys.implementation.name == "cpython" and sys.version_info[:2] in KNOWN_LAYOUT:
        _set_groups_directly(context, groups)


def is_restricted(context: ssl.SSLContext) -> bool:
    """Return whether a server's context agrees on an elliptic curve, and on no finite field."""
    return accepts(context, X25519) and not accepts(context, FFDHE2048)


def accepts(context: ssl.SSLContext, group: int) -> bool:
    """Return whether a server would go on with a client of TLS 1.3 that offers this one group."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(_hello(group))
    try:
        server.do_handshake()
    except ssl.SSLWantReadError:
        # A HelloRetryRequest asks for the group's key, which costs neither end anything yet.
        return True
    except ssl.SSLError:
        return False
    raise AssertionError("a handshake is over after one message")


def _knows_hybrid() -> bool:
    return ssl.OPENSSL_VERSION.startswith("OpenSSL ") and ssl.OPENSSL_VERSION_INFO >= (3, 5)


def _set_groups_directly(context: ssl.SSLContext, groups: str) -> None:
    """Call OpenSSL as Python's own _ssl module would; leave all as it is where its functions cannot be found."""
    # Found by way of that module: there may be several OpenSSLs in a process, and the context belongs to this one.
    path = getattr(importlib.import_module("_ssl"), "__file__", None)
    try:
        library = ctypes.CDLL(path)
        control, clear = library.SSL_CTX_ctrl, library.ERR_clear_error
    except (OSError, AttributeError):  # linked into the interpreter, and not to be seen from outside
        return
    control.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_char_p)
    control.restype = ctypes.c_long
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
    control(pointer, SSL_CTRL_SET_GROUPS_LIST, 0, groups.encode())
    clear()  # what it has noted if it knows one of the groups not, which the next call would take for its own


def _hello(group: int) -> bytes:
    """Return a ClientHello of TLS 1.3 (RFC 8446 4.1.2) that offers a group, and no key for it yet."""
    extensions = b"".join(
        _extension(kind, content)
        for kind, content in (
            (10, _vector(group.to_bytes(2), 2)),  # supported_groups
            (13, _vector(bytes.fromhex("0403 0804 0805 0806 0503 0603 0807"), 2)),  # signature_algorithms
            (43, _vector(b"\x03\x04", 1)),  # supported_versions: TLS 1.3
            (51, _vector(b"", 2)),  # key_share: none
        )
    )
    suites = bytes.fromhex("1301 1302 1303")
    body = (
        b"\x03\x03"
        + bytes(32)
        + _vector(b"", 1)
        + _vector(suites, 2)
        + _vector(b"\0", 1)
        + _vector(extensions, 2)
    )
    return b"\x16\x03\x01" + _vector(b"\x01" + _vector(body, 3), 2)


def _extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2) + _vector(content, 2)


def _vector(content: bytes, width: int) -> bytes:
    return len(content).to_bytes(width) + content
