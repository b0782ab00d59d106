"""Certificates and keys: read and tried in the master, where they can be read, inherited by the workers it forks.

So a worker that has dropped its privileges needs no right to read a key, all workers of a generation share the keys
of TLS's session tickets, and a bad pair is found before anything changes. Imported only where there is TLS. Workers that
execute their program anew (anew.py) inherit nothing: they are given the files' contents, and make the same of them.
"""

from __future__ import annotations

import os
import platform
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, NoReturn

from prefork.config.schema import Config, Listen, Pool, Tls
from prefork.errors import ConfigError, Problem
from prefork.master.groups import is_restricted, restrict_groups
from prefork.worker.client_hello import PROTOCOLS

# Of OpenSSL's x509_vfy.h: the standard library names only the flags that make it stricter.
NO_CHECK_TIME = 0x200000
FINITE_FIELDS = (
    "TLS: finite-field groups (ffdhe) stay on, as this Python cannot switch them off: "
    f"{ssl.OPENSSL_VERSION}, Python {platform.python_version()}; a client can cost much CPU by them (CVE-2022-40735)"
)
CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
KEY = b"PRIVATE KEY-----"
# All of TLS 1.2 that encrypts and authenticates in one step (AEAD): without CBC, whose padding was attacked again and
# again, and without finite-field Diffie-Hellman. TLS 1.3 has no others anyway.
SUITES = "ECDHE+AESGCM:ECDHE+CHACHA20"
# What load_cert_chain fails with when two files do not belong together; the last one is for keys of different kinds.
MISMATCH = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}


class Pair(NamedTuple):
    """A certificate that is shown to clients.

    Attributes:
        certificate: itself, in DER.
        names: the host names that it is for, in lower case.
        problem: why clients will refuse it as things stand, if they will.

    """

    certificate: bytes
    names: frozenset[str]
    problem: Problem | None


class Certificates:
    """All that a configuration needs to speak TLS.

    Attributes:
        pairs: every certificate.
        doubts: what could not be made as safe as it should be, in words.
        files: what was read, by its path: workers that execute their program anew are given it.

    Raises ConfigError with all that cannot be read or used.

    """

    def __init__(self, config: Config) -> None:
        self._contexts: dict[tuple[Tls, str], ssl.SSLContext] = {}
        self.files: dict[str, bytes] = {}
        self.pairs: list[Pair] = []
        self.doubts: tuple[str, ...] = ()
        unusable: list[Problem] = []
        for where, pool, tls in _wanted(config):
            try:
                self._add(where, pool, tls)
            except _UnusableError as error:
                unusable.append(error.problem)
        if unusable:
            raise ConfigError(unusable)

    def context_for(self, pool: Pool, listen: Listen) -> ssl.SSLContext | None:
        """Return what a listener of a pool makes TLS connections by, None if it does not speak TLS."""
        tls = pool.tls_at(listen)
        return None if tls is None else self._contexts[tls, pool.kind]

    def problems(self, known: Certificates | None = None) -> list[Problem]:
        """Return why clients will refuse certificates that can be used otherwise; nothing about those ``known``."""
        old = {pair.certificate for pair in known.pairs} if known else set()
        return [pair.problem for pair in self.pairs if pair.problem and pair.certificate not in old]

    def _add(self, where: str, pool: Pool, tls: Tls) -> None:
        if (tls, pool.kind) not in self._contexts:
            context, pairs = _build(where, tls, _protocols(pool.kind))
            self._contexts[tls, pool.kind] = context
            self.files |= {path: _read(path) for path in tls.files()}
            self.pairs += pairs
            if not is_restricted(context):
                self.doubts = (FINITE_FIELDS,)


