"""What the servers are asked, and how wrk asks it."""

from __future__ import annotations

from dataclasses import dataclass, field

from .bench_app import BODY, FILE_SIZE, LARGE, PIECE, PIECES

FORM = 16 * 1024
# What a browser sends with the request for a page; with Host they are twelve.
BROWSER = (
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Language: en-US,en;q=0.5",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Connection: keep-alive",
    "Cookie: session=0123456789abcdef0123456789abcdef; theme=dark",
    "Upgrade-Insecure-Requests: 1",
    "Sec-Fetch-Dest: document",
    "Sec-Fetch-Mode: navigate",
    "Sec-Fetch-Site: none",
    "Priority: u=0, i",
)


@dataclass(frozen=True)
class Scenario:
    """What is asked, again and again.

    Attributes:
        title: what people call it.
        path: of the application.
        size: of the answer's body in bytes, which is checked before anything is measured.
        headers: beside Host and Content-Length.
        form: bytes that are posted; 0 for GET.
        connections: that ask at once.
        idle: connections that have asked once and are held beside them.
        is_drawn: whether the chart shows it.

    """

    title: str
    path: str = "/hello"
    size: int = len(BODY)
    headers: tuple[str, ...] = ()
    form: int = 0
    connections: int = 64
    idle: int = 0
    is_drawn: bool = field(default=True, compare=False)

    def options(self) -> list[str]:
        """Return what wrk is told on its command line, without the URL."""
        return [f"-c{self.connections}", *(word for line in self.headers for word in ("-H", line))]

    def script(self) -> str:
        """Return what wrk is told in Lua; empty if nothing."""
        return f'wrk.method = "POST"\nwrk.body = string.rep("x", {self.form})\n' if self.form else ""


ACCEPT = ("Accept: */*",)
BROWSED = Scenario("hello, twelve headers", headers=BROWSER)
HTTP = (
    Scenario("hello, two headers", headers=ACCEPT),
    BROWSED,
    Scenario("one connection per request", headers=("Connection: close",)),
    Scenario("16 KiB POST echoed", "/echo", FORM, ACCEPT, FORM),
    Scenario("100 KiB answer", "/large", len(LARGE), ACCEPT),
    Scenario("streamed answer, 16 x 4 KiB", "/stream", PIECES * len(PIECE), ACCEPT),
    Scenario("file of 1 MiB", "/file", FILE_SIZE, ACCEPT),
    Scenario("hello, twelve headers, 1,000 connections", headers=BROWSER, connections=1000),
    Scenario(
        "hello, twelve headers, beside 1,000 idle connections", headers=BROWSER, idle=1000, is_drawn=False
    ),
)
TLS = (Scenario("hello, twelve headers, TLS", headers=BROWSER),)
SOCKETS = (
    Scenario("socket handler, one connection per request", headers=("Connection: close",), is_drawn=False),
)
