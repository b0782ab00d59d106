"""Certificates are tried before they count: what is wrong is told by name, and who asks for a name gets its certificate."""

from __future__ import annotations

import ssl
from contextlib import suppress

import pytest

from prefork.config.schema import Config, Listen, Log, Master, Pool, Tls
from prefork.errors import ConfigError
from prefork.master import groups
from prefork.master.certificates import Certificates, _judge_dates
from prefork.units import TcpAddress
from tests.certificates import RSA, Authority, Pair

PLAIN = Listen(address=TcpAddress("127.0.0.1", 0))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def tls(*pairs: Pair, **more: str) -> Tls:
    return Tls(
        certificate=tuple(str(pair.certificate) for pair in pairs),
        key=tuple(str(pair.key) for pair in pairs),
        **more,
    )


def config(*pools: Pool) -> Config:
    master = Master(name="shop", directory="/", control="/run/shop")
    return Config(master=master, log=Log(), pools={pool.name: pool for pool in pools})


def web(wanted: Tls | None, listen: tuple[Listen, ...] = (PLAIN,), name: str = "web") -> Pool:
    return Pool(name=name, wsgi="a:b", listen=listen, tls=wanted)


def problems(wanted: Tls) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Certificates(config(web(wanted)))
    return [problem.message for problem in caught.value.problems]


def test_pools_of_one_kind_share_what_is_the_same(authority):
    same = tls(authority.issue("same"))
    one, two = web(same), web(None, (PLAIN, Listen(address=TcpAddress("::1", 0), tls=same)), "two")
    echo = Pool(name="echo", handler="a:b", listen=(PLAIN,), tls=same)
    found = Certificates(config(one, two, echo))
    assert found.context_for(two, two.listen[0]) is None
    assert found.context_for(one, PLAIN) is found.context_for(two, two.listen[1])
    assert found.context_for(one, PLAIN) is not found.context_for(echo, PLAIN)  # it speaks no HTTP


def test_connections_are_as_safe_as_the_standard_library_makes_them(authority):
    pool = web(tls(authority.issue("safe")))
    context = Certificates(config(pool)).context_for(pool, PLAIN)
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.verify_mode == ssl.CERT_NONE
    names = [cipher["name"] for cipher in context.get_ciphers()]
    assert not [name for name in names if "RC4" in name or "DES" in name or "NULL" in name]


def test_clients_have_to_show_a_certificate_where_an_authority_is_named(authority):
    pool = web(
        tls(
            authority.issue("a", "a.test"),
            authority.issue("b", "b.test"),
            client_ca=str(authority.ca.certificate),
        )
    )
    context = Certificates(config(pool)).context_for(pool, PLAIN)
    assert context is not None
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert len(context.get_ca_certs()) == 1


def test_a_certificates_names_are_known(authority):
    pairs = Certificates(config(web(tls(authority.issue("n", "One.test", "*.two.test"))))).pairs
    assert [pair.names for pair in pairs] == [frozenset({"one.test", "*.two.test"})]
    assert pairs[0].problem is None


def test_all_that_is_wrong_is_told_at_once(authority, tmp_path):
    good, other = authority.issue("good"), authority.issue("wrong")
    mixed, missing = Pair(good.certificate, other.key), Pair(tmp_path / "none.pem", good.key)
    with pytest.raises(ConfigError) as caught:
        Certificates(
            config(
                web(tls(mixed)), web(None, (PLAIN, Listen(address=PLAIN.address, tls=tls(missing))), "two")
            )
        )
    assert [problem.message for problem in caught.value.problems] == [
        f"[pool.web.tls] key: expected the key of the certificate in {good.certificate}, found another one's in {other.key}",
        f"[pool.two] listen[1].tls certificate: cannot read {missing.certificate}: no such file or directory",
    ]


def test_a_key_of_another_kind_is_no_match_either(authority):
    elliptic, rsa = authority.issue("e"), authority.issue("r", key=RSA)
    for mixed in (Pair(elliptic.certificate, rsa.key), Pair(rsa.certificate, elliptic.key)):
        assert "found another one's" in problems(tls(mixed))[0]


