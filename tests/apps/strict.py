"""Applications that tell what reached them."""

import json
import os
import time

ASKED = []
SHOWN = (
    "REMOTE_ADDR",
    "REMOTE_PORT",
    "wsgi.url_scheme",
    "HTTP_HOST",
    "SCRIPT_NAME",
    "PATH_INFO",
    "SERVER_NAME",
    "SERVER_PORT",
)


def app(environ, start_response):
    """Keep what was asked for; /asked tells it, /wait waits for the file "go", /show tells who the client is."""
    path = environ["PATH_INFO"]
    environ["wsgi.input"].read()
    if path == "/asked":
        content = list(ASKED)
    else:
        ASKED.append(path)
        content = {key: environ.get(key) for key in SHOWN}
    while path == "/wait" and not os.path.exists("go"):
        time.sleep(0.01)
    body = json.dumps(content).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def tell_address(sock, address):
    """Say who the client is, and send back its first bytes."""
    sock.sendall(json.dumps([list(address), sock.recv(100).decode()]).encode())
