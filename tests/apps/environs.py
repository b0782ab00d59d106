"""A WSGI application that tells what its environ says."""

import os


def app(environ, start_response):
    """Answer with the value that the path names; /echo with the body, /pid and /uid with those."""
    name = environ["PATH_INFO"][1:]
    sent = environ["wsgi.input"].read()
    found = {"echo": sent, "pid": str(os.getpid()).encode(), "uid": str(os.getuid()).encode()}
    body = found[name] if name in found else str(environ.get(name, "")).encode("latin-1")
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
