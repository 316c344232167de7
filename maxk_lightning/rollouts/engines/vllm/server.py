"""Rollouts from a vLLM server: on GPUs of its own or on another machine, with the interface of the colocated engine."""

import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import urlsplit

import torch
from torch import Tensor

from maxk_lightning.policy import load_stop_tokens, load_tokenizer, resolve_policy, weight_shapes
from maxk_lightning.policy.memory import EngineMemory
from maxk_lightning.rollouts.engine import EngineError, EngineLoad, in_groups
from maxk_lightning.rollouts.engines.text import answer_text
from maxk_lightning.rollouts.engines.vllm.agreement import of_all_ranks, raise_together, rank, told_by_first_rank
from maxk_lightning.rollouts.engines.vllm.arguments import ADMITTED_UTILIZATION, HeadDtype
from maxk_lightning.rollouts.engines.vllm.errors import finish_reason
from maxk_lightning.rollouts.engines.vllm.gpus import check_gpus, own_gpu
from maxk_lightning.rollouts.engines.vllm.http import Server
from maxk_lightning.rollouts.engines.vllm.launch import (
    REQUIRED_ARGS,
    Launch,
    Process,
    as_json,
    free_port,
    is_this_machine,
    wait_until_ready,
)
from maxk_lightning.rollouts.engines.vllm.transfer import Sender, Source, ipc_info, nccl_info
from maxk_lightning.rollouts.engines.weights import checked, save_shards
from maxk_lightning.seeds import derive_seed
from maxk_lightning.types import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Transfer = Literal["nccl", "ipc", "file"]
WireDtype = Literal["bfloat16", "float16", "float32"]
LOOPBACK = "127.0.0.1"
CACHE_BYTES, UTILIZATION = "kv-cache-memory-bytes", "gpu-memory-utilization"
PARALLEL_SIZES = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")


