"""Something with the routes of a vLLM server that samples: a script, `sampling_server.py PORT`; prints its port.

Its completions are functions of the seed and of the weights that it has read from files, so that old weights show. It
does what `/plan` tells it: `die_after` so many completions, `hold` them until told otherwise, `refuse` weights, or
`stop`: as vLLM does when it is told to end, it closes its port, and leaves open what it is asked meanwhile.
`/asked` tells how many completions it was asked for, and how many of them it holds.
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
    plan: dict[str, Any] = {}  # noqa: RUF012
    changed = threading.Condition()


class Handler(JsonHandler):
    """Answers with JSON."""

    def do_GET(self) -> None:
        """Health, the name of the weights, completions."""
        answers: dict[str, Any] = {
            "/weight_info": {"weight_version": State.version},
            "/asked": {"total": State.num_asked, "held": State.num_held},
        }
        self.answer(200, answers.get(self.path, {}))

    def do_POST(self) -> None:
        """Take a plan, weights or a request."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/plan":
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
        self.answer(200, {"success": True})

    def _sample(self, body: dict[str, Any]) -> dict[str, Any]:
        with State.changed:
            State.num_asked += 1
            if State.num_asked > State.plan.get("die_after", State.num_asked):
                os.kill(os.getpid(), signal.SIGKILL)
            State.num_held += 1
            State.changed.wait_for(lambda: not State.plan.get("hold"))
            State.num_held -= 1
        generator = random.Random(f"{State.weights} {body['seed']} {body['prompt']}")
        tokens = [generator.randrange(10, 90) for _ in range(4)]
        logprobs = {"token_logprobs": [-generator.random() for _ in tokens]}
        return {"choices": [{"token_ids": tokens, "logprobs": logprobs, "finish_reason": "stop"}]}


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
