"""One written value -> the typed value of its option, or what was expected instead."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from prefork.config.access import check_format
from prefork.config.application import parse_reference
from prefork.config.schema import (
    CLIENT_FIELDS,
    CPU_RANGES,
    MAX_CPU,
    MAX_LIMIT,
    MAX_PORT,
    NOTIFY,
    STARTED,
    STOP_SIGNALS,
    UNLIMITED,
    YEAR,
    Option,
    Readiness,
    Unit,
)
from prefork.units import (
    Address,
    Share,
    UnitError,
    format_duration,
    parse_address,
    parse_duration,
    parse_network,
    parse_share,
    parse_size,
    shown,
    write_size,
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_OCTAL = re.compile(r"(?:0o)?[0-7]{1,4}", re.ASCII)
_ACCOUNT = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?|[0-9]{1,9}", re.ASCII)
_ROOT_PATH = re.compile(r"(?:/[^/?#%\s\x00-\x1f\x7f]+)*")
_ACCOUNT_EXPECTED = "the name or the number of an account"


def convert(option: Option, value: Any, written: str, cpus: int) -> Any:
    """Return the typed value of an option.

    Args:
        option: which one; its unit is not one of the composite ones (listeners, variables, table).
        value: as TOML gives it.
        written: how a plain value is written, where that is known.
        cpus: what "auto" stands for.

    Raises UnitError.

    """
    if option.unit is Unit.WORKERS and value == "auto":
        return min(cpus, option.meta.le or cpus)
    if option.unit is Unit.MODE:
        return _in_range(option, value, _mode(option, value, written))
    parsed = _PARSERS[option.unit](option, value)
    return parsed if isinstance(parsed, Share | Address | Readiness) else _in_range(option, value, parsed)


def nearest(found: str, known: Iterable[str]) -> str | None:
    """Return the known name that a mistyped one most likely stands for."""
    matches = difflib.get_close_matches(found[:100].lower().replace("-", "_"), list(known), 1)
    return matches[0] if matches else None


def _in_range(option: Option, value: Any, parsed: Any) -> Any:
    try:
        return msgspec.convert(parsed, option.type)
    except msgspec.ValidationError as error:
        raise UnitError(_range(option), value) from error


def _range(option: Option) -> str:
    limits = option.meta
    if option.unit is Unit.DURATION:
        least = "above 0 and up" if limits.gt is not None else "from 0"
        return f"a duration {least} to {format_duration(limits.le or 0)}"
    if option.unit is Unit.SIZE:
        return f"a size from {write_size(int(limits.ge or 0))} to {write_size(int(limits.le or 0))}"
    if option.unit is Unit.MODE:
        return 'permissions from "0000" to "0777"'
    auto = ' or "auto"' if option.unit is Unit.WORKERS else ""
    return f"a whole number from {limits.ge} to {limits.le}{auto}"


def _count(option: Option, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    auto = ' or "auto"' if option.unit is Unit.WORKERS else ""
    whole = isinstance(value, str) and value.isdecimal() and len(value) <= 9
    better = int(value) if whole else option.sample()
    raise UnitError(f"a whole number{auto}", value, f"write {option.name} = {better}")


def _mode(option: Option, value: Any, written: str) -> int:
    """Return permission bits: text is octal, a number has to say that it is."""
    if isinstance(value, str) and _OCTAL.fullmatch(value):
        return int(value.removeprefix("0o"), 8)
    number = isinstance(value, int) and not isinstance(value, bool)
    if number and (value < 8 or written.startswith("0o")):
        return int(value)
    digits = _OCTAL.fullmatch(str(value)) if number and value < 10000 else None
    better = f'"{digits[0]:0>4}"' if digits else option.told("example")
    raise UnitError("octal permissions as text", value, f"write {option.name} = {better}")


def _share(option: Option, value: Any) -> Share:
    share = parse_share(value, int(option.meta.ge or 0))
    if option.meta.le is not None and share.number > option.meta.le:
        raise UnitError(f"{_range(option)}, or a share", value)
    return share


def _text(option: Option, value: Any) -> str:
    if isinstance(value, str) and value and "\0" not in value:
        return value
    raise UnitError("text", value, f"write {option.name} = {option.sample()}")


def _paths(option: Option, value: Any) -> tuple[str, ...]:
    return tuple(_text(option, path) for path in (value if isinstance(value, list) and value else [value]))


def _name(option: Option, value: Any) -> str:
    text = _text(option, value)
    if not _NAME.fullmatch(text):
        raise UnitError('at most 64 letters, digits, ".", "-" and "_"', value)
    return text


def _account(option: Option, value: Any) -> str:
    text = shown(value) if isinstance(value, int) and not isinstance(value, bool) else _text(option, value)
    if not _ACCOUNT.fullmatch(text):
        raise UnitError(_ACCOUNT_EXPECTED, value)
    return text


def _choice(option: Option, value: Any) -> str:
    known = option.choices()
    if isinstance(value, str) and value in known:
        return value
    near = nearest(value, known) if isinstance(value, str) else None
    quoted = ", ".join(shown(choice) for choice in known)
    raise UnitError(f"one of {quoted}", value, f'write {option.name} = "{near}"' if near else None)


def _flag(option: Option, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    known = {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false"}
    near = known.get(value.lower()) if isinstance(value, str) else None
    raise UnitError("true or false", value, f"write {option.name} = {near}" if near else None)


def _root_path(option: Option, value: Any) -> str:
    if isinstance(value, str) and _ROOT_PATH.fullmatch(value):
        return value
    text = value.strip("/") if isinstance(value, str) else ""
    better = f"/{text}"
    usable = bool(text) and _ROOT_PATH.fullmatch(better)
    hint = f"write {option.name} = {shown(better)}" if usable else None
    raise UnitError('"", or a path like "/shop", as people read it', value, hint)


def _networks(option: Option, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        better = [value] if isinstance(value, str) else ["127.0.0.1"]
        raise UnitError(
            "a list of addresses and networks", value, f"write {option.name} = {json.dumps(better)}"
        )
    return tuple(parse_network(_network(item)) for item in value)


def _fields(option: Option, value: Any) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(_field(item) for item in value)
    better = json.dumps([value] if isinstance(value, str) else CLIENT_FIELDS[:2])
    raise UnitError("a list of names of fields", value, f"write {option.name} = {better}")


def _field(name: str) -> str:
    """Return the name of a field that tells of clients, in small letters: fields' names have no case."""
    if name.lower() in CLIENT_FIELDS:
        return name.lower()
    near = difflib.get_close_matches(name[:100].lower().replace("_", "-"), CLIENT_FIELDS, 1)
    raise UnitError(f"one of {', '.join(CLIENT_FIELDS)}", name, f'write "{near[0]}"' if near else None)


