"""Something with the routes of a vLLM server that samples: a script, `sampling_server.py PORT`; prints its port.

Its completions are functions of the seed and of the weights that it has read from files, so that old weights show. It
does what `/plan` tells it: `die_after` so many completions, `hold` them until told otherwise, `refuse` weights, or
`stop`: as vLLM does when it is told to end, it closes its port, and leaves open what it is asked meanwhile.
`/asked` tells how many completions it was asked for, and how many of them it holds; `/log`, what it was told.

A completion asked by `/inference/v1/generate` is sampled in two halves, between which `hold` holds it, and while the
server is paused neither begins. Each half is a function of the weights at its time.
"""

import json
import os
import random
import signal
import sys
import threading
import zlib
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from json_handler import JsonHandler


class State:
    """What the server knows."""

    weights = 0
    version = "default"
    num_asked = num_held = 0
    is_paused = False
    log: list[str] = []  # noqa: RUF012
    plan: dict[str, Any] = {}  # noqa: RUF012
    changed = threading.Condition()


class Handler(JsonHandler):
    """Answers with JSON."""

    def do_GET(self) -> None:
        """Health, the name of the weights, completions."""
        answers: dict[str, Any] = {
            "/weight_info": {"weight_version": State.version},
            "/asked": {"total": State.num_asked, "held": State.num_held},
            "/log": {"told": State.log},
        }
        self.answer(200, answers.get(self.path, {}))

    def do_POST(self) -> None:
        """Take a plan, weights or a request."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        route = self.path.partition("?")[0].strip("/")
        if route in ("pause", "collective_rpc", "reset_prefix_cache", "update_weight_version", "resume"):
            State.log.append(self.path.strip("/"))
            if route == State.plan.get("die_at"):
                os.kill(os.getpid(), signal.SIGKILL)
            if route == State.plan.get("fail_at"):
                self.answer(500, {})
                return
        if route in ("pause", "resume"):
            with State.changed:
                State.is_paused = route == "pause"
                State.changed.notify_all()
        elif self.path == "/plan":
            with State.changed:
                State.plan = body
                State.changed.notify_all()
            if State.plan.get("stop"):
                threading.Thread(target=self.server.shutdown).start()
        elif self.path == "/collective_rpc":
            if State.plan.get("refuse"):
                self.answer(State.plan["refuse"], {})
                return
            files = sorted(Path(body["kwargs"]["weights_path"]).iterdir())
            State.weights = zlib.crc32(b"".join(file.read_bytes() for file in files))
        elif self.path == "/update_weight_version":
            State.version = body["new_version"]
            self.answer(200, {"success": True, "new_version": State.version})
            return
        elif self.path == "/v1/completions":
            self.answer(200, self._sample(body))
            return
        elif self.path == "/inference/v1/generate":
            self.answer(200, self._sample_in_halves(body))
            return
        self.answer(200, {"success": True})

    def _sample(self, body: dict[str, Any]) -> dict[str, Any]:
        self._count()
        with State.changed:
            State.changed.wait_for(lambda: not State.is_paused)
        self._hold()
        tokens, logprobs = _draw(f"{body['seed']} {body['prompt']}", 4)
        return {"choices": [{"token_ids": tokens, "logprobs": {"token_logprobs": logprobs}, "finish_reason": "stop"}]}

    def _sample_in_halves(self, body: dict[str, Any]) -> dict[str, Any]:
        self._count()
        tokens: list[int] = []
        logprobs: list[float] = []
        spans: list[dict[str, Any]] = []
        for half in range(2):
            with State.changed:
                State.changed.wait_for(lambda: not State.is_paused)
                if not spans or spans[-1]["version"] != State.version:
                    spans.append({"version": State.version, "start": len(tokens)})
                more = _draw(f"{body['sampling_params']['seed']} {body['token_ids']} {half}", 2)
            tokens += more[0]
            logprobs += more[1]
            spans[-1]["end"] = len(tokens)
            if half == 0:
                self._hold()
        content = [{"logprob": logprob} for logprob in logprobs]
        choice = {"token_ids": tokens, "logprobs": {"content": content}, "weight_versions": spans}
        return {"choices": [choice | {"finish_reason": "stop"}]}

    def _count(self) -> None:
        with State.changed:
            State.num_asked += 1
            if State.num_asked > State.plan.get("die_after", State.num_asked):
                os.kill(os.getpid(), signal.SIGKILL)

    def _hold(self) -> None:
        with State.changed:
            State.num_held += 1
            State.changed.wait_for(lambda: not State.plan.get("hold"))
            State.num_held -= 1


def _draw(name: str, number: int) -> tuple[list[int], list[float]]:
    generator = random.Random(f"{State.weights} {name}")
    tokens = [generator.randrange(10, 90) for _ in range(number)]
    return tokens, [-generator.random() for _ in tokens]


class Threads(ThreadingHTTPServer):
    """Holds many at once."""

    request_queue_size = 128


def main(port: int) -> None:
    """Serve until killed."""
    server = Threads(("127.0.0.1", port), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
    server.socket.close()
    threading.Event().wait()


if __name__ == "__main__":
    main(int(sys.argv[1]))
