"""Requests to a vLLM server over connections that are kept open: one per completion would use up the ports."""

import http.client
import json
import queue
import socket
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from maxk_lightning.rollouts.engine import EngineError

CLOSED = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError)
"How a connection fails that the server has closed after some idle seconds."
HEALTH_TIMEOUT_S = 10.0


class Server:
    """One server, asked by any number of threads; each request takes an open connection that no other one uses."""

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"rollout.engine.url is {url}, must look like http://10.0.0.2:8000")
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._parts = parts
        self._idle: queue.LifoQueue[http.client.HTTPConnection] = queue.LifoQueue()
        self._busy: dict[http.client.HTTPConnection, str] = {}  # and the path that it was asked for

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a request with a JSON body.

        Raises:
            ValueError: the request is wrong.
            EngineError: the server does not answer, or fails.
        """
        return self._ask("POST", path, json.dumps(body).encode())

    def get(self, path: str) -> dict[str, Any]:
        """Return the answer to a request without a body; raises as `post`."""
        return self._ask("GET", path, None)

    def is_healthy(self) -> bool:
        """Whether it answers within `HEALTH_TIMEOUT_S` that it is healthy."""
        connection = self._connect(HEALTH_TIMEOUT_S)
        try:
            connection.request("GET", self._path("health"))
            return connection.getresponse().status < 400
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def abort(self, routes: Collection[str] | None = None) -> None:
        """Make the requests that wait for an answer fail: all of them, or those for some routes."""
        paths = None if routes is None else {self._path(route) for route in routes}
        for connection, path in list(self._busy.items()):
            waiting = connection.sock
            if waiting is not None and (paths is None or path in paths):
                with suppress(OSError):  # it has just ended
                    waiting.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connections that nobody uses."""
        while not self._idle.empty():
            self._idle.get_nowait().close()

    def _ask(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        try:
            status, answer = self._exchange(method, self._path(path), body)
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, not HTTP
            raise EngineError(f"the vLLM server at {self.url} does not answer {path}: {error}") from error
        if status >= 400:
            reason = answer.decode(errors="replace")[:500]
            if status < 500:
                raise ValueError(f"the vLLM server refuses {path} ({status}): {reason}")
            raise EngineError(f"the vLLM server failed at {path} ({status}): {reason}")
        parsed: dict[str, Any] = json.loads(answer) if answer else {}
        return parsed

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Status and body of the answer; asked again over a new connection when an old one turns out to be closed."""
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            return self._over(self._connect(self.timeout_s), method, path, body)
        try:
            return self._over(connection, method, path, body)
        except CLOSED:  # every request may be repeated: completions have seeds, weights are whole
            return self._over(self._connect(self.timeout_s), method, path, body)

    def _over(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None
    ) -> tuple[int, bytes]:
        self._busy[connection] = path
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        except BaseException:
            connection.close()
            raise
        finally:
            del self._busy[connection]
        self._idle.put(connection)
        return response.status, answer

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        assert self._parts.hostname is not None
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        return kind(self._parts.hostname, self._parts.port, timeout=timeout_s)

    def _path(self, path: str) -> str:
        return f"{self._parts.path.rstrip('/')}/{path}"
