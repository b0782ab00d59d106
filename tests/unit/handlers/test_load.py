"""From a name to an object: attributes, factories, and what is wrong with either."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from prefork.errors import BootError
from prefork.handlers import patching
from prefork.handlers.load import load


class Shelf:
    def make(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return args, kwargs


def failing() -> None:
    raise LookupError("no settings")


def leaving() -> None:
    sys.exit(3)


def needy(config: str) -> str:
    return config


@pytest.fixture(autouse=True)
def shop(monkeypatch):
    module = types.ModuleType("shop")
    vars(module).update(
        shelf=Shelf(), create_app=lambda: "made", failing=failing, leaving=leaving, needy=needy
    )
    monkeypatch.setitem(sys.modules, "shop", module)
    return module


def test_an_attribute_may_be_dotted_and_a_factory_gets_literal_arguments(shop):
    assert load("shop:shelf") is shop.shelf
    assert load("shop:create_app()") == "made"
    expected = ((1, "a:b"), {"debug": True, "hosts": ["x"]})
    assert load("shop:shelf.make(1, 'a:b', debug=True, hosts=['x'])") == expected


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("shop:create_ap", "module 'shop' has no 'create_ap'", "did you mean create_app?"),
        ("shop:nothing()", "module 'shop' has no 'nothing'", "shop:nothing() was to be loaded"),
        (
            "shop:needy()",
            "the factory needy(config: 'str') -> 'str' cannot be called so: missing",
            "as literals",
        ),
        ("shop:create_app(1)", "cannot be called so: too many positional arguments", "as literals"),
        ("shop:shelf()", "expected a factory to call, found <", "leave the parentheses out"),
    ],
)
def test_what_is_not_there_or_cannot_be_called(name, message, hint):
    with pytest.raises(BootError) as caught:
        load(name)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert not caught.value.traceback


@pytest.mark.parametrize(
    ("name", "reason"), [("failing", "LookupError: no settings"), ("leaving", "SystemExit: 3")]
)
def test_a_factory_that_raises_is_told_with_its_own_traceback(name, reason):
    with pytest.raises(BootError) as caught:
        load(f"shop:{name}()")
    assert caught.value.message == reason
    assert f"in {name}" in caught.value.traceback
    assert "handlers/load.py" not in caught.value.traceback


def test_patching_is_told_by_the_name_of_who_does_it(monkeypatch):
    patching.check_unpatched()
    monkeypatch.delattr("select.epoll")
    with pytest.raises(BootError, match=r"by something that it imports: select.epoll is gone"):
        patching.check_unpatched()
    monkeypatch.setitem(sys.modules, "gevent.monkey", types.ModuleType("gevent.monkey"))
    with pytest.raises(BootError, match=r"has monkey patched the standard library, by gevent: "):
        patching.check_unpatched()
