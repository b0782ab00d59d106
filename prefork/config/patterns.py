"""Patterns of files: ``*`` and ``?`` stand for anything within a name, ``**`` for folders, ``[…]`` for a character."""

from __future__ import annotations

import posixpath
import re

_WILD = re.compile(r"[*?\[]")
_PARTS = re.compile(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)
_MEANING = {"**/": r"(?:[^/]+/)*", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}


def folder_of(pattern: str) -> str:
    """Return the deepest folder that everything a pattern matches is in."""
    plain = _WILD.split(pattern, maxsplit=1)[0]
    return posixpath.dirname(plain) or "/"


def goes_deeper(pattern: str) -> bool:
    """Tell whether a pattern matches files in folders below its own."""
    rest = pattern[len(folder_of(pattern)) :].lstrip("/")
    return "/" in rest or "**" in rest


def expression(pattern: str) -> re.Pattern[str]:
    """Return what matches, as a whole, the paths that a pattern means."""
    return re.compile("".join(map(_translate, _PARTS.findall(pattern))), re.DOTALL)


def _translate(part: str) -> str:
    if part in _MEANING:
        return _MEANING[part]
    if len(part) == 1:
        return re.escape(part)
    inner = part[1:-1]  # a class of characters
    negated, inner = inner.startswith("!"), inner.removeprefix("!")
    safe = re.sub(r"([\\^\[\]&~|])", r"\\\1", inner)
    found = f"[^/{safe}]" if negated else f"[{safe}]"
    try:
        re.compile(found)
    except re.error:  # "[]", "[z-a]": no class, and so themselves
        return re.escape(part)
    return found
