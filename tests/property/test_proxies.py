"""What proxies say, whatever they say: split anywhere it means the same, and nothing but a refusal is raised."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from prefork.config.schema import CLIENT_FIELDS
from prefork.protocols.forwarded import Claims, Trust
from prefork.protocols.http1 import Refusal, is_host
from prefork.protocols.proxy import SIGNATURE, End, Header, ProxyError, read_header

ports = st.integers(0, 65535)
trusted = ("127.0.0.1", "10.0.0.0/8", "::1", "unix")


@st.composite
def headers(draw: st.DrawFn) -> tuple[bytes, Header]:
    """A PROXY header and what it says."""
    version = draw(st.sampled_from([4, 6]))
    hosts = [draw(st.ip_addresses(v=version)) for _ in range(2)]
    numbers = [draw(ports), draw(ports)]
    if draw(st.booleans()):
        data = f"PROXY TCP{version} {hosts[0]} {hosts[1]} {numbers[0]} {numbers[1]}\r\n".encode()
    else:
        more = draw(st.binary(max_size=40))
        payload = b"".join(host.packed for host in hosts)
        payload += b"".join(number.to_bytes(2, "big") for number in numbers) + more
        data = (
            SIGNATURE
            + (b"\x21\x11" if version == 4 else b"\x21\x21")
            + len(payload).to_bytes(2, "big")
            + payload
        )
    # One of IPv4 that came as one of IPv6, where the other end is one, is shown as what it is.
    shown = [getattr(host, "ipv4_mapped", None) or host for host in hosts]
    one, two = (End(str(host), number) for host, number in zip(shown, numbers, strict=True))
    return data, Header(len(data), one, two)


@given(headers(), st.binary(max_size=50))
def test_a_header_is_read_once_it_is_whole_and_never_more_of_it(
    made: tuple[bytes, Header], rest: bytes
) -> None:
    data, expected = made
    assert {read_header(data[:size]) for size in range(1, len(data))} <= {None}
    assert read_header(data + rest) == expected


beginnings = st.sampled_from(
    [b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY UNKNOWN", SIGNATURE, SIGNATURE + b"\x21\x11"]
)


@given(beginnings, st.binary(min_size=1, max_size=200))
def test_whatever_comes_it_is_a_header_or_none_or_refused(beginning: bytes, rest: bytes) -> None:
    data = beginning + rest
    try:
        found = read_header(data)
    except ProxyError:
        return
    if found is not None:
        assert found.size <= len(data)


@given(beginnings, st.binary(min_size=1, max_size=60))
def test_what_was_refused_early_stays_refused(beginning: bytes, rest: bytes) -> None:
    data = beginning + rest
    outcomes = []
    for size in range(1, len(data) + 1):
        try:
            outcomes.append(read_header(data[:size]))
        except ProxyError:
            outcomes.append("refused")
    first = next((outcome for outcome in outcomes if outcome is not None), None)
    later = outcomes[outcomes.index(first) :] if first is not None else []
    assert all(outcome == first for outcome in later)


texts = st.text(st.characters(min_codepoint=9, max_codepoint=255), max_size=60)
names = st.sampled_from(
    [
        "HTTP_FORWARDED",
        "HTTP_X_FORWARDED_FOR",
        "HTTP_X_FORWARDED_PROTO",
        "HTTP_X_FORWARDED_HOST",
        "HTTP_X_FORWARDED_PREFIX",
    ]
)
likely = st.from_regex(r'((for|proto|host|by)=("[^"]{0,9}"|[0-9a-f.:\[\]]{0,9})[;, ]?){0,4}', fullmatch=True)


def read(fields: dict[str, str]) -> Claims | None:
    try:
        return Trust(trusted, CLIENT_FIELDS).read(fields)
    except Refusal:
        return None


@given(st.dictionaries(names, texts | likely))
def test_whatever_a_trusted_proxy_says_only_sound_values_come_of_it(fields: dict[str, str]) -> None:
    claims = read(fields)
    if claims is None:
        return
    assert claims.address is None or str(ip_address(claims.address)) == claims.address
    assert claims.port == "" or 0 <= int(claims.port) <= 65535
    assert claims.scheme in (None, "http", "https")
    assert claims.host is None or is_host(claims.host)
    assert claims.prefix is None or claims.prefix == "" or claims.prefix[0] == "/" != claims.prefix[1]


clients = st.ip_addresses().filter(lambda address: not Trust(trusted, CLIENT_FIELDS).believes(str(address)))


@given(
    texts.filter(lambda text: "\0" not in text), clients, st.lists(st.sampled_from(["10.1.2.3", "127.0.0.1"]))
)
def test_what_a_client_writes_itself_changes_nothing(forged: str, client: object, hops: list[str]) -> None:
    own = getattr(client, "ipv4_mapped", None) or client
    value = ", ".join([forged, str(client), *hops])
    assert read({"HTTP_X_FORWARDED_FOR": value}) == Claims(str(own))


@given(likely | texts, clients, st.sampled_from(["http", "https"]))
def test_what_a_client_writes_itself_is_never_taken_for_the_proxys(
    forged: str, client: object, scheme: str
) -> None:
    """It may make the field malformed, which is refused, but not move the proxy's own element."""
    own = getattr(client, "ipv4_mapped", None) or client
    claims = read(
        {
            "HTTP_FORWARDED": f'{forged}, for="[{client}]";proto={scheme}'
            if ":" in str(client)
            else f"{forged}, for={client};proto={scheme}"
        }
    )
    assert claims in (None, Claims(str(own), "", scheme))
