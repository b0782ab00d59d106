"""A WSGI application that searches its own process's memory for a text, which it is given backwards."""

import ctypes
import os


def app(environ, start_response):
    """Answer with the user, and how often the text is found in what this process may read."""
    wanted = environ["QUERY_STRING"].encode()[::-1]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getuid()} {count(wanted) if wanted else 0}".encode()]


def count(wanted):
    """Count a text in the memory that is this process's own; copies that the search itself makes are one byte short."""
    head, last = wanted[:-1], wanted[-1:]
    found = 0
    for begin, end in regions():
        data = ctypes.string_at(begin, end - begin)
        at = data.find(head)
        while at >= 0:
            found += data[at + len(head) : at + len(wanted)] == last
            at = data.find(head, at + 1)
        del data
    return max(0, found - 1)  # ``wanted`` itself


def regions():
    """Yield what is readable, writable and private of this process's memory, below a size that is quickly searched."""
    with open("/proc/self/maps") as maps:
        lines = maps.read().splitlines()
    for line in lines:
        place, rights = line.split()[:2]
        begin, end = (int(number, 16) for number in place.split("-"))
        if rights.startswith("rw-p") and end - begin <= 2**26:
            yield begin, end
