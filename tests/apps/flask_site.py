"""A Flask application: a form, a session, an upload, downloads, a static file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from flask import Flask, Response, request, send_file, session

app = Flask(__name__)
app.secret_key = "only for tests"
PIECE = bytes(range(256)) * 64


@app.get("/")
def page() -> str:
    return '<form method="post" action="/greet"><input name="name"></form>'


@app.post("/greet")
def greet() -> str:
    session["visits"] = session.get("visits", 0) + 1
    return f"hello {request.form['name']}, visit {session['visits']}"


@app.post("/upload")
def upload() -> str:
    received = request.files["file"]
    return f"{received.filename} {hashlib.sha256(received.read()).hexdigest()}"


@app.get("/streamed/<int:pieces>")
def streamed(pieces: int) -> Response:
    def produce() -> Iterator[bytes]:
        for _ in range(pieces):
            yield PIECE

    return Response(produce(), mimetype="application/octet-stream")


@app.get("/file")
def file() -> Response:
    return send_file(request.args["path"], as_attachment=True)


@app.get("/whoami")
def whoami() -> str:
    return f"{request.remote_addr} {request.scheme} {request.host}"
