"""What ``module:attribute`` and ``module:factory(arguments)`` mean, and what they look like when they are wrong."""

from __future__ import annotations

import ast
from typing import Any, NamedTuple


class Call(NamedTuple):
    """The arguments that a factory is called with."""

    positional: tuple[Any, ...]
    named: dict[str, Any]


class Reference(NamedTuple):
    """The object that a text names: a module, an attribute of it, which may be dotted, and how it is called, if it is."""

    module: str
    attribute: str
    call: Call | None = None


def parse_reference(text: str) -> Reference:
    """Return what a text refers to.

    A call may have literal arguments, as gunicorn and Flask allow them: ``shop.web:create_app("production", debug=False)``.

    Raises ValueError that says what was expected.
    """
    module, _, attribute = text.partition(":")
    if not _is_dotted(module):
        raise ValueError('"module:attribute"')
    if _is_dotted(attribute):
        return Reference(module, attribute)
    return _parse_call(module, attribute)


def _parse_call(module: str, text: str) -> Reference:
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        node = None
    if not isinstance(node, ast.Call):
        raise ValueError('"module:attribute"')  # noqa: TRY004 - it is a text of the wrong form
    factory = ast.unparse(node.func)
    if not _is_dotted(factory):
        raise ValueError('"module:factory()"')
    try:
        positional = tuple(ast.literal_eval(argument) for argument in node.args)
        named = {
            str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg
        }
    except (ValueError, TypeError, MemoryError, RecursionError):
        raise ValueError("literals as a factory's arguments") from None
    if len(named) != len(node.keywords):  # **more
        raise ValueError("literals as a factory's arguments")
    return Reference(module, factory, Call(positional, named))


def _is_dotted(text: str) -> bool:
    return all(name.isidentifier() for name in text.split("."))
