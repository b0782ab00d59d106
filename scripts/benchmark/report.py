"""Figures for people: a table of text, and a chart as SVG. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from xml.sax.saxutils import escape

from .measure import Figures

# Medians by server, in the order in which they were measured; None for one that failed.
Medians = dict[str, Figures | None]
COLUMNS = ("requests/s", "CPU µs/request", "p99 ms", "memory MiB")


def median(rounds: Sequence[Figures]) -> Figures | None:
    """Return the median of each figure by itself; None of nothing."""
    if not rounds:
        return None
    return Figures(
        statistics.median(one.rate for one in rounds),
        statistics.median(one.cpu for one in rounds),
        statistics.median(one.p99 for one in rounds),
        statistics.median(one.memory for one in rounds),
    )


def table(title: str, medians: Medians) -> str:
    """Return the figures of one scenario, each with its ratio to the first server's."""
    base = next(iter(medians.values()))
    lines = [title, f"  {'':30}" + "".join(f"{column:>20}" for column in COLUMNS)]
    lines += [f"  {name:30}" + row(one, base) for name, one in medians.items()]
    return "\n".join(lines) + "\n"


def row(one: Figures | None, base: Figures | None) -> str:
    if one is None:
        return f"{'failed':>20}"
    base = base or one  # without the first server's figures the others' stand for themselves
    cells = (
        f"{one.rate:.0f} {one.rate / base.rate:6.2f}x",
        f"{one.cpu:.1f} {one.cpu / base.cpu:6.2f}x",
        f"{one.p99 / 1e3:.2f} {one.p99 / base.p99:6.2f}x",
        f"{one.memory / 2**20:.1f} {one.memory / base.memory:6.2f}x",
    )
    return "".join(f"{cell:>20}" for cell in cells)


# The chart: a panel per scenario, a bar per server, its length the CPU per request as a ratio to prefork's.

COLUMNS_OF_PANELS = 2
NAME_WIDTH, BAR_WIDTH, VALUE_WIDTH = 120, 210, 50
PANEL_WIDTH = NAME_WIDTH + BAR_WIDTH + VALUE_WIDTH
LINE, HEAD, GAP = 18, 30, 24
# What is longer is cut, and its figure says how long it is: else the best ones could not be told apart.
MOST = 4.0
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 } .value { fill: #59636e; stroke: #fff; stroke-width: 3px; paint-order: stroke }
.bar { fill: #9aa4b2 } .own { fill: #2f6feb } .one { stroke: #2f6feb; stroke-dasharray: 2 3 } .cut { fill: #fff }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .value { fill: #9198a1; stroke: #0d1117 } .bar { fill: #57606a } .cut { fill: #0d1117 }
}
"""


def chart(panels: Sequence[tuple[str, Medians]]) -> str:
    """Return an SVG of the CPU per request of all servers that did not fail; prefork's length is 1."""
    rows = [panels[at : at + COLUMNS_OF_PANELS] for at in range(0, len(panels), COLUMNS_OF_PANELS)]
    parts: list[str] = []
    top = HEAD
    for panels_of_row in rows:
        for number, (title, medians) in enumerate(panels_of_row):
            parts += panel(title, medians, number * (PANEL_WIDTH + GAP), top)
        top += HEAD + GAP + LINE * max(len(medians) for _, medians in panels_of_row)
    width = COLUMNS_OF_PANELS * (PANEL_WIDTH + GAP) - GAP
    caption = "CPU per request, all processes of a server; prefork = 1, shorter is better"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top - GAP}" width="{width}" role="img">\n'
        f"<title>{caption}</title>\n<style>{STYLE}</style>\n{text(0, 14, caption, 'value')}\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def panel(title: str, medians: Medians, left: int, top: int) -> list[str]:
    base = next(iter(medians.values()))
    if base is None:
        return []
    found = sorted((one.cpu / base.cpu, name) for name, one in medians.items() if one is not None)
    parts = [text(left, top + LINE, title, "title")]
    for number, (value, name) in enumerate(found):
        parts += bar(name, value, left, top + HEAD + LINE * number)
    at = left + NAME_WIDTH + BAR_WIDTH / MOST
    bottom = top + HEAD + LINE * len(found)
    return [*parts, f'<line class="one" x1="{at}" x2="{at}" y1="{top + HEAD - 2}" y2="{bottom}"/>']


def bar(name: str, value: float, left: int, top: int) -> list[str]:
    start = left + NAME_WIDTH
    width = min(value, MOST) / MOST * BAR_WIDTH
    behind = max(width, BAR_WIDTH / MOST)  # not across the line that stands for prefork
    kind = "own" if name.startswith("prefork") else "bar"
    parts = [
        text(start - 6, top + 12, name, "name", "end"),
        f'<rect class="{kind}" x="{start}" y="{top + 2}" width="{width:.1f}" height="{LINE - 5}" rx="2"/>',
        text(start + behind + 5, top + 12, f"{value:.2f}" if value < 10 else f"{value:.0f}", "value"),
    ]
    if value > MOST:
        at = start + BAR_WIDTH * 0.9
        parts.append(f'<path class="cut" d="M{at} {top + LINE - 2}l6 -{LINE - 2}h4l-6 {LINE - 2}z"/>')
    return parts


def text(left: float, top: float, content: str, kind: str, anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" x="{left:.1f}" y="{top:.1f}" text-anchor="{anchor}">{escape(content)}</text>'
    )
