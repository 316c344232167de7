"""A vLLM server of our own: its command, and its process, which ends with ours."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maxk_lightning.rollouts.engine import EngineError
from maxk_lightning.rollouts.engines.vllm.http import Server

GUARD = Path(__file__).with_name("guard.py")
REQUIRED_ARGS = {"logprobs-mode": "processed_logprobs", "generation-config": "vllm"}
"What a server must be started with, or its log-probs and samples are not those of the tempered policy."
OF_THE_TRAINER = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)
"Variables of the trainer's launcher, which a server would take for its own."
Arguments = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What a server is started with."""

    policy: str
    "Directory of the policy."
    arguments: Arguments
    "Arguments of `vllm serve`, without dashes."
    gpus: str | None
    "CUDA_VISIBLE_DEVICES; None: that of this process."
    takes_handles: bool
    "Whether weights reach it as handles of memory, which vLLM unpickles only when asked to."

    @property
    def command(self) -> list[str]:
        """What `vllm serve` runs; `vllm serve` itself needs a distribution named vllm, which CPU builds are not."""
        flags = [part for name, value in self.arguments.items() for part in _flag(name, value)]
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", self.policy, *flags]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of this process without what its launcher set."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in OF_THE_TRAINER and not name.startswith("TORCHELASTIC_")
        }
        chosen = {"VLLM_SERVER_DEV_MODE": "1"}
        if self.gpus is not None:
            chosen["CUDA_VISIBLE_DEVICES"] = self.gpus
        if self.takes_handles:  # from this process, over the loopback
            chosen["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        return {"VLLM_LOGGING_LEVEL": "ERROR"} | inherited | chosen


class Process:
    """A running server."""

    def __init__(self, launch: Launch) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(GUARD), str(os.getpid()), *launch.command],
            env=launch.environment,
            start_new_session=True,
        )

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()


def wait_until_ready(servers: Sequence[Server], process: Process | None, timeout_s: float) -> None:
    """Wait until one of the servers answers.

    Raises:
        EngineError: the process ended, or no server answered within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not any(server.is_healthy() for server in servers):
        if process is not None and not process.is_alive():
            raise EngineError("the vLLM server ended while starting; see its messages above")
        if time.monotonic() > deadline:
            urls = ", ".join(server.url for server in servers)
            raise EngineError(f"no vLLM server at {urls} has answered for {timeout_s:g} s")
        time.sleep(0.5)


def free_port(host: str = "") -> int:
    """Find a port that nobody listens on at an address of this machine; "": at any of them."""
    with socket.socket() as free:
        free.bind((host, 0))
        port: int = free.getsockname()[1]
        return port


def is_this_machine(host: str) -> bool:
    """Whether an address or a name is one of this machine's."""
    try:
        addresses = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as own:
            try:
                own.bind(address)
            except OSError:
                continue
            return True
    return False


def as_json(value: Mapping[str, str]) -> str:
    """Write a mapping as an argument of `vllm serve`."""
    return json.dumps(value)


def _flag(name: str, value: str | int | float | bool) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]
