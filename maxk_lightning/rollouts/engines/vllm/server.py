"""Rollouts from a vLLM server: on GPUs of its own or on another machine, with the interface of the colocated engine."""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import torch
from torch import Tensor

from maxk_lightning.policy import weight_shapes
from maxk_lightning.policy.memory import EngineMemory
from maxk_lightning.rollouts.engine import EngineError, EngineLoad, Part, in_groups
from maxk_lightning.rollouts.engines.vllm.agreement import of_all_ranks, raise_together, rank, told_by_first_rank
from maxk_lightning.rollouts.engines.vllm.arguments import HeadDtype
from maxk_lightning.rollouts.engines.vllm.completions import Asker, label_of
from maxk_lightning.rollouts.engines.vllm.fan_out import fan_out
from maxk_lightning.rollouts.engines.vllm.fleet import Fleet, at_once, tell_left_out, watched
from maxk_lightning.rollouts.engines.vllm.gpus import check_gpus, own_gpu
from maxk_lightning.rollouts.engines.vllm.launch import Process, free_port, wait_until_ready
from maxk_lightning.rollouts.engines.vllm.link import Link
from maxk_lightning.rollouts.engines.vllm.server_options import (
    CACHE_BYTES,
    LOOPBACK,
    Transfer,
    WireDtype,
    check_address,
    check_shared,
    urls_of,
    wire_dtype_of,
)
from maxk_lightning.rollouts.engines.vllm.start import num_gpus, own_launch
from maxk_lightning.rollouts.engines.vllm.transfer import Sender, Source, ipc_info, nccl_info
from maxk_lightning.rollouts.engines.weights import checked, save_shards
from maxk_lightning.types import Completion, Prompt, Sampling


