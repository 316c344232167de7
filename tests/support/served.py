"""`sampling_server.py` in a process of its own."""

import subprocess
import sys

from maxk_lightning.rollouts.engines.vllm.http import Server
from tests.support.paths import ROOT

SCRIPT = ROOT / "tests" / "support" / "sampling_server.py"


class Served:
    """A server in a process of its own that can be killed, and started again at the same address."""

    def __init__(self) -> None:
        self.port = 0
        self.start()
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, str(SCRIPT), str(self.port)], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def plan(self, **what: object) -> None:
        Server(self.url, 30.0).post("plan", what)

    def asked(self, what: str = "total") -> int:
        return int(Server(self.url, 30.0).get("asked")[what])
