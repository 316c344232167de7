"""Rollouts from a vLLM server: on GPUs of its own or on another machine, with the interface of the colocated engine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from maxk_lightning.policy import load_stop_tokens, load_tokenizer, resolve_policy, weight_shapes
from maxk_lightning.rollouts.engine import EngineError, EngineLoad, in_groups
from maxk_lightning.rollouts.engines.vllm.errors import finish_reason
from maxk_lightning.rollouts.engines.vllm.nccl import NCCLSender
from maxk_lightning.rollouts.engines.weights import checked, save_shards
from maxk_lightning.seeds import derive_seed
from maxk_lightning.types import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GUARD = Path(__file__).with_name("guard.py")
REQUIRED_ARGS = {"logprobs-mode": "processed_logprobs", "generation-config": "vllm"}
"What a server must be started with, or its log-probs and samples are not those of the tempered policy."
ADDRESS, PORT = "127.0.0.1", 51217
OF_THE_TRAINER = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)
"Variables of the trainer's launcher, which a server would take for its own."


class VLLMServerEngine:
    """Samples through the HTTP interface of `vllm serve`; weights are pushed after every update.

    With `url` the server is yours; it needs `VLLM_SERVER_DEV_MODE=1` and the arguments `--logprobs-mode
    processed_logprobs --generation-config vllm`. Without, rank 0 starts one on this machine and ends it with itself,
    however it ends. All ranks share the server. Seeds are those of `VLLMEngine`.
    """

    def __init__(
        self,
        policy: str = "builtin",
        *,
        url: str | None = None,
        gpus: str | None = None,
        server_args: Mapping[str, str | int | float | bool] | None = None,
        transfer: Literal["nccl", "file"] = "nccl",
        transfer_dir: str = "/dev/shm",
        master_address: str = ADDRESS,
        master_port: int = PORT,
        max_connections: int = 256,
        timeout_s: float = 3600.0,
        start_timeout_s: float = 1200.0,
    ) -> None:
        """Prepare an engine; nothing is started or asked before the first use.

        Args:
            policy: Directory, hub name or `builtin`; training fills in `model.policy`.
            url: Of a running server, e.g. http://10.0.0.2:8000; None: start one here.
            gpus: CUDA_VISIBLE_DEVICES of the server started here, e.g. "6,7".
            server_args: Further arguments of the server started here, e.g. {tensor-parallel-size: 2}.
            transfer: `nccl`: vLLM's weight-transfer API over NCCL, from GPU to GPU; `file`: safetensors in
                `transfer_dir`, which server and rank 0 must both see, and vLLM's reload_weights.
            transfer_dir: Of `file`; memory or a fast disk, with room for the weights.
            master_address: Of `nccl`: this machine as the server reaches it.
            master_port: Of `nccl`: a free port of this machine.
            max_connections: Requests in flight at the same time, per rank.
            timeout_s: A request that takes longer counts as a failed engine.
            start_timeout_s: Likewise a start.

        Raises:
            ValueError: options that have no effect together, or out of range.
        """
        if url is not None and (gpus is not None or server_args):
            raise ValueError("rollout.engine: gpus and server_args are for a server started here, but url is given")
        if transfer == "file" and (master_address, master_port) != (ADDRESS, PORT):
            raise ValueError("rollout.engine: master_address and master_port have no effect with transfer: file")
        limits = {"max_connections": max_connections, "timeout_s": timeout_s, "start_timeout_s": start_timeout_s}
        for name, value in limits.items():
            if not value > 0:
                raise ValueError(f"rollout.engine.{name} is {value}, must be positive")
        if transfer == "file" and not Path(transfer_dir).is_dir():
            raise ValueError(f"rollout.engine.transfer_dir: {transfer_dir} is not a directory")
        self.policy = policy
        self.url = url
        self.gpus = gpus
        self.server_args = dict(server_args or {})
        self.transfer = transfer
        self.transfer_dir = transfer_dir
        self.master_address = master_address
        self.master_port = master_port
        self.max_connections = max_connections
        self.timeout_s = timeout_s
        self.start_timeout_s = start_timeout_s
        self.version: int | None = None
        self._base_url: str | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._sender: Any = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._stop_tokens: list[int] = []

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Push a full set of weights from rank 0; all ranks come here together and leave when it has arrived.

        Raises:
            ValueError: a weight is unknown, missing, or not finite.
            EngineError: the server failed.
        """
        self.version = None
        self._connect("dummy" if self.transfer == "nccl" else "auto")  # vLLM reads no files over dummy weights
        weights = checked(named_tensors, weight_shapes(self.policy))
        failure = None
        try:
            if self.transfer == "nccl":
                self._push_by_nccl(weights)
            else:
                self._push_by_file(weights)
            if _rank() == 0 and not self._post("reset_prefix_cache", {}).get("success", True):
                raise EngineError("the vLLM server could not reset its prefix cache")
        except EngineError as error:
            failure = str(error)
            for _ in weights:  # gathering a sharded weight takes all ranks
                pass
        if failure := _told_by_first_rank(failure):
            raise EngineError(failure)
        self.version = version

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """Sample completions, all prompts together."""
        return in_groups(self.stream(prompts, sampling), len(prompts), sampling.num_completions)

    def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, int, Completion]]:
        """Yield the same completions as they end: (index of the prompt, sample in its group, completion).

        Raises:
            ValueError: the server refuses a request.
            EngineError: the server failed or took too long.
        """
        if self.url is not None and self.version is None:
            raise ValueError("rollout.engine.url: nobody knows the weights of that server; they must be loaded first")
        self._connect("auto")
        tokenizer, stop_tokens = self._load_tokenizer()

        def sample_one(prompt: Prompt, sample: int) -> Completion:
            choice = self._post("v1/completions", self._request(prompt, sample, sampling, stop_tokens))["choices"][0]
            text = tokenizer.decode(choice["token_ids"], skip_special_tokens=True)
            assert isinstance(text, str)
            return Completion(
                token_ids=tuple(choice["token_ids"]),
                logprobs=tuple(choice["logprobs"]["token_logprobs"]),
                entropies=None,
                text=text,
                finish_reason=finish_reason(choice["finish_reason"]),
            )

        pool = ThreadPoolExecutor(self.max_connections, thread_name_prefix="vllm")
        try:
            places = {
                pool.submit(sample_one, prompt, sample): (index, sample)
                for index, prompt in enumerate(prompts)
                for sample in range(sampling.num_completions)
            }
            for future in as_completed(places):
                yield *places[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def memory(self, load: EngineLoad) -> None:
        """Nothing: the server has GPUs of its own."""

    def sleep(self) -> bool:
        """Do nothing: the server has memory of its own."""
        return False

    def close(self) -> None:
        """End the server, if it was started here."""
        if self._server is not None:
            self._server.send_signal(signal.SIGTERM)
            self._server.wait()
        elif self._sender is not None:  # with a server of its own the group has ended
            self._sender.shutdown()
        self._server = self._sender = self._base_url = self.version = None

    def _load_tokenizer(self) -> "tuple[PreTrainedTokenizerBase, list[int]]":
        """The policy's tokenizer and its stop tokens, read from disk once."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.policy)
            self._stop_tokens = sorted(load_stop_tokens(self.policy, self._tokenizer))
        return self._tokenizer, self._stop_tokens

    def _request(self, prompt: Prompt, sample: int, sampling: Sampling, stop_tokens: list[int]) -> dict[str, Any]:
        return {
            "prompt": list(prompt.token_ids),
            "n": 1,
            "seed": derive_seed(prompt.seed, sample),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": stop_tokens,
            "logprobs": 0,
            "return_token_ids": True,
        }

    def _connect(self, load_format: Literal["auto", "dummy"]) -> None:
        """Find the server, or start it; every rank learns where it is."""
        if self._base_url is not None:
            return
        url, failure = self.url or "", None
        try:
            if self.url is None and _rank() == 0:
                url = self._launch(load_format)
            elif self.url is not None:
                self._wait_until_ready(self.url)
        except EngineError as error:
            failure = str(error)
        if failure := _told_by_first_rank(failure):
            raise EngineError(failure)
        told = _told_by_first_rank(url)
        assert told is not None
        self._base_url = told.rstrip("/")

    def _launch(self, load_format: str) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        on_cpu = {} if torch.cuda.is_available() else {"enable-chunked-prefill": False}  # see `VLLMEngine._start`
        arguments = {
            **REQUIRED_ARGS,
            **on_cpu,
            **self.server_args,
            "load-format": load_format,
            "host": "127.0.0.1",
            "port": port,
        }
        if self.transfer == "nccl":
            arguments["weight-transfer-config"] = '{"backend": "nccl"}'
        flags = [part for name, value in arguments.items() for part in _flag(name, value)]
        # What `vllm serve` runs; the command itself asks for a distribution named vllm, which CPU builds are not.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", resolve_policy(self.policy)]
        environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1"}
        environment.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        if self.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus
        for name in [name for name in environment if name in OF_THE_TRAINER or name.startswith("TORCHELASTIC_")]:
            del environment[name]
        self._server = subprocess.Popen(
            [sys.executable, str(GUARD), str(os.getpid()), *command, *flags], env=environment, start_new_session=True
        )
        url = f"http://127.0.0.1:{port}"
        self._wait_until_ready(url)
        return url

    def _wait_until_ready(self, url: str) -> None:
        deadline = time.monotonic() + self.start_timeout_s
        while True:
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=10):
                    return
            except OSError as error:
                if self._server is not None and self._server.poll() is not None:
                    self.close()
                    raise EngineError("the vLLM server ended while starting; see its messages above") from error
                if time.monotonic() > deadline:
                    self.close()
                    raise EngineError(f"no vLLM server has answered for {self.start_timeout_s:g} s: {error}") from error
            time.sleep(0.5)

    def _push_by_file(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        if _rank() != 0:
            for _ in weights:  # gathering a sharded weight takes all ranks
                pass
            return
        directory = tempfile.mkdtemp(prefix="weights-", dir=self.transfer_dir)
        try:
            save_shards(weights, Path(directory))
            self._post("collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": directory}})
        finally:
            shutil.rmtree(directory)

    def _push_by_nccl(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        assert self._base_url is not None
        if self._sender is None:
            self._sender = NCCLSender(
                base_url=self._base_url,
                shapes=weight_shapes(self.policy),
                rank=_rank(),
                master_address=self.master_address,
                master_port=self.master_port,
                timeout_s=self.timeout_s,
            )
        self._sender.send(weights)

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            ValueError: the request is wrong.
            EngineError: the server does not answer, or fails.
        """
        request = urllib.request.Request(
            f"{self._base_url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                answer = response.read()
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace")[:500]
            if 400 <= error.code < 500:
                raise ValueError(f"the vLLM server refuses {path} ({error.code}): {reason}") from error
            raise EngineError(f"the vLLM server failed at {path} ({error.code}): {reason}") from error
        except OSError as error:  # refused, reset, timed out
            raise EngineError(f"the vLLM server at {self._base_url} does not answer {path}: {error}") from error
        parsed: dict[str, Any] = json.loads(answer) if answer else {}
        return parsed


def _flag(name: str, value: str | int | float | bool) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _told_by_first_rank(word: str | None) -> str | None:
    """Hand what rank 0 says to all ranks, which wait for it."""
    if not torch.distributed.is_initialized():
        return word
    told = [word]
    torch.distributed.broadcast_object_list(told)
    return told[0]