class VLLMServerEngine:
    """Samples through the HTTP interface of `vllm serve`; weights are pushed after every update.

    With `url` the server is yours; it needs `VLLM_SERVER_DEV_MODE=1` and the arguments `--logprobs-mode
    processed_logprobs --generation-config vllm --weight-transfer-config '{"backend": "nccl"}'`, in bfloat16 also
    `--hf-overrides '{"head_dtype": "float32"}'`. Without `url`, rank 0 starts a server on this machine, which ends when
    rank 0 ends, however that happens. All ranks share the server. Seeds are those of `VLLMEngine`.

    With `urls` every push goes to all servers at once, and a completion is sampled by the one with the fewest
    unfinished; which one that is changes no random numbers. A server that fails is left out with a warning, and the
    others sample its completions, until it answers again at a later push.

    With `in_flight_weight_updates` weights may be pushed while a rollout is sampled. A server pauses its completions,
    takes the weights, computes the keys and values of these completions anew, and continues. So every token is drawn
    from one version of the policy, given the tokens before it, whichever version drew those; `Completion.segments`
    says which, and the log-probs are that version's. (Old keys and values are not kept, as PipelineRL does: with
    weights 5 % larger, log-probs were off by 1 to 3 nats at most, and vLLM cannot forget those of a prompt, which its
    later samples would read, while they are in use.)
    """

    runs_apart = True
    "Samples on processors of its own: training need not wait for it."

    def __init__(
        self,
        policy: str = "builtin",
        *,
        url: str | None = None,
        urls: list[str] | None = None,
        gpus: str | None = None,
        server_args: Mapping[str, str | int | float | bool] | None = None,
        head_dtype: HeadDtype = "float32",
        transfer: Transfer = "nccl",
        transfer_dir: str = "/dev/shm",
        wire_dtype: WireDtype | None = None,
        in_flight_weight_updates: bool = False,
        master_address: str = LOOPBACK,
        master_port: int | None = None,
        max_connections: int = 256,
        timeout_s: float = 3600.0,
        start_timeout_s: float = 1200.0,
    ) -> None:
        """Prepare an engine; nothing is started or asked before the first use.

        Args:
            policy: Directory, hub name or `builtin`; training fills in `model.policy`.
            url: URL of a running server, e.g. http://10.0.0.2:8000. With neither this nor `urls` one is started here.
            urls: URLs of several servers with the same arguments, e.g. [http://10.0.0.2:8000, http://10.0.0.3:8000],
                instead of `url`. Sampling begins as soon as one of them answers.
            gpus: CUDA_VISIBLE_DEVICES of the server started here, e.g. "6,7": GPUs that no rank trains on.
            server_args: Further arguments of the server started here, e.g. {tensor-parallel-size: 2}.
            head_dtype: As in `VLLMEngine`, of a server started here.
            transfer: `nccl`: vLLM's weight-transfer API over NCCL, from GPU to GPU; `ipc`: the same between a single
                rank and a server started here on the rank's GPU, whose server_args say kv-cache-memory-bytes; `file`:
                safetensors in `transfer_dir`, which server and rank 0 must both see, and vLLM's reload_weights.
            transfer_dir: For `file`: a directory in memory or on a fast disk, with room for the weights.
            wire_dtype: Type in which weights travel. None: the dtype in server_args, else bfloat16.
            in_flight_weight_updates: Push the weights after every optimizer step, also while a rollout is sampled,
                which continues with them; with `rollout.rollouts_ahead`. Needs vllm 0.32 or later, and of a server that
                is yours also `--enable-scale-out`.
            master_address: For `nccl`: the address by which the server reaches this machine.
            master_port: For `nccl`: a free port of this machine, with `urls` the first of one per server; None: find
                one.
            max_connections: Requests in flight at the same time, per rank and server.
            timeout_s: A server that takes longer for a request, or a push of weights, has failed; the engine has
                failed when none is left.
            start_timeout_s: Longest time until a server answers after the start.

        Raises:
            ValueError: options that have no effect together, or out of range.
        """
        server_args = dict(server_args or {})
        self.urls = urls_of(url, urls)
        if self.urls and (gpus is not None or server_args):
            given = "url" if urls is None else "urls"
            raise ValueError(
                f"rollout.engine: gpus and server_args are for a server started here, but {given} is given"
            )
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
        if transfer == "nccl":
            for each in self.urls:
                check_address(each, master_address)
        if transfer == "ipc":
            check_shared(self.urls, gpus, server_args)
        self.policy = policy
        self.gpus = gpus
        self.server_args = server_args
        self.head_dtype = head_dtype
        self.transfer = transfer
        self.transfer_dir = transfer_dir
        self.wire_dtype: torch.dtype = wire_dtype_of(wire_dtype, server_args)
        self.in_flight_weight_updates = in_flight_weight_updates
        self.master_address = master_address
        self.master_port = master_port
        self.max_connections = max_connections
        self.timeout_s = timeout_s
        self.start_timeout_s = start_timeout_s
        self.version: int | None = None
        self._links: list[Link] = []  # to all servers; empty: none was looked for
        self._fleet: Fleet | None = None  # those of them that have the weights of `version`
        self._run = ""  # of the labels that weights are given
        self._asker = Asker(policy, is_labelled=in_flight_weight_updates)

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Push a full set of weights from rank 0; all ranks must call this together, and wait until it has arrived.

        With `in_flight_weight_updates` other threads may be sampling; when the push fails, so does what they sample.

        Raises:
            ValueError: a weight is unknown, missing, or not finite.
            EngineError: the server failed.
        """
        if not self.in_flight_weight_updates:
            self.version = self._fleet = None
        self._connect("auto" if self.transfer == "file" else "dummy")  # vLLM reads no files over dummy weights
        try:
            taken = self._push_together(checked(named_tensors, weight_shapes(self.policy)), version)
        except BaseException as error:  # an interrupt, too: nobody is to wait for a server that is held
            self._give_up(error)
            raise
        if self._fleet is None:
            self._fleet = Fleet(self._links, taken)
        else:  # another thread may be asking it
            self._fleet.renew(taken)
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
        fleet = self._usable_fleet()
        jobs = [(index, sample) for index in range(len(prompts)) for sample in range(sampling.num_completions)]
        pool = ThreadPoolExecutor(self.max_connections * max(1, len(fleet.links)), thread_name_prefix="vllm")
        try:
            places = {
                pool.submit(fleet.ask, partial(self._sample, prompts[index], sample, sampling)): (index, sample)
                for index, sample in jobs
            }
            with fleet.watched():
                for future in as_completed(places):
                    yield *places[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def sample_each(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Part]:
        """Sample a share of the prompts, at least one, with every server: the first completion of each.

        Raises:
            ValueError: a server refuses a request.
            EngineError: all servers failed.
        """
        fleet = self._usable_fleet()
        links = fleet.links
        shares = {link: prompts[place :: len(links)] or prompts[:1] for place, link in enumerate(links)}

        def sample(link: Link) -> Part:
            with ThreadPoolExecutor(len(shares[link])) as pool:
                completions = list(pool.map(lambda prompt: self._sample(prompt, 0, sampling, link), shares[link]))
            return Part(name=link.server.url, prompts=shares[link], groups=[[each] for each in completions])

        return fleet.ask_each(sample)

    def memory(self, load: EngineLoad) -> EngineMemory | None:
        """Estimate the memory that a server on the same GPU holds; None: it has GPUs of its own."""
        if self.transfer != "ipc":
            return None
        return EngineMemory(weights_dtype=self.wire_dtype, kv_cache_bytes=int(self.server_args[CACHE_BYTES]))

    def sleep(self) -> bool:
        """Do nothing: the server has memory of its own."""
        return False

    def close(self) -> None:
        """Leave the transfer groups, and end the server if it was started here."""
        for link in self._links:
            link.close()
        self._links = []
        self._give_up(EngineError("the engine was closed"))

    def _usable_fleet(self) -> Fleet:
        """The servers to sample with, after a check that each has the weights that it was given.

        Raises:
            ValueError: no weights were pushed to servers that were not started here.
            EngineError: none is left.
        """
        if self.urls and self.version is None:
            raise ValueError("rollout.engine.url: nobody knows the weights of that server; they must be loaded first")
        self._connect("auto")
        self._asker.prepare()
        fleet = self._fleet = self._fleet or Fleet(self._links)
        if self.in_flight_weight_updates:  # weights may be on their way; every completion says which it has
            fleet.check()
        else:
            fleet.ask_each(Link.check)
        return fleet

    def _sample(self, prompt: Prompt, sample: int, sampling: Sampling, link: Link) -> Completion:
        return self._asker.ask(link.server, prompt, sample, sampling, None if self.version is None else self._run)

    def _give_up(self, failure: BaseException) -> None:
        """Stop all requests to the servers, and all waiting for them, until they are given weights again."""
        if self._fleet is not None:
            self._fleet.renew([], failure)
        self._fleet = self.version = None

    def _connect(self, load_format: Literal["auto", "dummy"]) -> None:
        """Find the servers, or start one; every rank learns where it is."""
        if self._links:
            return
        gpus = of_all_ranks(own_gpu())
        if not self.urls and self.transfer != "ipc":
            check_gpus(self.gpus, num_gpus(self.server_args), gpus)
        if self.transfer == "ipc" and len(gpus) > 1:
            raise ValueError("rollout.engine.transfer: ipc serves a single rank; with several take nccl and gpus")
        port, self._run = told_by_first_rank((free_port(LOOPBACK), uuid.uuid4().hex))
        urls = self.urls or [f"http://{LOOPBACK}:{port}"]
        self._links = [Link(url, self.timeout_s, is_in_flight=self.in_flight_weight_updates) for url in urls]
        failure = None
        try:
            if not self.urls and rank() == 0:
                launch = own_launch(
                    policy=self.policy,
                    server_args=self.server_args,
                    gpus=self.gpus,
                    head_dtype=self.head_dtype,
                    transfer=self.transfer,
                    is_labelled=self.in_flight_weight_updates,
                    load_format=load_format,
                    port=port,
                )
                self._links[0].process = Process(launch)
            if self.urls or rank() == 0:
                wait_until_ready([link.server for link in self._links], self._links[0].process, self.start_timeout_s)
        except EngineError as error:
            failure = error
        try:
            raise_together(failure)
        except (EngineError, ValueError):
            self.close()
            raise

    def _push_together(self, weights: Iterator[tuple[str, Tensor]], version: int) -> list[Link]:
        """Push; all ranks call this together, and learn which servers have the weights. Raises as `load_weights`."""
        taken: list[Link] = []
        failure: EngineError | ValueError | None = None
        try:
            taken = self._push(weights, label_of(version, self._run))
        except (EngineError, ValueError) as error:
            failure = error
            with suppress(ValueError):  # that a weight is wrong, which every rank sees
                _drain(weights)
        raise_together(failure)
        marks = told_by_first_rank({self._links.index(link): link.mark for link in taken})
        for index, mark in marks.items():
            self._links[index].mark = mark
        return [self._links[index] for index in marks]

    def _push(self, weights: Iterator[tuple[str, Tensor]], mark: str) -> list[Link]:
        """Give weights to all servers that answer; return those that took them. Only rank 0 has anything to do.

        Raises:
            ValueError: a weight is not what it should be, or every server refuses.
            EngineError: every server failed.
        """
        if rank() != 0:
            _drain(weights)
            return []
        links = self._answering()
        failures: Sequence[EngineError | ValueError | None]
        if self.transfer == "file":
            with TemporaryDirectory(prefix="weights-", dir=self.transfer_dir) as directory:
                save_shards(((name, tensor.to(self.wire_dtype)) for name, tensor in weights), Path(directory))
                with watched(lambda: links):
                    failures = at_once(lambda link: link.read(directory, mark), links)
        else:
            receivers = [partial(link.send, mark=mark, open_sender=self._open) for link in links]
            failures = fan_out(weights, self.wire_dtype, receivers)
        failed = {link: failure for link, failure in zip(links, failures, strict=True) if failure is not None}
        for link in failed:
            link.forget()
        if len(failed) == len(links):
            raise failed[links[0]]
        for link, failure in failed.items():
            tell_left_out(link, failure)
        return [link for link in links if link not in failed]

    def _answering(self) -> list[Link]:
        """The servers to push to; where there are several, those that answer that they are healthy."""
        if len(self._links) == 1:
            return self._links
        answers = dict(zip(self._links, at_once(Link.is_alive, self._links), strict=True))
        links = [link for link, is_alive in answers.items() if is_alive]
        if not links:
            raise EngineError(f"none of the vLLM servers at {', '.join(self.urls)} answers")
        for link in self._links:
            if link not in links:
                tell_left_out(link, "it does not answer")
                link.forget()
        return links

    def _open(self, link: Link) -> Sender:
        source = Source(weight_shapes(self.policy), self.wire_dtype)
        if self.transfer == "ipc":
            info = ipc_info(source)
        else:
            info = nccl_info(
                address=self.master_address,
                port=self.master_port + self._links.index(link) if self.master_port else free_port(),
                num_workers=link.server.get("get_world_size")["world_size"],
            )
        return Sender(server=link.server, is_alive=link.is_alive, source=source, init_info=info)


def _drain(weights: Iterator[tuple[str, Tensor]]) -> None:
    """Gather weights for nobody: gathering a sharded weight takes all ranks."""
    for _ in weights:
        pass
    if torch.cuda.is_available():  # rank 0 sends what is gathered from this one's shards, which training changes
        torch.cuda.current_stream().synchronize()
