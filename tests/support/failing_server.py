"""Something with the routes of a vLLM server that fails: a script, `failing_server.py PLAN`; prints its two ports.

`dies`: it ends without a word when the fourth weight reaches its peer socket. `refuses`: every request that would load
weights is answered with 400. Each connection is counted, and `/connections` tells the number.
"""

import os
import signal
import socket
import sys
import threading
from http.server import ThreadingHTTPServer
from typing import Any

from json_handler import JsonHandler

NUM_TAKEN = 3


class Handler(JsonHandler):
    """Answers everything with JSON."""

    plan = ""
    num_connections = 0
    lock = threading.Lock()

    def setup(self) -> None:
        """Count."""
        super().setup()
        with self.lock:
            Handler.num_connections += 1

    def do_GET(self) -> None:
        """Health, number of workers, number of connections."""
        answers: dict[str, Any] = {"get_world_size": {"world_size": 1}, "connections": {"number": self.num_connections}}
        self.answer(200, answers.get(self.path.strip("/"), {}))

    def do_POST(self) -> None:
        """Refuse weights, or go along."""
        self.rfile.read(int(self.headers["Content-Length"]))
        status = (
            400 if self.plan == "refuses" and self.path == "/collective_rpc" else 500 if "broken" in self.path else 200
        )
        self.answer(status, {"success": True})
        if self.path == "/hang_up":  # as servers do with connections that were idle for some seconds
            self.close_connection = True


def _take(listener: socket.socket) -> None:
    peer, _ = listener.accept()
    num_taken = 0
    while peer.recv(1):
        if Handler.plan == "dies" and num_taken == NUM_TAKEN:
            os.kill(os.getpid(), signal.SIGKILL)
        peer.sendall(b"k")
        num_taken += 1


def main(plan: str) -> None:
    """Serve until killed."""
    Handler.plan = plan
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_take, args=(listener,), daemon=True).start()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], listener.getsockname()[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
