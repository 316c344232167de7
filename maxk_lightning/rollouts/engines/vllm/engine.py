"""Rollouts from vLLM in this process. Run with vLLM 0.32; made for 0.26 to 0.33."""

import gc
import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from maxk_lightning.policy import load_stop_tokens, load_tokenizer, resolve_policy, weight_shapes
from maxk_lightning.policy.memory import GIB, EngineMemory, describe, tensor_bytes
from maxk_lightning.rollouts.engine import EngineError, EngineLoad, in_groups
from maxk_lightning.rollouts.engines.text import answer_text
from maxk_lightning.rollouts.engines.vllm.entropy import entropy_recorder
from maxk_lightning.rollouts.engines.vllm.errors import as_engine_error, finish_reason
from maxk_lightning.rollouts.engines.vllm.footprint import MAX_BATCHED_TOKENS, fixed_bytes, prefill_bytes
from maxk_lightning.rollouts.engines.weights import checked, engine_dtype
from maxk_lightning.seeds import derive_seed
from maxk_lightning.types import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
DEFAULT_UTILIZATION = 0.92
"Share of a GPU that vLLM 0.32 takes where nobody says how much."
MISSING = "rollout.engine: VLLMEngine needs vLLM: pip install vllm (on a CPU: scripts/test.sh --all shows how)"


