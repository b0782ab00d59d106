"""What a WSGI application hears about TLS, by the names that mod_ssl of Apache's httpd gave it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

# The types that RFC 4514 and OpenSSL write shorter than the standard library does.
SHORT: Final = {
    "commonName": "CN",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "stateOrProvinceName": "ST",
    "localityName": "L",
    "streetAddress": "street",
    "domainComponent": "DC",
    "userId": "UID",
    "givenName": "GN",
    "surname": "SN",
}
SPECIAL: Final = frozenset(',+"\\<>;')

Name = tuple[tuple[tuple[str, str], ...], ...]


def environ_of(
    protocol: str, cipher: str, bits: int, certificate: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what the environs of a connection's requests have in common because of TLS.

    Args:
        protocol: its version, as in ``TLSv1.3``.
        cipher: the cipher's name.
        bits: how long the cipher's key is.
        certificate: the client's, verified, as ``ssl.SSLSocket.getpeercert`` returns it; None without one.

    """
    common = {
        "wsgi.url_scheme": "https",
        "HTTPS": "on",
        "SSL_PROTOCOL": protocol,
        "SSL_CIPHER": cipher,
        "SSL_CIPHER_USEKEYSIZE": str(bits),
        "SSL_CLIENT_VERIFY": "SUCCESS" if certificate else "NONE",
    }
    return {**common, **_client(certificate)} if certificate else common


def distinguished(name: Name) -> str:
    """Return a name as RFC 4514 writes it, most specific part first, in plain ASCII."""
    parts = ("+".join(f"{SHORT.get(kind, kind)}={_escape(value)}" for kind, value in part) for part in name)
    return ",".join(reversed(list(parts)))


def _client(certificate: Mapping[str, Any]) -> dict[str, str]:
    common_names = [value for part in certificate["subject"] for kind, value in part if kind == "commonName"]
    found = {
        "SSL_CLIENT_S_DN": distinguished(certificate["subject"]),
        "SSL_CLIENT_I_DN": distinguished(certificate["issuer"]),
        "SSL_CLIENT_M_SERIAL": certificate["serialNumber"],
        "SSL_CLIENT_V_START": certificate["notBefore"],
        "SSL_CLIENT_V_END": certificate["notAfter"],
    }
    return found | ({"SSL_CLIENT_S_DN_CN": _escape(common_names[-1])} if common_names else {})


def _escape(value: str) -> str:
    """Return a value of a name as RFC 4514 2.4 wants it; what is not printable ASCII as the bytes of its UTF-8."""
    last = len(value) - 1
    return "".join(
        "\\" + sign
        if sign in SPECIAL or (sign == " " and at in (0, last)) or (sign == "#" and at == 0)
        else _plain(sign)
        for at, sign in enumerate(value)
    )


def _plain(sign: str) -> str:
    if " " <= sign <= "~":
        return sign
    return "".join(f"\\{byte:02X}" for byte in sign.encode("utf-8", "replace"))
