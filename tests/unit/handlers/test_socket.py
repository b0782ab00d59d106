"""What is a socket handler, and of which kind."""

from __future__ import annotations

import socketserver
from functools import partial
from typing import Any

import pytest

from prefork.errors import BootError
from prefork.handlers.socket import adapt, is_async


def plain(sock: Any, address: Any) -> None: ...


async def streams(reader: Any, writer: Any) -> None: ...


class Plain:
    def __call__(self, sock: Any, address: Any) -> None: ...


class Streams:
    async def __call__(self, reader: Any, writer: Any) -> None: ...

    async def method(self, reader: Any, writer: Any) -> None: ...


def one(sock: Any) -> None: ...


async def three(what: Any, reader: Any, writer: Any) -> None: ...


@pytest.mark.parametrize("target", [streams, Streams(), Streams().method, partial(three, 1)])
def test_whatever_gives_a_coroutine_is_asynchronous(target):
    assert is_async(adapt(target))


@pytest.mark.parametrize(
    "target", [plain, Plain(), partial(plain), socketserver.StreamRequestHandler, lambda *_: None]
)
def test_whatever_does_not_is_plain(target):
    assert not is_async(adapt(target))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (three, r"expected async def handle\(reader, writer\), found async def three\(what"),
        (one, r"expected def handle\(sock, address\), found def one\(sock"),
        (42, r"expected def handle\(sock, address\), found 42"),
    ],
)
def test_what_cannot_be_called_so_is_refused(target, message):
    with pytest.raises(BootError, match=message):
        adapt(target)
