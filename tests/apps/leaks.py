"""A WSGI application that keeps what it takes: 4 MiB for each request to /leak."""

import os

KEPT = []


def app(environ, start_response):
    """Answer with the pid."""
    if environ["PATH_INFO"] == "/leak":
        KEPT.append(b"x" * 2**22)
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
