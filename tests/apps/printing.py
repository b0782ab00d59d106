"""Applications that print, and that change what printing is."""

import logging.config
import os
import sys
import time

print("imported")
if os.environ.get("FAILS"):
    sys.stdout.write("connecting to the database")
    raise RuntimeError("no database")


def app(environ, start_response):
    """Print a line, and do what the path says: /hang, /fail …"""
    path = environ["PATH_INFO"]
    print("line of", path)
    if path == "/hang":
        time.sleep(600)
    if path == "/part":
        sys.stdout.write("without an end")
    if path == "/fail":
        raise RuntimeError("on purpose")
    body = f"{time.localtime(0).tm_hour} {time.tzname[0]} {os.readlink('/proc/self/fd/0')}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def configured_app(environ, start_response):
    """Configure logging as applications do, with the defaults, then fail."""
    logging.config.dictConfig({"version": 1, "root": {"level": "ERROR"}})
    logging.disable(logging.CRITICAL)
    raise RuntimeError("kaboom")


class ToLog:
    """What many have found and put in the place of sys.stdout."""

    def write(self, text):
        """Take text and do nothing with it."""


def replaced_app(environ, start_response):
    """Replace the standard streams."""
    sys.stdout = sys.stderr = ToLog()
    print("nobody sees this")
    start_response("200 OK", [("Content-Length", "0")])
    return []
