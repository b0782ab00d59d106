"""A WSGI application that says hello, and by whom it was answered."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import prefork

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer every request with a line of text."""
    worker = prefork.current()
    text = f"Hello from {worker.pool}/{worker.slot}, generation {worker.generation}, pid {os.getpid()}.\n"
    body = text.encode()
    start_response(
        "200 OK", [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    )
    return [body]
