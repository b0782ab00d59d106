"""WSGI applications for the tests."""

import os
import time


def app(environ, start_response):
    """Say who answers; a POST's body is read and counted."""
    size = len(environ["wsgi.input"].read())
    body = f"{os.getpid()} {size}".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def routes(environ, start_response):
    """Do what the path says: /sleep/2.5, /spin, /exit/3, /pid …"""
    _, verb, *arguments = environ["PATH_INFO"].split("/")
    if verb == "sleep":
        time.sleep(float(arguments[0]))
    elif verb == "spin":
        spin_for_ever()
    elif verb == "regex":
        hold_the_interpreter()
    elif verb == "die":
        os._exit(int(arguments[0]))
    elif verb == "fork":
        os.fork()  # and both go on as if nothing had happened
    elif verb == "raise":
        raise RuntimeError("the application's own mistake")
    return app(environ, start_response)


def spin_for_ever():
    while True:
        pass


def hold_the_interpreter():
    import re

    re.match(r"(a+)+$", "a" * 60 + "b")  # never ends, and never lets another thread run