def _cpus(option: Option, value: Any) -> tuple[int, ...]:
    """Return the numbers of CPUs, each once, in order: a list of them, or text with ranges as systemd has it."""
    if isinstance(value, str) and re.match(CPU_RANGES, value):
        found = _numbers(value)
    elif isinstance(value, list) and all(type(item) is int for item in value):
        found = value
    else:
        raise UnitError(
            'a list of CPUs, or text like "0-3,6"', value, f"write {option.name} = {option.sample()}"
        )
    if not found or not all(0 <= number <= MAX_CPU for number in found):
        raise UnitError(f"numbers of CPUs from 0 to {MAX_CPU}", value)
    return tuple(sorted(set(found)))


def _numbers(ranges: str) -> list[int]:
    """Return the numbers that text like ``0-3,6`` means; nothing if one of its ranges has none."""
    parts = [[int(end) for end in part.split("-")] for part in ranges.split(",")]
    found = [range(ends[0], ends[-1] + 1) for ends in parts]
    return [number for numbers in found for number in numbers] if all(found) else []


def _limit(option: Option, value: Any) -> int:
    if value == "unlimited":
        return UNLIMITED
    try:
        amount = parse_size(value) if option.unit is Unit.SIZE_LIMIT else _count(option, value)
    except UnitError as error:
        raise UnitError(f'{error.expected}, or "unlimited"', value, error.hint) from error
    if not 0 <= amount <= MAX_LIMIT:
        raise UnitError('a number from 0, or "unlimited"', value, f'write {option.name} = "unlimited"')
    return amount


def _patterns(option: Option, value: Any) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(_text(option, item) for item in value)
    better = f"[{shown(value)}]" if isinstance(value, str) else option.sample()
    raise UnitError("a list of patterns of files", value, f"write {option.name} = {better}")


def _network(item: Any) -> str:
    if not isinstance(item, str):
        raise UnitError("addresses and networks as text", item)
    return item


