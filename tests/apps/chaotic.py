"""An application and a task that answer for as long as chaos lasts."""

from __future__ import annotations

import time


def app(environ, start_response):
    environ["wsgi.input"].read()
    time.sleep(0.002)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]


def run(worker):
    worker.stopping.wait()
