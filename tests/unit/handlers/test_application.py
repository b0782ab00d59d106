"""What is a WSGI application, and with which words the rest is refused."""

from __future__ import annotations

import functools
import types
from typing import Any, Self

import pytest
from werkzeug.wrappers import Request, Response

from prefork.errors import BootError
from prefork.handlers.application import adapt


def plain(environ: Any, start_response: Any) -> list[bytes]:
    return []


def decorated_carelessly(*args: Any, **kwargs: Any) -> Any: ...


def with_more(environ: Any, start_response: Any, exc: Any = None) -> Any: ...


def with_defaults(environ: Any = None, start_response: Any = None) -> Any: ...


@Request.application
def of_werkzeug(request: Any) -> Response:
    return Response()


class Application:
    def __call__(self, environ: Any, start_response: Any) -> Any: ...

    def method(self, environ: Any, start_response: Any) -> Any: ...

    @staticmethod
    def static(environ: Any, start_response: Any) -> Any: ...

    async def coroutine(self, environ: Any, start_response: Any) -> None: ...


class Answer:
    """An application by itself, as PEP 3333 shows it: an instance is one request's answer."""

    def __init__(self, environ: Any, start_response: Any) -> None: ...

    def __iter__(self) -> Any: ...


class Made:
    """Its instances are what its __new__ likes."""

    def __new__(cls, environ: Any, start_response: Any) -> Any: ...


class Bounded:
    """A callable that tells nothing about its parameters, as one written in C."""

    __signature__ = "nothing"

    def __call__(self, *args: Any) -> Any: ...


def test_what_can_be_called_goes_on():
    partial = functools.partial(with_more, exc=None)
    for target in (
        *(plain, decorated_carelessly, with_more, with_defaults, of_werkzeug, lambda *_: []),
        *(Application(), Application().method, Application.static, Answer, Made, Bounded(), dict, map),
        *(partial, functools.partial(partial), functools.partial(Application())),
    ):
        assert adapt(target, "shop.web:app") is target


def test_what_frameworks_make_goes_on():
    flask = pytest.importorskip("flask")
    django = pytest.importorskip("django.core.handlers.wsgi")
    application = flask.Flask("shop")
    handler = django.WSGIHandler.__new__(django.WSGIHandler)
    for target in (application, application.wsgi_app, handler):
        assert adapt(target, "shop.web:app") is target


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...


async def generator(environ: Any, start_response: Any) -> Any:
    yield b""


def asgi_without_async(scope: Any, receive: Any, send: Any) -> Any: ...


class Asgi:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class Itself:
    """aiohttp's application returns itself when it is called."""

    def __call__(self) -> Self:
        return self


def create_app(config: Any = None, debug: bool = False) -> Any: ...


def make(settings: Any, *, debug: bool) -> Any: ...


def factory() -> Any: ...


class Site:
    def __init__(self, name: Any = "", folder: Any = "") -> None: ...

    def __call__(self, environ: Any, start_response: Any) -> Any: ...


class Needy(Site):
    def __init__(self, one: Any, two: Any, three: Any) -> None: ...


@pytest.mark.parametrize(
    ("target", "found", "hint"),
    [
        (asgi, "an asynchronous one (ASGI): async def asgi(scope", '["uvicorn", "--fd", "3", "shop:app"]'),
        (functools.partial(asgi, {}), "an asynchronous one (ASGI)", "no pools with asgi yet"),
        (generator, "an asynchronous one (ASGI)", "no pools with asgi yet"),
        (Asgi(), "an asynchronous one (ASGI): an object of class Asgi", "no pools with asgi yet"),
        (functools.partial(Asgi()), "an asynchronous one (ASGI)", "no pools with asgi yet"),
        (Asgi, "an asynchronous one (ASGI): the class Asgi()", "no pools with asgi yet"),
        (Application().coroutine, "an asynchronous one (ASGI)", "no pools with asgi yet"),
        (asgi_without_async, "def asgi_without_async(scope", "no pools with asgi yet"),
        (factory, "def factory()", 'if it makes the application, write wsgi = "shop:app()"'),
        (create_app, "which looks like a factory", 'if it makes the application, write wsgi = "shop:app()"'),
        (make, "def make(settings", 'write wsgi = "shop:app(settings=…, debug=…)", with literal arguments'),
        (Itself(), "an object of class Itself, called with ()", 'write wsgi = "shop:app()"'),
        (Site, "the class Site(name", 'wsgi = "shop:app()" makes one'),
        (Needy, "the class Needy(one", "name an instance: app = Needy(…)"),
        (42, "found 42", None),
        (types, "found <module 'types'", 'write wsgi = "types:app"'),
    ],
)
def test_what_cannot_be_called_is_refused_with_what_to_write(target, found, hint):
    with pytest.raises(BootError) as caught:
        adapt(target, "shop:app")
    assert "expected a WSGI application, called with (environ, start_response)" in caught.value.message
    assert found in caught.value.message
    assert hint in caught.value.hint if hint else caught.value.hint is None


@pytest.mark.parametrize("made", [factory, "text", None])
def test_what_a_factory_returns_is_looked_at_as_well(made):
    with pytest.raises(BootError) as caught:
        adapt(made, "shop:create_app()")
    assert caught.value.hint == "what the factory returns has to be the application"


def test_a_factory_that_is_asynchronous_is_told_without_a_warning_of_python():
    async def create_app() -> Any: ...

    with pytest.raises(BootError) as caught:
        adapt(create_app(), "shop:create_app()")
    assert caught.value.hint is not None
    assert "the factory is asynchronous" in caught.value.hint
