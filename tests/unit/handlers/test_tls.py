"""What applications are told about TLS."""

from __future__ import annotations

import pytest

from prefork.handlers.tls import distinguished, environ_of

CLIENT = {
    "subject": ((("countryName", "DE"),), (("organizationName", "A, B"),), (("commonName", "Zoë"),)),
    "issuer": ((("commonName", "Test ca"),),),
    "serialNumber": "0A",
    "notBefore": "Nov 22 20:42:43 2026 GMT",
    "notAfter": "Dec 22 20:42:43 2026 GMT",
}


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "plain"),
        ('a,b+c"d\\e<f>g;h', 'a\\,b\\+c\\"d\\\\e\\<f\\>g\\;h'),
        (" #x ", "\\ #x\\ "),
        ("#x", "\\#x"),
        ("Zoë", "Zo\\C3\\AB"),
        ("a\r\nb\0", "a\\0D\\0Ab\\00"),
        ("", ""),
    ],
)
def test_a_name_is_escaped_as_rfc_4514_says(value, written):
    assert distinguished(((("commonName", value),),)) == f"CN={written}"


def test_the_most_specific_part_of_a_name_comes_first_and_values_of_one_part_stay_together():
    name = ((("countryName", "DE"),), (("commonName", "x"), ("userId", "7")), (("emailAddress", "a@b"),))
    assert distinguished(name) == "emailAddress=a@b,CN=x+UID=7,C=DE"


def test_an_application_hears_of_protocol_and_cipher():
    assert environ_of("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256, None) == {
        "wsgi.url_scheme": "https",
        "HTTPS": "on",
        "SSL_PROTOCOL": "TLSv1.3",
        "SSL_CIPHER": "TLS_AES_256_GCM_SHA384",
        "SSL_CIPHER_USEKEYSIZE": "256",
        "SSL_CLIENT_VERIFY": "NONE",
    }


def test_an_application_hears_of_the_clients_certificate():
    found = environ_of("TLSv1.2", "X", 128, CLIENT)
    assert {name: value for name, value in found.items() if name.startswith("SSL_CLIENT_")} == {
        "SSL_CLIENT_VERIFY": "SUCCESS",
        "SSL_CLIENT_S_DN": "CN=Zo\\C3\\AB,O=A\\, B,C=DE",
        "SSL_CLIENT_S_DN_CN": "Zo\\C3\\AB",
        "SSL_CLIENT_I_DN": "CN=Test ca",
        "SSL_CLIENT_M_SERIAL": "0A",
        "SSL_CLIENT_V_START": "Nov 22 20:42:43 2026 GMT",
        "SSL_CLIENT_V_END": "Dec 22 20:42:43 2026 GMT",
    }
