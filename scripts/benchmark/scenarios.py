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

# What real sites see: nobody has sent the same before. Of twelve fields seven differ in each request (eight, if the end
# of the connection is asked for), and so do path and query. wrk prepares the requests before it begins, and sends one
# after the other; more of them than any table of a server should keep.
DIFFERENT = 20_000
PREPARE = """
local function hex(size)
  local digits = {{}}
  for at = 1, size do digits[at] = string.format("%x", math.random(0, 15)) end
  return table.concat(digits)
end

local prepared, last = {{}}, 0

function init()
  math.randomseed(1)
  for number = 1, {count} do
    prepared[number] = table.concat({{
      string.format("GET {path}/%d/%s?page=%d&q=%s HTTP/1.1", number, hex(8), number % 17, hex(12)),
      "Host: shop.example.org",
{headers}
      string.format("Referer: https://shop.example.org{path}/%s", hex(12)),
      string.format("Cookie: session=%s; seen=%d", hex(32), number),
      string.format("X-Forwarded-For: %d.%d.%d.%d", number % 80 + 11, number % 251, number % 241, number % 239),
      "X-Request-ID: " .. hex(32),
      string.format("Traceparent: 00-%s-%s-01", hex(32), hex(16)),
      string.format('If-None-Match: "%s"', hex(16)),
      "X-Session-Time: " .. number * 37,
      "", "",
    }}, "\\r\\n")
  end
end

function request()
  last = last % #prepared + 1
  return prepared[last]
end
"""


@dataclass(frozen=True)
class Scenario:
    """What is asked, again and again.

    Attributes:
        title: what people call it.
        path: of the application.
        size: of the answer's body in bytes, which is checked before anything is measured.
        headers: beside Host and Content-Length.
        form: bytes that are posted; 0 for GET.
        is_varied: whether no two requests are alike.
        connections: that ask at once.
        idle: connections that have asked once and are held beside them.
        is_drawn: whether the chart shows it.

    """

    title: str
    path: str = "/hello"
    size: int = len(BODY)
    headers: tuple[str, ...] = ()
    form: int = 0
    is_varied: bool = False
    connections: int = 64
    idle: int = 0
    is_drawn: bool = field(default=True, compare=False)

    def options(self) -> list[str]:
        """Return what wrk is told on its command line, without the URL."""
        return [f"-c{self.connections}", *(word for line in self.headers for word in ("-H", line))]

    def script(self) -> str:
        """Return what wrk is told in Lua; empty if nothing."""
        if self.is_varied:
            headers = "\n".join(f"      [[{line}]]," for line in self.headers)
            return PREPARE.format(count=DIFFERENT, path=self.path, headers=headers)
        return f'wrk.method = "POST"\nwrk.body = string.rep("x", {self.form})\n' if self.form else ""


ACCEPT = ("Accept: */*",)
BROWSED = Scenario("hello, twelve headers", headers=BROWSER)
VARIED = Scenario("no two alike, twelve headers", headers=BROWSER[:4], is_varied=True)
HTTP = (
    VARIED,
    Scenario("hello, two headers", headers=ACCEPT),
    BROWSED,
    Scenario("one connection per request", headers=("Connection: close",)),
    Scenario(
        "no two alike, one connection per request",
        headers=(*BROWSER[:4], "Connection: close"),
        is_varied=True,
    ),
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
