"""`best --serve`: a page in the browser, from the standard library.

What is asked is sampled in the main thread, one request at a time; threads of the server only read requests and pass on
what happens. A reply is a stream of JSON lines; whoever stops reading it ends the sampling.
"""

import json
import logging
import select
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from queue import Empty
from typing import Any

from rich.console import Console

from maxk_lightning import evaluation
from maxk_lightning.commands.best.address import Address
from maxk_lightning.commands.best.answers import Search, Searcher
from maxk_lightning.commands.best.jobs import FullError, Job, Jobs, answer_jobs
from maxk_lightning.rewards import UnitTestReward

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
MAX_BODY_BYTES = 64 << 10
MAX_CONNECTIONS = 32
"Open at the same time, those that wait for an answer included; further ones are closed at once."
REQUEST_S = 10.0
"Time for a request to arrive."
LOOK_S = 0.5
"How often is looked whether somebody still reads."
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"Of every reply. A candidate that smuggled in code could neither run it nor load or send anything."


def serve(search: Search, address: Address) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        ValueError: a setting is wrong, or the address cannot be had.
    """
    with Searcher(search) as searcher, listening(searcher, address) as server:
        console = Console()
        console.print(f"open http://{server.address}  (Ctrl-C ends it)", soft_wrap=True, highlight=False)
        if not ip_address(str(server.server_address[0])).is_loopback:
            console.print("everybody who reaches this address can sample", soft_wrap=True)
        with suppress(KeyboardInterrupt):
            answer_jobs(searcher, server.jobs)
        console.print("ended")


@contextmanager
def listening(searcher: Searcher, address: Address) -> "Iterator[Server]":
    """Take requests in other threads; `server.jobs` collects what they ask for."""
    try:
        server = Server(searcher, address)
    except OSError as error:
        raise ValueError(f"--serve: {address}: {error.strerror}") from error
    thread = threading.Thread(target=server.serve_forever, name="page", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Server(ThreadingHTTPServer):
    """Accepts a bounded number of connections, and closes those that are slow to say what they want."""

    daemon_threads = True
    block_on_close = False  # a reply that is under way ends with the process
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, searcher: Searcher, address: Address) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be had.
        """
        self.search = searcher.search
        self.has_tests = isinstance(searcher.settings.reward, UnitTestReward)
        self.jobs = Jobs()
        self.deadlines: dict[socket.socket, float] = {}
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        super().__init__((address.host, address.port), Handler)
        self.address = Address(address.host, self.server_address[1])

    def server_bind(self) -> None:
        """Bind without asking a name server for the name of this machine."""
        socketserver.TCPServer.server_bind(self)

    def service_actions(self) -> None:
        """Cut off whoever has had time enough for a request; called twice a second."""
        now = time.monotonic()
        for connection, deadline in list(self.deadlines.items()):
            if now > deadline:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, if there is a place."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, and give its place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is nobody's fault; anything else is ours."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = REQUEST_S
    server_version, sys_version = "maxk-lightning", ""

    def setup(self) -> None:
        """Start the clock."""
        super().setup()
        self.server.deadlines[self.connection] = time.monotonic() + REQUEST_S

    def finish(self) -> None:
        """Stop the clock."""
        self.server.deadlines.pop(self.connection, None)
        super().finish()

    def do_GET(self) -> None:
        """Send a file of the page, or the settings."""
        if not self._is_meant():
            return
        path = self.path.partition("?")[0]
        if path == "/settings":
            search = self.server.search
            settings = {"policy": search.policy, "select": search.select, "num_samples": search.num_samples}
            settings["has_tests"] = self.server.has_tests
            self._send(HTTPStatus.OK, "application/json", json.dumps(settings).encode())
        elif path in FILES:
            kind, parts = FILES[path]
            self._send(HTTPStatus.OK, kind, b"".join(part.read_bytes() for part in parts))
        else:
            self.send_error(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        """Sample."""
        if not self._is_meant():
            return
        if self.path != "/search":
            self.send_error(HTTPStatus.NOT_FOUND, "there is no such page")
            return
        body = self._body()
        if body is None:
            return
        try:
            job = Job.parse(body, self.server.search.num_samples, has_tests=self.server.has_tests)
            self.server.jobs.add(job)
        except ValueError as error:
            self.send_error(HTTPStatus.BAD_REQUEST, str(error))
        except FullError:
            self.send_error(HTTPStatus.TOO_MANY_REQUESTS, "too many requests are waiting; try again later")
        else:
            try:
                self._pass_on(job)
            finally:
                job.is_given_up.set()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send an error as JSON: `{"error": ...}`."""
        error = message or HTTPStatus(code).phrase
        log.info("refused (%d): %r", code, error)
        self._send(code, "application/json", json.dumps({"error": error}).encode())
        self._drain()

    def log_message(self, format: str, *args: Any) -> None:
        """Log requests for those who want to know."""
        log.debug("%r", format % args)

    def _is_meant(self) -> bool:
        """Whether the request comes from this page or from no page; else it is refused."""
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        if not self.server.address.is_meant(host, self.connection.getsockname()[0]):
            self.send_error(HTTPStatus.FORBIDDEN, f"Host is {host!r:.80}, must be {self.server.address}")
        elif origin is not None and origin.lower() != f"http://{host}".lower():
            self.send_error(HTTPStatus.FORBIDDEN, f"Origin is {origin!r:.80}, must be http://{host}")
        else:
            return True
        return False

    def _body(self) -> bytes | None:
        """The body of the request; None: it was refused."""
        length = self.headers.get("Content-Length")
        if "Transfer-Encoding" in self.headers or length is None:
            self.send_error(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
        elif not (length.isascii() and length.isdigit()):
            self.send_error(HTTPStatus.BAD_REQUEST, f"Content-Length is {length!r:.40}, must be a number of bytes")
        elif len(length) > 18 or int(length) > MAX_BODY_BYTES:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body may have {MAX_BODY_BYTES} bytes")
        elif self.headers.get_content_type() != "application/json":  # else a foreign page's form could send it
            self.send_error(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json")
        else:
            body = self.rfile.read(int(length))
            if len(body) == int(length):
                return body
            self.send_error(HTTPStatus.BAD_REQUEST, "the body is shorter than Content-Length")
        return None

    def _pass_on(self, job: Job) -> None:
        """Send what happens, line by line, while somebody reads it."""
        self.server.deadlines.pop(self.connection, None)
        self._send_head(HTTPStatus.OK, "application/x-ndjson")
        while not self._is_gone():
            try:
                event = job.events.get(timeout=LOOK_S)
            except Empty:
                continue
            if event is None:
                return
            self.wfile.write(json.dumps(event, allow_nan=False).encode() + b"\n")

    def _is_gone(self) -> bool:
        """Whether the other side has closed."""
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        return bool(poll.poll(0)) and not self.connection.recv(1, socket.MSG_PEEK)

    def _send(self, code: int, kind: str, content: bytes) -> None:
        self._send_head(code, kind, len(content))
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_head(self, code: int, kind: str, length: int | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if code == HTTPStatus.TOO_MANY_REQUESTS:
            self.send_header("Retry-After", "10")
        self.end_headers()

    def _drain(self) -> None:
        """Read what is left of a refused request, within its time: closed before, it would lose the reply."""
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            left = 16 * MAX_BODY_BYTES
            while left > 0 and (read := self.rfile.read1(MAX_BODY_BYTES)):
                left -= len(read)


FILES = {
    "/": ("text/html", [HERE / "page.html"]),
    "/page.css": ("text/css", [Path(evaluation.__file__).parent / "report.css", HERE / "page.css"]),
    "/page.js": ("text/javascript", [HERE / "page.js"]),
}
"Path -> type and files of the page."
