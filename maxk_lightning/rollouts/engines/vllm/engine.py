"""Rollouts from vLLM in this process. Run with vLLM 0.32; made for 0.26 to 0.33."""

import gc
import itertools
import logging
import os
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from maxk_lightning.policy import load_stop_tokens, load_tokenizer, weight_shapes
from maxk_lightning.policy.memory import EngineMemory
from maxk_lightning.rollouts.engine import EngineError, EngineLoad, in_groups
from maxk_lightning.rollouts.engines.text import answer_text
from maxk_lightning.rollouts.engines.vllm.arguments import (
    Dtype,
    HeadDtype,
    VLLMSettings,
    check_share,
    memory_of,
    vllm_arguments,
)
from maxk_lightning.rollouts.engines.vllm.entropy import PROMPT_TOKENS, REQUEST, Entropies, entropy_recorder
from maxk_lightning.rollouts.engines.vllm.errors import as_engine_error, finish_reason
from maxk_lightning.rollouts.engines.vllm.peers import Peers
from maxk_lightning.rollouts.engines.vllm.place import Place, current_place
from maxk_lightning.rollouts.engines.weights import checked
from maxk_lightning.seeds import derive_seed
from maxk_lightning.types import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
STEPS_PER_LOOK = 64
"Steps between two checks of the clock, on which several ranks must agree."
ABANDONED: list[Any] = []
"Engines of this process that sleep and could not be closed; vLLM's allocator is one per process."
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
        head_dtype: HeadDtype = "float32",
        tensor_parallel_size: int = 1,
        enforce_eager: bool = False,
        sleep_while_training: bool = False,
        record_entropy: bool = False,
        timeout_s: float = 3600.0,
    ) -> None:
        """Prepare an engine; vLLM is imported and started at the first use.

        Args:
            policy: Directory, hub name or `builtin`; training fills in `model.policy`.
            dtype: Type of weights and computation; `auto`: bfloat16 on a GPU, float32 on a CPU.
            gpu_memory_utilization: Share of the GPU that vLLM takes, weights included; this much must be free when it
                starts. Not with `kv_cache_gib`.
            kv_cache_gib: Size of the KV cache in GiB. The way to share a GPU with training, which needs one of the two.
            max_model_len: Longest prompt + completion, in tokens; None: the policy's own limit.
            max_num_seqs: Completions generated at the same time.
            max_num_batched_tokens: Tokens that it computes in one step, prompts included; their activations are its
                memory beside weights and KV cache. None: 8192 on a GPU, vLLM's own choice on a CPU.
            head_dtype: Type of the logits: `float32`, as the trainer computes them, whatever `dtype` is; or `model`,
                that of the model: bfloat16 rounds logits of 16 to 32 to eighths.
            tensor_parallel_size: Ranks that share one copy of the weights, for policies that one GPU cannot hold
                twice. Those are neighbours; the number of ranks must be a multiple. Not with `rollouts_ahead`.
            enforce_eager: No CUDA graphs: slower, starts sooner.
            sleep_while_training: Free the KV cache and the weights between rollouts (CUDA only).
            record_entropy: Also report the entropy of the distribution each token was drawn from, before top_p; costs
                a pass over the logits per token. For `evaluate`; training measures entropies itself.
            timeout_s: A call of `generate` that takes longer counts as a failed engine; checked between steps.

        Raises:
            ValueError: a value out of range, or both ways to size the KV cache.
        """
        self._settings = VLLMSettings(
            policy=policy,
            dtype=dtype,
            gpu_memory_utilization=gpu_memory_utilization,
            kv_cache_gib=kv_cache_gib,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            head_dtype=head_dtype,
            tensor_parallel_size=tensor_parallel_size,
            enforce_eager=enforce_eager,
            sleep_while_training=sleep_while_training,
            timeout_s=timeout_s,
        )
        self.policy = policy
        self.tensor_parallel_size = tensor_parallel_size
        self.sleep_while_training = sleep_while_training
        self.record_entropy = record_entropy
        self.timeout_s = timeout_s
        self.version: int | None = None
        self.llm: Any = None
        "The running vllm.LLM."
        self.stop_tokens: list[int] = []
        "Tokens that end a completion, known once vLLM runs."
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._asleep: list[str] = []  # parts of its memory that it has given back, by vLLM's names
        self._is_torn = False  # some of its weights are old, or missing
        self._shares_process_group = False
        self._num_requests = 0
        self._entropies = Entropies()
        self._peers = Peers(1)

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Push a full set of weights, one tensor at a time, and forget what was cached under the old ones.

        Raises:
            ValueError: a weight is unknown, missing, or not finite; or options that cannot work here.
            EngineError: vLLM failed.
        """
        self._start("dummy")
        self.version, self._is_torn = None, True  # until all of them have arrived
        failure = None
        try:
            self._take_over(checked(named_tensors, weight_shapes(self.policy)))
        except EngineError as error:
            failure = error
        if self._peers.any_true(failure is not None):  # the others would wait for this rank at their next sample
            raise failure or EngineError("vLLM failed in another rank of this engine")
        self.version, self._is_torn = version, False

    def _take_over(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        with as_engine_error("loading weights"):
            self._wake("weights")
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            self._wake("kv_cache")
            if not self.llm.reset_prefix_cache():
                raise EngineError("vLLM could not reset its prefix cache")

    def _wake(self, *tags: str) -> None:
        """Take memory back that was given away in `sleep`."""
        asleep = [tag for tag in tags if tag in self._asleep]
        if asleep:
            self.llm.wake_up(asleep)
            self._asleep = [tag for tag in self._asleep if tag not in asleep]

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """Sample completions, all prompts together."""
        return in_groups(self.stream(prompts, sampling), len(prompts), sampling.num_completions)

    def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, int, Completion]]:
        """Yield the same completions as they end: (index of the prompt, sample in its group, completion).

        Raises:
            ValueError: a prompt leaves no room for a completion.
            EngineError: vLLM failed, took too long, or has no whole set of weights.
        """
        self._start("auto")
        if self._asleep:
            raise EngineError("vLLM sleeps: load weights before the next sample")
        if self._is_torn:  # it would wait for ever
            raise EngineError("the last push of weights to vLLM ended halfway: load weights before the next sample")
        joined, first = self._peers.join(prompts)
        self._check_lengths(joined, sampling)
        engine = self.llm.llm_engine
        places, outputs = {}, self._outputs(engine)
        try:
            for index, prompt in enumerate(joined):
                for sample in range(sampling.num_completions):
                    self._num_requests += 1
                    name = str(self._num_requests)
                    with as_engine_error("generating"):
                        parameters = self._parameters(name, prompt, sample, sampling)
                        engine.add_request(name, {"prompt_token_ids": list(prompt.token_ids)}, parameters)
                    places[name] = index - first, sample
            for output in outputs:
                index, sample = places.pop(output.request_id)
                if 0 <= index < len(prompts):  # the others are those of a peer
                    yield index, sample, self._completion(output.request_id, prompts[index], output.outputs[0])
        except EngineError:
            places.clear()  # nothing can be asked of an engine that failed
            raise
        finally:
            if places and self.llm is not None:  # stopped early
                if self.tensor_parallel_size == 1:
                    engine.abort_request(list(places))
                else:  # peers compute every step together: what was begun is sampled to the end
                    deque(outputs, maxlen=0)
            self._entropies.clear()

    def memory(self, load: EngineLoad) -> EngineMemory:
        """Estimate its memory: its copy of the weights, a KV cache of the configured size, and its workspace."""
        return memory_of(self._settings, load.gpu_bytes)

    def sleep(self) -> bool:
        """Drop weights and KV cache if `sleep_while_training` is set; True: load weights before the next sample."""
        if not self.sleep_while_training or self.llm is None:
            return False
        with as_engine_error("going to sleep"):
            self.llm.sleep(level=2)
        self._asleep, self.version = ["weights", "kv_cache"], None
        return True

    def close(self) -> None:
        """Free vLLM's memory; a process group that existed before vLLM started stays.

        An engine that sleeps is woken first: freeing memory that it has given back breaks vLLM's allocator for the rest
        of this process. Where there is no room to wake it, the engine is left as it is, and no other one can start.
        """
        if self.llm is None:
            return
        try:
            with as_engine_error("waking up"):
                self._wake(*self._asleep)
        except EngineError as error:
            logger.warning("vLLM was to be closed and keeps its memory: %s", error)
            ABANDONED.append(self.llm)
        else:
            self._shut_down()
        self.llm, self._asleep, self._is_torn, self.version = None, [], False, None
        self._peers.close()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _shut_down(self) -> None:
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
        self.llm = None
        destroy_model_parallel()

    def _start(self, load_format: Literal["auto", "dummy"]) -> None:
        """Start vLLM unless it runs; all ranks must call this together."""
        if self.llm is not None:
            return
        if ABANDONED:
            raise EngineError("a vLLM that slept could not be woken to be closed; only a new process can start another")
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, where weights can be handed over
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        self._shares_process_group = torch.distributed.is_initialized()
        place = current_place()
        place.check(self.tensor_parallel_size)
        if place.on_gpu and load_format == "dummy":
            check_share(self._settings)
        place.announce()
        try:
            from vllm import LLM
        except ImportError as error:
            raise ValueError(f"{MISSING} ({error})") from error
        with as_engine_error("starting", also_values=True), _undisturbed_generators(), torch.inference_mode(False):
            self._entropies = Entropies()
            self.llm = LLM(**self._arguments(place, load_format))
        if place.on_gpu and torch.cuda.current_device() != place.device_index:
            raise EngineError(f"vLLM has changed the device of this process from cuda:{place.device_index}")
        self._peers = Peers(self.tensor_parallel_size)
        self._tokenizer = load_tokenizer(self.policy)
        self.stop_tokens = sorted(load_stop_tokens(self.policy, self._tokenizer))

    def _arguments(self, place: Place, load_format: Literal["auto", "dummy"]) -> dict[str, Any]:
        arguments = vllm_arguments(self._settings, place, load_format)
        if self.record_entropy:
            arguments["logits_processors"] = [entropy_recorder(self._entropies, arguments)]
        return arguments

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
            extra_args={REQUEST: name, PROMPT_TOKENS: len(prompt.token_ids)} if self.record_entropy else None,
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
        for step in itertools.count():
            if not engine.has_unfinished_requests():
                return
            with as_engine_error("generating"):
                outputs = engine.step()
            if self._is_over(deadline, step):
                raise EngineError(f"vLLM took longer than rollout.engine.timeout_s ({self.timeout_s:g} s)")
            yield from (output for output in outputs if output.finished)

    def _is_over(self, deadline: float, step: int) -> bool:
        """Whether time is up, for all ranks of this engine in the same step: they compute every step together."""
        is_over = time.monotonic() > deadline
        if self.tensor_parallel_size == 1:
            return is_over
        return step % STEPS_PER_LOOK == 0 and self._peers.any_true(is_over)

    def _completion(self, name: str, prompt: Prompt, output: Any) -> Completion:
        assert self._tokenizer is not None
        tokens = tuple(output.token_ids)
        return Completion(
            token_ids=tokens,
            logprobs=tuple(output.logprobs.logprobs),
            entropies=self._entropies.take(name, len(tokens)) if self.record_entropy else None,
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
