"""A program of its own, as any language may have it: serves a folder's files on the listener that prefork hands to it.

It imports nothing of prefork: descriptor 3 is the first listener (sd_listen_fds(3)), and SIGTERM means: finish and leave.
"""

from __future__ import annotations

import signal
import socket
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer


def main() -> None:
    """Serve until SIGTERM, and then finish what is in flight."""
    listener = socket.socket(fileno=3)
    server = ThreadingHTTPServer(
        listener.getsockname()[:2], SimpleHTTPRequestHandler, bind_and_activate=False
    )
    server.socket = listener
    server.daemon_threads = False  # they are waited for at the end
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()
    server.server_close()


if __name__ == "__main__":
    main()
