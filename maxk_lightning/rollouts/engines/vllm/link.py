"""One vLLM server: the connection to it, its process if it is ours, and the weights that it has."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress

from torch import Tensor

from maxk_lightning.rollouts.engine import EngineError
from maxk_lightning.rollouts.engines.vllm.http import Server
from maxk_lightning.rollouts.engines.vllm.launch import Process
from maxk_lightning.rollouts.engines.vllm.transfer import Sender

HOLD = "pause?mode=keep&clear_cache=false"
"Running completions pause; new requests wait."
GO_ON = "resume"
RESET = "reset_prefix_cache"
RESET_OF_ALL = f"{RESET}?reset_running_requests=true"
"""Also the cache of running completions: vLLM computes it anew, with the new weights, when it continues them. Without,
it could reset nothing while a completion runs, and further samples of a prompt would read what old weights computed."""


class Link:
    """A server and the ways to it. Rank 0 alone has its process and pushes weights; every rank asks it."""

    def __init__(self, url: str, timeout_s: float, *, is_in_flight: bool = False) -> None:
        self.server = Server(url, timeout_s)
        self.is_in_flight = is_in_flight
        "Whether it may be sampling while it is given weights."
        self.process: Process | None = None
        self.sender: Sender | None = None
        self.mark: str | None = None
        "The server's name for the weights that it has; None: it has none of ours, or cannot note it."

    def send(self, weights: Iterable[tuple[str, Tensor]], mark: str, open_sender: Callable[["Link"], Sender]) -> None:
        """Push weights by the transfer API, over the group that is open, unless the server was restarted since.

        Raises:
            ValueError: a weight is not what it should be, or the server refuses it.
            EngineError: the server failed.
        """
        if self.sender is not None and not self.has_its_weights():  # it would wait for a group that it never joined
            self._leave_group()
        if self.sender is None:
            self.sender = open_sender(self)
        with self._held():
            self.sender.send(weights)
            self._take_note(mark)

    def read(self, directory: str, mark: str) -> None:
        """Let the server read weights from files; raises as `send`."""
        with self._held():
            self.server.post("collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": directory}})
            self._take_note(mark)

    def has_its_weights(self) -> bool:
        """Whether the server has the weights that it was given last, as far as is known; a restarted one has others.

        Raises:
            EngineError: the server does not answer.
        """
        return self.mark is None or self.server.get("weight_info").get("weight_version") == self.mark

    def check(self) -> None:
        """Raise an EngineError unless it answers and `has_its_weights`."""
        if not self.has_its_weights():
            raise EngineError(f"the vLLM server at {self.server.url} has other weights than it was given")

    def is_alive(self) -> bool:
        """Whether it answers, and its process has not ended."""
        return (self.process is None or self.process.is_alive()) and self.server.is_healthy()

    def forget(self) -> None:
        """Drop what a failed push has left: the next one starts anew."""
        self._leave_group()
        self.mark = None

    def close(self) -> None:
        """Leave the transfer group, and end the server if it is ours."""
        self._leave_group()  # also when the other side is gone: its buffers are on this GPU
        if self.process is not None:
            self.process.close()
        self.server.close()

    def _leave_group(self) -> None:
        if self.sender is not None:
            self.sender.shutdown()
        self.sender = None

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Pause its running completions while the body gives it other weights, if it is in flight.

        Where the body fails, nothing continues: some of its weights may be new.
        """
        if self.is_in_flight:
            self.server.post(HOLD, {})
        yield
        # Also for a server that a run, killed during a push, left on hold; an older vLLM has no such route.
        with nullcontext() if self.is_in_flight else suppress(ValueError):
            self.server.post(GO_ON, {})

    def _take_note(self, mark: str) -> None:
        """Forget what was computed with earlier weights, and name the new ones."""
        if not self.server.post(RESET_OF_ALL if self.is_in_flight else RESET, {}).get("success", True):
            raise EngineError(f"the vLLM server at {self.server.url} could not reset its prefix cache")
        self.mark = None
        with nullcontext() if self.is_in_flight else suppress(ValueError):  # an older vLLM has no such route
            if self.server.post("update_weight_version", {"new_version": mark}).get("new_version") == mark:
                self.mark = mark