def context_from(tls: Tls, kind: str, files: Mapping[str, bytes]) -> ssl.SSLContext:
    """Return what ``Certificates`` has made, in a program that is given the files' contents, as it may not read them."""
    with ExitStack() as stack:
        paths = {path: stack.enter_context(_as_file(data)) for path, data in files.items()}
        given = Tls(
            certificate=tuple(paths[path] for path in tls.certificate),
            key=tuple(paths[path] for path in tls.key),
            client_ca=tls.client_ca and paths[tls.client_ca],
        )
        return _build("tls", given, _protocols(kind))[0]


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """Give bytes a path, as OpenSSL takes no others for keys; it means memory of this process, and nothing on a disk."""
    descriptor = os.memfd_create("prefork-certificate")
    try:
        os.write(descriptor, data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _read(path: str) -> bytes:
    """Return what a file holds; a FIFO that somebody has put there holds nothing, and is not waited for."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        return file.read()


class _UnusableError(Exception):
    def __init__(self, where: str, key: str, text: str, hint: str | None = None) -> None:
        super().__init__(text)
        self.problem = Problem(f"{where} {key}: {text}", hint)


def _protocols(kind: str) -> Sequence[str]:
    return PROTOCOLS if kind == "wsgi" else ()


def _wanted(config: Config) -> Iterator[tuple[str, Pool, Tls]]:
    """Yield each use of TLS, with where it is written."""
    for pool in config.pools.values():
        if pool.tls is not None:
            yield f"[pool.{pool.name}.tls]", pool, pool.tls
        for number, listen in enumerate(pool.listen):
            if listen.tls is not None:
                yield f"[pool.{pool.name}] listen[{number}].tls", pool, listen.tls


def _build(where: str, tls: Tls, protocols: Sequence[str]) -> tuple[ssl.SSLContext, list[Pair]]:
    """Return the context for clients that name no host, which knows those for the others."""
    contexts: dict[frozenset[str], ssl.SSLContext] = {}
    pairs = []
    for certificate, key in tls.pairs():
        context = _load(where, certificate, key)
        pair = _inspect(where, context, certificate)
        pairs.append(pair)
        names = pair.names or frozenset({certificate})
        if names in contexts:  # such as one with an RSA key and one with an elliptic one: OpenSSL chooses
            contexts[names].load_cert_chain(certificate, key)
        else:
            contexts[names] = context
    for context in contexts.values():
        restrict_groups(context)
        _refine(where, context, tls, protocols)
    default = next(iter(contexts.values()))
    if len(contexts) > 1:
        # Of several with a name in common the first one has it, as it has the clients that name no host.
        default.sni_callback = _chooser(
            {name: context for names, context in reversed(contexts.items()) for name in names}
        )
    return default, pairs


def _load(where: str, certificate: str, key: str) -> ssl.SSLContext:
    _check_pem(where, "certificate", certificate, CERTIFICATE, "a certificate")
    _check_pem(where, "key", key, KEY, "a private key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(SUITES)

    def refuse_to_ask() -> NoReturn:
        # Otherwise OpenSSL would ask for it, on a terminal that a server does not have.
        raise _UnusableError(
            where, "key", f"expected a key without a passphrase, found an encrypted one in {key}"
        )

    try:
        context.load_cert_chain(certificate, key, refuse_to_ask)
    except ssl.SSLError as error:
        if error.reason in MISMATCH:
            text = f"expected the key of the certificate in {certificate}, found another one's in {key}"
            raise _UnusableError(where, "key", text) from error
        text = f"{certificate} with {key} cannot be used: {error.reason or error}"
        raise _UnusableError(where, "certificate", text) from error
    return context


def _check_pem(where: str, option: str, path: str, label: bytes, what: str) -> None:
    """Say what OpenSSL does not: which file it is about, and what it lacks."""
    try:
        data = _read(path)
    except OSError as error:
        raise _UnusableError(
            where, option, f"cannot read {path}: {(error.strerror or str(error)).lower()}"
        ) from error
    if label not in data:
        hint = "a PEM file is text with lines like -----BEGIN …-----; openssl makes one of other formats"
        raise _UnusableError(where, option, f"expected {what} in PEM, found none in {path}", hint)


def _refine(where: str, context: ssl.SSLContext, tls: Tls, protocols: Sequence[str]) -> None:
    if protocols:
        context.set_alpn_protocols(list(protocols))
    if tls.client_ca is not None:
        _check_pem(where, "client_ca", tls.client_ca, CERTIFICATE, "a certificate")
        try:
            context.load_verify_locations(tls.client_ca)
        except ssl.SSLError as error:
            text = f"{tls.client_ca} cannot be used: {error.reason or error}"
            raise _UnusableError(where, "client_ca", text) from error
        context.verify_mode = ssl.CERT_REQUIRED


def _chooser(
    by_name: Mapping[str, ssl.SSLContext],
) -> Callable[[ssl.SSLObject, str | None, ssl.SSLContext], None]:
    def choose(connection: ssl.SSLObject, name: str | None, _default: ssl.SSLContext) -> None:
        """Show the certificate for the name that a client asks for (RFC 6066 3); the first one if there is none."""
        asked = (name or "").lower()
        found = by_name.get(asked) or by_name.get(f"*.{asked.partition('.')[2]}")
        if found is not None:
            connection.context = found

    return choose


def _inspect(where: str, context: ssl.SSLContext, path: str) -> Pair:
    """Look at the certificate as a client does that trusts it: the standard library reads no other."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    certificate = _greet(context, client).getpeercert(binary_form=True)
    assert certificate is not None
    client.verify_mode = ssl.CERT_REQUIRED
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | NO_CHECK_TIME
    client.load_verify_locations(cadata=certificate)
    try:
        found: Mapping[str, Any] = _greet(context, client).getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        problem = Problem(f"{where} certificate: clients will refuse {path}: {error.verify_message}")
        return Pair(certificate, frozenset(), problem)
    late = _judge_dates(f"{where} certificate: expected one that is valid now, found {path},", found)
    return Pair(certificate, _names(found), late or _judge_issuers(where, path))


def _greet(context: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Return a client's end of a handshake in memory. Raises ssl.SSLError when the client does not like what it sees."""
    inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(inward, outward, server_side=True)
    asking = client.wrap_bio(outward, inward)
    for end in (asking, server):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    asking.do_handshake()
    return asking


def _names(certificate: Mapping[str, Any]) -> frozenset[str]:
    """Return the host names of a certificate; its subject is asked only where there are no others (RFC 6125 6.4.4)."""
    names = [name for kind, name in certificate.get("subjectAltName", ()) if kind == "DNS"]
    subject = [value for part in certificate["subject"] for kind, value in part if kind == "commonName"]
    return frozenset(name.lower() for name in names or subject)


def _judge_issuers(where: str, path: str) -> Problem | None:
    """Look at the other certificates of a chain. Roots do not matter: clients believe in none but their own."""
    chain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    chain.load_verify_locations(path)
    issuers: Sequence[Mapping[str, Any]] = chain.get_ca_certs()
    for issuer in issuers:
        if issuer["subject"] != issuer["issuer"]:
            name = ", ".join(str(value) for part in issuer["subject"] for _, value in part)
            expected = f"{where} certificate: expected issuers that are valid now, found {name} in {path},"
            if problem := _judge_dates(expected, issuer):
                return problem
    return None


def _judge_dates(expected: str, certificate: Mapping[str, Any]) -> Problem | None:
    now = time.time()
    begin, end = certificate["notBefore"], certificate["notAfter"]
    if now > ssl.cert_time_to_seconds(end):
        return Problem(f"{expected} which expired on {end}")
    if now < ssl.cert_time_to_seconds(begin):
        return Problem(f"{expected} which begins on {begin}")
    return None