class VLLMEngine:
    """vLLM colocated with the policy: one engine per rank, in the process of the rank.

    Every completion is a request of its own with a seed from (prompt seed, sample), so that no two samples of a run
    share random numbers, and a resumed run repeats them. The engine starts with dummy weights at the first
    `load_weights`, or with the weights of `policy` at a `generate` before it (the `evaluate` command): it never samples
    from weights that nobody chose. The model's generation_config is not applied, except for its stop tokens.
    """

    def __init__(
        self,
        policy: str = "builtin",
        *,
        dtype: Dtype = "auto",
        gpu_memory_utilization: float | None = None,
        kv_cache_gib: float | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int | None = None,
        enforce_eager: bool = False,
        sleep_while_training: bool = False,
        record_entropy: bool = False,
        timeout_s: float = 3600.0,
    ) -> None:
        """Prepare an engine; vLLM is imported and started at the first use.

        Args:
            policy: Directory, hub name or `builtin`; training fills in `model.policy`.
            dtype: Of weights and computation; `auto`: bfloat16 on a GPU, float32 on a CPU.
            gpu_memory_utilization: Share of the GPU that vLLM takes, weights included. Not with `kv_cache_gib`.
            kv_cache_gib: Size of the KV cache. The way to share a GPU with training: what is left is told exactly.
            max_model_len: Longest prompt + completion; None: the policy's own limit.
            max_num_seqs: Completions generated at the same time.
            max_num_batched_tokens: Tokens read in one pass; longer prompts are read in parts on a GPU. More take more
                memory. None: 8192 on a GPU, vLLM's choice on a CPU.
            enforce_eager: No CUDA graphs: slower, starts sooner.
            sleep_while_training: Free the KV cache and the weights between rollouts (CUDA only).
            record_entropy: Also tell the entropy of the distribution each token was drawn from, before top_p; costs
                a pass over the logits per token. For `evaluate`; training measures entropies itself.
            timeout_s: A call of `generate` that takes longer counts as a failed engine; looked at between steps.

        Raises:
            ValueError: a value out of range, or both ways to size the KV cache.
        """
        if gpu_memory_utilization is not None and kv_cache_gib is not None:
            raise ValueError("rollout.engine: give gpu_memory_utilization or kv_cache_gib, not both")
        if gpu_memory_utilization is not None and not 0.0 < gpu_memory_utilization <= 1.0:
            raise ValueError(f"rollout.engine.gpu_memory_utilization is {gpu_memory_utilization}, must be in (0, 1]")
        limits = {
            "kv_cache_gib": kv_cache_gib,
            "max_model_len": max_model_len,
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": max_num_batched_tokens,
            "timeout_s": timeout_s,
        }
        for name, value in limits.items():
            if value is not None and not value > 0:
                raise ValueError(f"rollout.engine.{name} is {value}, must be positive")
        self.policy = policy
        self.dtype = dtype
        self.gpu_memory_utilization = gpu_memory_utilization
        self.kv_cache_gib = kv_cache_gib
        self.max_model_len = max_model_len
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.enforce_eager = enforce_eager
        self.sleep_while_training = sleep_while_training
        self.record_entropy = record_entropy
        self.timeout_s = timeout_s
        self.version: int | None = None
        self.llm: Any = None
        "The running vllm.LLM."
        self.stop_tokens: list[int] = []
        "Tokens that end a completion, known once vLLM runs."
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._is_asleep = False
        self._shares_process_group = False
        self._num_requests = 0
        self._entropies: dict[str, dict[int, float]] = {}  # by request and position

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Push a full set of weights, one tensor at a time, and forget what was cached under the old ones.

        Raises:
            ValueError: a weight is unknown, missing, or not finite.
            EngineError: vLLM failed.
        """
        self._start("dummy")
        self.version = None  # until all of them have arrived
        weights = checked(named_tensors, weight_shapes(self.policy))
        with as_engine_error("loading weights"):
            if self._is_asleep:
                self.llm.wake_up(["weights"])
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            if self._is_asleep:
                self.llm.wake_up(["kv_cache"])
            if not self.llm.reset_prefix_cache():
                raise EngineError("vLLM could not reset its prefix cache")
        self._is_asleep = False
        self.version = version

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """Sample completions, all prompts together."""
        return in_groups(self.stream(prompts, sampling), len(prompts), sampling.num_completions)

    def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, int, Completion]]:
        """Yield the same completions as they end: (index of the prompt, sample in its group, completion).

        Raises:
            ValueError: a prompt leaves no room for a completion.
            EngineError: vLLM failed, took too long, or sleeps without weights.
        """
        self._start("auto")
        if self._is_asleep:
            raise EngineError("vLLM sleeps: load weights before the next sample")
        self._check_lengths(prompts, sampling)
        engine = self.llm.llm_engine
        places = {}
        try:
            for index, prompt in enumerate(prompts):
                for sample in range(sampling.num_completions):
                    self._num_requests += 1
                    name = str(self._num_requests)
                    with as_engine_error("generating"):
                        parameters = self._parameters(name, prompt, sample, sampling)
                        engine.add_request(name, {"prompt_token_ids": list(prompt.token_ids)}, parameters)
                    places[name] = index, sample
            for output in self._outputs(engine):
                index, sample = places.pop(output.request_id)
                yield index, sample, self._completion(output.request_id, prompts[index], output.outputs[0])
        except EngineError:
            places.clear()  # nothing can be asked of an engine that failed
            raise
        finally:
            self._entropies.clear()
            if places and self.llm is not None:  # stopped early
                engine.abort_request(list(places))

    def memory(self, load: EngineLoad) -> EngineMemory:
        """Tell what it will hold: its copy of the weights, a KV cache of the configured size, and its workspace."""
        on_gpu = load.gpu_bytes is not None
        dtype = engine_dtype(self.dtype, on_gpu=on_gpu)
        model = describe(self.policy, dtype)
        prefill = fixed = 0
        if on_gpu:
            num_tokens = self.max_num_batched_tokens or MAX_BATCHED_TOKENS
            prefill = prefill_bytes(model.config, dtype, num_tokens, self.max_num_seqs)
            fixed = fixed_bytes(model.config, self.max_num_seqs, has_graphs=not self.enforce_eager)
        if self.kv_cache_gib is not None:
            kv_cache_bytes = int(self.kv_cache_gib * GIB)
        else:
            share = int((self.gpu_memory_utilization or DEFAULT_UTILIZATION) * (load.gpu_bytes or 0))
            kv_cache_bytes = max(0, share - tensor_bytes(model.parameters()) - prefill - fixed)
        return EngineMemory(
            weights_dtype=dtype,
            kv_cache_bytes=kv_cache_bytes,
            is_asleep_in_training=self.sleep_while_training,
            prefill_bytes=prefill,
            fixed_bytes=fixed,
        )

    def sleep(self) -> bool:
        """Drop weights and KV cache, where `sleep_while_training` says so."""
        if not self.sleep_while_training or self.llm is None:
            return False
        with as_engine_error("going to sleep"):
            self.llm.sleep(level=2)
        self._is_asleep, self.version = True, None
        return True

    def close(self) -> None:
        """Free vLLM's memory; a process group that stood before vLLM started stays."""
        if self.llm is None:
            return
        from vllm.distributed.parallel_state import destroy_model_parallel

        client = self.llm.llm_engine.engine_core
        if self._shares_process_group:
            # `shutdown`, also the one that runs when the client is freed, would destroy the trainer's group with it.
            client._finalizer.detach()
            client.engine_core.structured_output_manager.clear_backend()
            client.engine_core.model_executor.shutdown()
            client.engine_core.scheduler.shutdown()
            gc.unfreeze()
        else:
            client.shutdown()
        self.llm, self._is_asleep, self.version = None, False, None
        destroy_model_parallel()
        del client
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _start(self, load_format: Literal["auto", "dummy"]) -> None:
        """Start vLLM unless it runs; on several ranks all of them must come here together."""
        if self.llm is not None:
            return
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, where weights can be handed over
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        self._shares_process_group = torch.distributed.is_initialized()
        world_size = torch.distributed.get_world_size() if self._shares_process_group else 1
        on_gpu = torch.cuda.is_available()
        if world_size > 1:  # what torchrun sets, and other launchers do not
            os.environ["RANK"] = str(torch.distributed.get_rank())
            os.environ["WORLD_SIZE"] = str(world_size)
            os.environ["LOCAL_RANK"] = str(torch.cuda.current_device()) if on_gpu else os.environ.get("LOCAL_RANK", "0")
        try:
            from vllm import LLM
        except ImportError as error:
            raise ValueError(f"{MISSING} ({error})") from error
        options = {
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "kv_cache_memory_bytes": None if self.kv_cache_gib is None else int(self.kv_cache_gib * 2**30),
            "max_model_len": self.max_model_len,
            "max_num_batched_tokens": self.max_num_batched_tokens or (MAX_BATCHED_TOKENS if on_gpu else None),
            # vLLM draws for a part of a prompt, too, and takes that back by a generator offset that CPUs lack.
            "enable_chunked_prefill": None if on_gpu else False,
            "enable_sleep_mode": self.sleep_while_training or None,
            "logits_processors": [entropy_recorder(self._entropies)] if self.record_entropy else None,
            "distributed_executor_backend": "external_launcher" if world_size > 1 else None,
        }
        with as_engine_error("starting"), _undisturbed_generators(), torch.inference_mode(False):
            self.llm = LLM(
                model=resolve_policy(self.policy),
                load_format=load_format,
                generation_config="vllm",
                logprobs_mode="processed_logprobs",
                dtype=engine_dtype(self.dtype, on_gpu=on_gpu),
                max_num_seqs=self.max_num_seqs,
                enforce_eager=self.enforce_eager,
                enable_prefix_caching=True,
                disable_log_stats=True,
                **{name: value for name, value in options.items() if value is not None},
            )
        self._tokenizer = load_tokenizer(self.policy)
        self.stop_tokens = sorted(load_stop_tokens(self.policy, self._tokenizer))

    def _parameters(self, name: str, prompt: Prompt, sample: int, sampling: Sampling) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            n=1,
            output_kind=RequestOutputKind.FINAL_ONLY,
            seed=derive_seed(prompt.seed, sample),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=self.stop_tokens,
            stop=list(sampling.stop),
            logprobs=0,  # of the sampled token
            extra_args={"request": name} if self.record_entropy else None,
            flat_logprobs=True,
            detokenize=bool(sampling.stop),  # only to find them
        )

    def _check_lengths(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        limit = self.llm.llm_engine.model_config.max_model_len
        longest = max((len(prompt.token_ids) for prompt in prompts), default=0)
        if longest + sampling.max_new_tokens > limit:
            raise ValueError(
                f"rollout.engine.max_model_len is {limit}, too short for a prompt of {longest} tokens "
                f"and {sampling.max_new_tokens} new ones"
            )

    def _outputs(self, engine: Any) -> Iterator[Any]:
        """Finished requests, as they finish."""
        deadline = time.monotonic() + self.timeout_s
        while engine.has_unfinished_requests():
            with as_engine_error("generating"):
                outputs = engine.step()
            if time.monotonic() > deadline:
                raise EngineError(f"vLLM took longer than rollout.engine.timeout_s ({self.timeout_s:g} s)")
            yield from (output for output in outputs if output.finished)

    def _completion(self, name: str, prompt: Prompt, output: Any) -> Completion:
        assert self._tokenizer is not None
        tokens = tuple(output.token_ids)
        entropies = self._entropies.pop(name) if self.record_entropy else None
        return Completion(
            token_ids=tokens,
            logprobs=tuple(output.logprobs.logprobs),
            entropies=None if entropies is None else tuple(entropies[position] for position in range(len(tokens))),
            text=answer_text(self._tokenizer, prompt, tokens),
            finish_reason=finish_reason(output.finish_reason),
        )


@contextmanager
def _undisturbed_generators() -> Iterator[None]:
    """Put the global random generators back, which vLLM seeds when it starts."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []  # all of them would be warned of
    with torch.random.fork_rng(devices):
        yield
    random.setstate(python)
    np.random.set_state(numpy)