class VLLMServerEngine:
    """Samples through the HTTP interface of `vllm serve`; weights are pushed after every update.

    With `url` the server is yours; it needs `VLLM_SERVER_DEV_MODE=1` and the arguments `--logprobs-mode
    processed_logprobs --generation-config vllm --weight-transfer-config '{"backend": "nccl"}'`, in bfloat16 also
    `--hf-overrides '{"head_dtype": "float32"}'`. Without, rank 0 starts one on this machine and ends it with itself,
    however it ends. All ranks share the server. Seeds are those of `VLLMEngine`.
    """

    def __init__(
        self,
        policy: str = "builtin",
        *,
        url: str | None = None,
        gpus: str | None = None,
        server_args: Mapping[str, str | int | float | bool] | None = None,
        head_dtype: HeadDtype = "float32",
        transfer: Transfer = "nccl",
        transfer_dir: str = "/dev/shm",
        wire_dtype: WireDtype | None = None,
        master_address: str = LOOPBACK,
        master_port: int | None = None,
        max_connections: int = 256,
        timeout_s: float = 3600.0,
        start_timeout_s: float = 1200.0,
    ) -> None:
        """Prepare an engine; nothing is started or asked before the first use.

        Args:
            policy: Directory, hub name or `builtin`; training fills in `model.policy`.
            url: Of a running server, e.g. http://10.0.0.2:8000; None: start one here.
            gpus: CUDA_VISIBLE_DEVICES of the server started here, e.g. "6,7": GPUs that no rank trains on.
            server_args: Further arguments of the server started here, e.g. {tensor-parallel-size: 2}.
            head_dtype: As in `VLLMEngine`, of a server started here.
            transfer: `nccl`: vLLM's weight-transfer API over NCCL, from GPU to GPU; `ipc`: the same between a single
                rank and a server started here on the rank's GPU, whose server_args say kv-cache-memory-bytes; `file`:
                safetensors in `transfer_dir`, which server and rank 0 must both see, and vLLM's reload_weights.
            transfer_dir: Of `file`; memory or a fast disk, with room for the weights.
            wire_dtype: Type in which weights travel. None: the dtype in server_args, else bfloat16.
            master_address: Of `nccl`: this machine as the server reaches it.
            master_port: Of `nccl`: a free port of this machine; None: one is looked for.
            max_connections: Requests in flight at the same time, per rank.
            timeout_s: A request, or a push of weights, that takes longer counts as a failed engine.
            start_timeout_s: Likewise a start.

        Raises:
            ValueError: options that have no effect together, or out of range.
        """
        server_args = dict(server_args or {})
        if url is not None and (gpus is not None or server_args):
            raise ValueError("rollout.engine: gpus and server_args are for a server started here, but url is given")
        if transfer not in get_args(Transfer):
            raise ValueError(f"rollout.engine.transfer is {transfer}, must be one of {get_args(Transfer)}")
        if transfer != "nccl" and (master_address, master_port) != (LOOPBACK, None):
            raise ValueError(f"rollout.engine: master_address and master_port have no effect with transfer: {transfer}")
        limits = {"max_connections": max_connections, "timeout_s": timeout_s, "start_timeout_s": start_timeout_s}
        for name, value in limits.items():
            if not value > 0:
                raise ValueError(f"rollout.engine.{name} is {value}, must be positive")
        if transfer == "file" and not Path(transfer_dir).is_dir():
            raise ValueError(f"rollout.engine.transfer_dir: {transfer_dir} is not a directory")
        if transfer == "nccl" and url is not None:
            _check_address(url, master_address)
        if transfer == "ipc":
            _check_shared(url, gpus, server_args)
        self.policy = policy
        self.url = url
        self.gpus = gpus
        self.server_args = server_args
        self.head_dtype = head_dtype
        self.transfer = transfer
        self.transfer_dir = transfer_dir
        self.wire_dtype: torch.dtype = wire_dtype_of(wire_dtype, server_args)
        self.master_address = master_address
        self.master_port = master_port
        self.max_connections = max_connections
        self.timeout_s = timeout_s
        self.start_timeout_s = start_timeout_s
        self.version: int | None = None
        self._server: Server | None = None
        self._process: Process | None = None
        self._sender: Sender | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._stop_tokens: list[int] = []

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Push a full set of weights from rank 0; all ranks come here together and leave when it has arrived.

        Raises:
            ValueError: a weight is unknown, missing, or not finite.
            EngineError: the server failed.
        """
        self.version = None
        self._connect("auto" if self.transfer == "file" else "dummy")  # vLLM reads no files over dummy weights
        weights = checked(named_tensors, weight_shapes(self.policy))
        failure: EngineError | ValueError | None = None
        try:
            self._push(weights)
        except (EngineError, ValueError) as error:
            failure = error
            with suppress(ValueError):  # that a weight is wrong, which every rank sees
                for _ in weights:  # gathering a sharded weight takes all ranks
                    pass
        raise_together(failure)
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
        server = self._connect("auto")
        tokenizer, stop_tokens = self._load_tokenizer()

        def sample_one(prompt: Prompt, sample: int) -> Completion:
            choice = server.post("v1/completions", self._request(prompt, sample, sampling, stop_tokens))["choices"][0]
            return Completion(
                token_ids=tuple(choice["token_ids"]),
                logprobs=tuple(choice["logprobs"]["token_logprobs"]),
                entropies=None,
                text=answer_text(tokenizer, prompt, choice["token_ids"]),
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

    def memory(self, load: EngineLoad) -> EngineMemory | None:
        """Tell what a server on the same GPU holds; None: it has GPUs of its own."""
        if self.transfer != "ipc":
            return None
        return EngineMemory(weights_dtype=self.wire_dtype, kv_cache_bytes=int(self.server_args[CACHE_BYTES]))

    def sleep(self) -> bool:
        """Do nothing: the server has memory of its own."""
        return False

    def close(self) -> None:
        """Leave the transfer group, and end the server if it was started here."""
        if self._sender is not None:  # also when the other side is gone: its buffers are on this GPU
            self._sender.shutdown()
        if self._process is not None:
            self._process.close()
        if self._server is not None:
            self._server.close()
        self._process = self._sender = self._server = self.version = None

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
            "stop": list(sampling.stop),
            "logprobs": 0,
            "return_token_ids": True,
        }

    def _connect(self, load_format: Literal["auto", "dummy"]) -> Server:
        """Find the server, or start it; every rank learns where it is."""
        if self._server is not None:
            return self._server
        gpus = of_all_ranks(own_gpu())
        if self.url is None and self.transfer != "ipc":
            check_gpus(self.gpus, self._num_gpus(), gpus)
        if self.transfer == "ipc" and len(gpus) > 1:
            raise ValueError("rollout.engine.transfer: ipc serves a single rank; with several take nccl and gpus")
        port = told_by_first_rank(free_port(LOOPBACK))
        server = Server(self.url or f"http://{LOOPBACK}:{port}", self.timeout_s)
        failure = None
        try:
            if self.url is None and rank() == 0:
                self._process = Process(self._launch(load_format, port))
            if self.url is not None or rank() == 0:
                wait_until_ready(server, self._process, self.start_timeout_s)
        except EngineError as error:
            failure = error
            self.close()
        raise_together(failure)
        self._server = server
        return server

    def _launch(self, load_format: str, port: int) -> Launch:
        arguments = {
            **REQUIRED_ARGS,
            **self._defaults(),
            **self.server_args,
            "load-format": load_format,
            "host": LOOPBACK,
            "port": port,
        }
        if self.transfer != "file":
            arguments["weight-transfer-config"] = as_json({"backend": self.transfer})
        gpu = own_gpu()
        return Launch(
            policy=resolve_policy(self.policy),
            arguments=arguments,
            gpus=gpu.name if self.transfer == "ipc" and gpu is not None else self.gpus,
            takes_handles=self.transfer == "ipc",
        )

    def _defaults(self) -> dict[str, str | int | float | bool]:
        """What a server is told unless server_args say otherwise; the reasons stand in `arguments`."""
        told: dict[str, str | int | float | bool] = {}
        if not torch.cuda.is_available():
            told["enable-chunked-prefill"] = False
        elif CACHE_BYTES in self.server_args:
            told[UTILIZATION] = ADMITTED_UTILIZATION
        if self.head_dtype == "float32" and self.server_args.get("dtype") not in ("float32", "float"):
            told["hf-overrides"] = as_json({"head_dtype": "float32"})
        return told

    def _num_gpus(self) -> int:
        return math.prod(int(self.server_args.get(name, 1)) for name in PARALLEL_SIZES)

    def _push(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        assert self._server is not None
        if self.transfer == "file":
            self._push_by_file(self._server, weights)
        else:
            if self._sender is None:
                self._sender = self._open(self._server)
            self._sender.send(weights)
        if rank() == 0 and not self._server.post("reset_prefix_cache", {}).get("success", True):
            raise EngineError("the vLLM server could not reset its prefix cache")

    def _push_by_file(self, server: Server, weights: Iterator[tuple[str, Tensor]]) -> None:
        if rank() != 0:
            for _ in weights:  # gathering a sharded weight takes all ranks
                pass
            return
        directory = tempfile.mkdtemp(prefix="weights-", dir=self.transfer_dir)
        try:
            save_shards(((name, tensor.to(self.wire_dtype)) for name, tensor in weights), Path(directory))
            server.post("collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": directory}})
        finally:
            shutil.rmtree(directory)

    def _open(self, server: Server) -> Sender:
        source = Source(weight_shapes(self.policy), self.wire_dtype)
        if self.transfer == "ipc":
            info = ipc_info(source)
        else:
            info = nccl_info(
                rank=rank(),
                address=self.master_address,
                port=self.master_port or free_port(),
                num_workers=server.get("get_world_size")["world_size"],
            )
        return Sender(server=server, is_alive=self._is_alive, source=source, init_info=info, is_sender=rank() == 0)

    def _is_alive(self) -> bool:
        has_process = self._process is None or self._process.is_alive()
        return has_process and self._server is not None and self._server.is_healthy()


def wire_dtype_of(chosen: WireDtype | None, server_args: Mapping[str, Any]) -> torch.dtype:
    """The type in which weights travel: the chosen one, else the server's, which may also be called half or float."""
    named = {"half": "float16", "float": "float32", **{name: name for name in get_args(WireDtype)}}
    dtype: torch.dtype = getattr(torch, chosen or named.get(str(server_args.get("dtype")), "bfloat16"))
    return dtype


def _check_address(url: str, master_address: str) -> None:
    """Refuse to tell a server on another machine that the trainer is on its own."""
    host = urlsplit(url).hostname or ""
    if is_this_machine(host) or master_address not in (LOOPBACK, "localhost", "::1"):
        return
    raise ValueError(
        f"rollout.engine.master_address is {master_address}, where the server at {url} would look for itself; give "
        "the address by which it reaches this machine"
    )


def _check_shared(url: str | None, gpus: str | None, server_args: Mapping[str, Any]) -> None:
    """Refuse what cannot share a GPU."""
    if url is not None or gpus is not None:
        raise ValueError("rollout.engine.transfer: ipc is for a server started here, on the GPU of this process")
    if CACHE_BYTES not in server_args:
        raise ValueError(
            f"rollout.engine.server_args: with transfer: ipc give {CACHE_BYTES}, e.g. {4 << 30}: without, vLLM takes "
            "92 % of the GPU that the policy is on"
        )
