"""Certificates for the tests, made by the openssl command, and clients that trust them."""

from __future__ import annotations

import ssl
import subprocess
from copy import copy
from pathlib import Path
from typing import NamedTuple

ELLIPTIC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
RSA = ("-newkey", "rsa:2048")


class Pair(NamedTuple):
    """The files of a certificate and its key."""

    certificate: Path
    key: Path

    def toml(self, table: str = "[pool.web.tls]", **more: object) -> str:
        """Return a TOML table that serves it."""
        lines = [f'{name} = "{value}"' for name, value in (self._asdict() | more).items()]
        return "\n".join([table, *lines, ""])

    def context(self) -> ssl.SSLContext:
        """Return what a worker makes TLS connections by, as plain as it gets."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self)
        return context

    def put(self, other: Pair) -> None:
        """Put another pair in this one's place, as those who renew certificates do."""
        for old, new in zip(self, other, strict=True):
            old.write_bytes(new.read_bytes())


class Authority:
    """An authority that issues certificates into ``folder``; its own is ``ca``."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.ca = Pair(folder / f"{name}.pem", folder / f"{name}.key")
        # From Python 3.13 on clients insist on it (RFC 5280 4.2.1.3).
        usage = ("-addext", "keyUsage = critical, keyCertSign, cRLSign")
        subject = ("-subj", f"/CN=Test {name}", "-days", 30)
        _openssl("req", "-x509", *ELLIPTIC, "-nodes", *subject, *usage, *_out(self.ca))

    def below(self, name: str, days: int = 30) -> Authority:
        """Return an intermediate authority that this one has certified."""
        made = copy(self)
        made.ca = self.issue(
            name, days=days, extensions="basicConstraints = critical, CA:TRUE\nkeyUsage = keyCertSign"
        )
        return made

    def issue(
        self,
        name: str,
        *hosts: str,
        subject: str = "",
        days: int = 30,
        key: tuple[str, ...] = ELLIPTIC,
        extensions: str = "",
    ) -> Pair:
        """Return a new certificate for the hosts, with a file name of its own."""
        pair = Pair(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        request, extras = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        names = ",".join(f"DNS:{host}" for host in hosts or ["localhost"])
        extras.write_text(f"subjectAltName = {names}\nauthorityKeyIdentifier = keyid\n{extensions}\n")
        wanted = ("-subj", subject or f"/CN={name}", "-keyout", pair.key, "-out", request)
        _openssl("req", "-new", *key, "-nodes", "-utf8", *wanted)
        signer = ("-CA", self.ca.certificate, "-CAkey", self.ca.key, "-CAcreateserial")
        granted = ("-days", days, "-extfile", extras, "-out", pair.certificate)
        _openssl("x509", "-req", "-in", request, *signer, *granted)
        return pair

    def client(self, pair: Pair | None = None) -> ssl.SSLContext:
        """Return a client's context that trusts this authority only, with a certificate of its own if given."""
        context = ssl.create_default_context(cafile=str(self.ca.certificate))
        # An end without close_notify is to be seen, not overlooked.
        context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
        if pair is not None:
            context.load_cert_chain(*pair)
        return context


def _out(pair: Pair) -> tuple[object, ...]:
    return ("-keyout", pair.key, "-out", pair.certificate)


def _openssl(*arguments: object) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