def _command(option: Option, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise UnitError("a list: a program and its arguments", value, _command_hint(option, value))
    if not isinstance(value, list) or not value or not all(isinstance(word, str) for word in value):
        raise UnitError(
            "a list of texts: a program and its arguments", value, f"write {option.name} = {option.sample()}"
        )
    if not value[0] or any("\0" in word for word in value):
        raise UnitError("a program and its arguments, without the character 0", value)
    return tuple(value)


def _command_hint(option: Option, text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError:  # quotes without an end
        words = []
    return f"write {option.name} = {json.dumps(words, ensure_ascii=False) if words else option.sample()}"


def _signal(option: Option, value: Any) -> str:
    name = value.upper().removeprefix("SIG") if isinstance(value, str) else ""
    if name in STOP_SIGNALS and value in (name, f"SIG{name}"):
        return name
    near = name if name in STOP_SIGNALS else None
    raise UnitError(
        f"one of {', '.join(STOP_SIGNALS)}", value, f'write {option.name} = "{near}"' if near else None
    )


def _readiness(option: Option, value: Any) -> Readiness:
    if value == STARTED:
        return Readiness()
    if value == NOTIFY:
        return Readiness(notify=True)
    match value:
        case {"seconds": seconds, **others} if not others:
            return Readiness(seconds=_seconds(seconds))
        case {"port": int(port), **others} if not others and 1 <= port <= MAX_PORT and port is not True:
            return Readiness(port=port)
    number = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_PORT
    hint = f"write {option.name} = {{ port = {value} }}" if number else None
    expected = f'"{STARTED}", "{NOTIFY}", {{ seconds = 3 }} or {{ port = 9000 }} (1 to {MAX_PORT})'
    raise UnitError(expected, value, hint)


def _seconds(value: Any) -> float:
    seconds = parse_duration(value)
    if not 0 < seconds <= YEAR:
        raise UnitError(f"a duration above 0 and up to {format_duration(YEAR)}", value)
    return seconds


def _pools(option: Option, value: Any) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(value)
    better = json.dumps([value]) if isinstance(value, str) else option.sample()
    raise UnitError("a list of pools' names", value, f"write {option.name} = {better}")


def _application(option: Option, value: Any) -> str:
    text = _text(option, value)
    try:
        reference = parse_reference(text)
    except ValueError as error:
        raise UnitError(str(error), value, _application_hint(option, text)) from error
    if reference.call is not None and option.name != "wsgi":
        hint = f"write {option.name} = {shown(f'{reference.module}:{reference.attribute}')}"
        raise UnitError('"module:attribute": only wsgi calls a factory', value, hint)
    return text


def _module(option: Option, value: Any) -> str:
    text = _text(option, value)
    if all(name.isidentifier() for name in text.split(".")):
        return text
    better = text.partition(":")[0].removesuffix(".py").strip("./").replace("/", ".")
    usable = all(name.isidentifier() for name in better.split("."))
    hint = f"write {option.name} = {shown(better) if usable else option.sample()}"
    raise UnitError('the dotted name of a module, as in "shop.hooks"', value, hint)


def _application_hint(option: Option, text: str) -> str:
    module, colon, attribute = text.partition(":")
    if "(" in attribute:  # a call, with arguments that are not literals or without its end
        attribute = (
            f"{attribute.partition('(')[0]}()" if option.name == "wsgi" else attribute.partition("(")[0]
        )
    if not colon and "/" not in text and "." in text.removesuffix(".py"):
        module, _, attribute = text.rpartition(".")
    names = module.removesuffix(".py").strip("./").replace("/", ".")
    better = f"{names}:{attribute or 'app'}"
    try:
        parse_reference(better)
    except ValueError:
        return f"write {option.name} = {option.sample()}"
    return f"write {option.name} = {shown(better)}"


_PARSERS: dict[Unit, Callable[[Option, Any], Any]] = {
    Unit.COUNT: _count,
    Unit.WORKERS: _count,
    Unit.DURATION: lambda _, value: parse_duration(value),
    Unit.SIZE: lambda _, value: parse_size(value),
    Unit.SHARE: _share,
    Unit.ADDRESS: lambda option, value: parse_address(_text(option, value)),
    Unit.PATH: _text,
    Unit.PATHS: _paths,
    Unit.NAME: _name,
    Unit.ACCOUNT: _account,
    Unit.CHOICE: _choice,
    Unit.APPLICATION: _application,
    Unit.COMMAND: _command,
    Unit.SIGNAL: _signal,
    Unit.MODULE: _module,
    Unit.PATTERNS: _patterns,
    Unit.FLAG: _flag,
    Unit.ROOT_PATH: _root_path,
    Unit.NETWORKS: _networks,
    Unit.FIELDS: _fields,
    Unit.CPUS: _cpus,
    Unit.LIMIT: _limit,
    Unit.SIZE_LIMIT: _limit,
    Unit.POOLS: _pools,
    Unit.READINESS: _readiness,
    Unit.FORMAT: lambda option, value: check_format(_text(option, value)),
}