def test_an_authority_has_to_be_readable(authority, tmp_path):
    pair = authority.issue("x")
    assert "client_ca: cannot read" in problems(tls(pair, client_ca=str(tmp_path / "none.pem")))[0]
    assert "client_ca: expected a certificate in PEM" in problems(tls(pair, client_ca=str(pair.key)))[0]


def test_a_certificate_that_is_for_something_else_is_a_problem_but_usable(authority):
    pair = authority.issue("client-only", extensions="extendedKeyUsage = clientAuth")
    (problem,) = Certificates(config(web(tls(pair)))).problems()
    assert problem.message.startswith(f"[pool.web.tls] certificate: clients will refuse {pair.certificate}: ")


def test_known_problems_are_no_news(authority):
    old, new = authority.issue("old", days=-1), authority.issue("new", days=-1)
    before = Certificates(config(web(tls(old))))
    assert len(before.problems()) == 1
    assert before.problems(before) == []
    assert len(Certificates(config(web(tls(new)))).problems(before)) == 1


@pytest.mark.parametrize(
    ("begin", "end", "says"),
    [
        ("Jan  1 00:00:00 2020 GMT", "Jan  1 00:00:00 2021 GMT", "which expired on Jan  1 00:00:00 2021 GMT"),
        ("Jan  1 00:00:00 2120 GMT", "Jan  1 00:00:00 2121 GMT", "which begins on Jan  1 00:00:00 2120 GMT"),
        ("Jan  1 00:00:00 2020 GMT", "Jan  1 00:00:00 2121 GMT", None),
    ],
)
def test_a_certificate_is_valid_from_its_beginning_to_its_end(begin, end, says):
    problem = _judge_dates("expected a good one, found /c.pem,", {"notBefore": begin, "notAfter": end})
    assert (problem and problem.message) == (says and f"expected a good one, found /c.pem, {says}")


def handshake(context: ssl.SSLContext, client: ssl.SSLContext, name: str) -> ssl.SSLObject:
    inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(inward, outward, server_side=True)
    asking = client.wrap_bio(outward, inward, server_hostname=name)
    for end in (
        asking,
        server,
        asking,
        server,
        asking,
    ):  # a curve that is not the first guess takes one more round
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return asking


def groups_of(context: ssl.SSLContext) -> set[int]:
    return {
        group
        for group in (0x17, 0x18, 0x19, 0x1D, 0x1E, *range(0x100, 0x105))
        if groups.accepts(context, group)
    }


def test_no_finite_field_is_agreed_upon_whatever_name_a_client_asks_for(authority):
    plain = authority.issue("plain").context()
    if ssl.OPENSSL_VERSION_INFO >= (3,):
        assert 0x104 in groups_of(plain)  # what it is about
    pool = web(tls(authority.issue("one", "one.test"), authority.issue("two", "two.test")))
    certificates = Certificates(config(pool))
    context = certificates.context_for(pool, pool.listen[0])
    assert context is not None
    assert groups_of(context) == {0x17, 0x18, 0x1D}  # P-256, P-384, X25519
    assert certificates.doubts == ()
    suites = {suite["name"] for suite in context.get_ciphers()}
    assert suites
    assert all("GCM" in name or "CHACHA20" in name for name in suites)
    for name in ("one.test", "two.test"):
        for curve in ("prime256v1", "secp384r1"):
            client = authority.client()
            client.set_ecdh_curve(curve)
            assert name in str(handshake(context, client, name).getpeercert()["subjectAltName"])


def test_groups_that_cannot_be_taken_away_are_told(authority, monkeypatch):
    monkeypatch.setattr("prefork.master.certificates.restrict_groups", lambda _context: None)
    found = Certificates(config(web(tls(authority.issue("as-ever")))))
    expected = 1 if ssl.OPENSSL_VERSION_INFO >= (3,) else 0
    assert len(found.doubts) == expected
    assert all("finite-field groups (ffdhe) stay on" in doubt for doubt in found.doubts)
    assert found.problems() == []
