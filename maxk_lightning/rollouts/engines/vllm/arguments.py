"""The settings of a colocated engine, and what vLLM is started with because of them."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from maxk_lightning.policy import resolve_policy
from maxk_lightning.policy.memory import GIB, EngineMemory, describe, kv_bytes_per_token, tensor_bytes
from maxk_lightning.rollouts.engines.vllm.footprint import fixed_bytes, prefill_bytes
from maxk_lightning.rollouts.engines.vllm.place import Place
from maxk_lightning.rollouts.engines.weights import engine_dtype, starting_dtype

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
HeadDtype = Literal["float32", "model"]
DEFAULT_UTILIZATION = 0.92
"Share of a GPU that vLLM takes by default."
ADMITTED_UTILIZATION = 0.01
"""Share that vLLM gets when the KV cache has a given size. vLLM refuses to start unless this share of the GPU is free
(0.92 by default), and does not use it otherwise once the cache has a size."""
BATCHED_TOKENS = 8192
"Tokens that vLLM computes at once on a GPU; its own 16384 cost 1 GiB more of activations at 7B."
CPU_BLOCK_TOKENS = 32
"""Tokens of a block of the KV cache on a CPU, the fewest that its attention takes. Only whole blocks of a prompt are
shared among its completions: with vLLM's 128 a prompt of 100 tokens was computed again for each of them."""
PROPOSED_COMPLETIONS = 128
"Completions held by the KV cache that an error message proposes."


@dataclass(frozen=True, slots=True, kw_only=True)
class VLLMSettings:
    """Arguments of `VLLMEngine`, which explains them."""

    policy: str
    "Directory, hub name or `builtin`."
    dtype: Dtype
    "Type of weights and computation."
    gpu_memory_utilization: float | None
    "Share of the GPU."
    kv_cache_gib: float | None
    "Size of the KV cache."
    max_model_len: int | None
    "Longest prompt and completion together."
    max_num_seqs: int
    "Completions at the same time."
    max_num_batched_tokens: int | None
    "Tokens computed at once."
    head_dtype: HeadDtype
    "Type of the logits."
    tensor_parallel_size: int
    "Ranks that share one copy of the weights."
    enforce_eager: bool
    "Whether to do without CUDA graphs."
    sleep_while_training: bool
    "Whether to give memory back between rollouts."
    timeout_s: float
    "Longest time of a rollout."

    def __post_init__(self) -> None:
        if self.gpu_memory_utilization is not None and self.kv_cache_gib is not None:
            raise ValueError("rollout.engine: give gpu_memory_utilization or kv_cache_gib, not both")
        share = self.gpu_memory_utilization
        if share is not None and not 0.0 < share <= 1.0:
            raise ValueError(f"rollout.engine.gpu_memory_utilization is {share}, must be in (0, 1]")
        if self.head_dtype not in ("float32", "model"):
            raise ValueError(f"rollout.engine.head_dtype is {self.head_dtype}, must be float32 or model")
        positive = ("kv_cache_gib", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "tensor_parallel_size")
        for name in (*positive, "timeout_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"rollout.engine.{name} is {value}, must be positive")

    def batched_tokens(self, *, on_gpu: bool) -> int | None:
        """Tokens that vLLM may compute at once; None: it decides."""
        return self.max_num_batched_tokens or (BATCHED_TOKENS if on_gpu else None)


def vllm_arguments(settings: VLLMSettings, place: Place, load_format: Literal["auto", "dummy"]) -> dict[str, Any]:
    """Make the arguments of `vllm.LLM`."""
    dtype = starting_dtype(settings.dtype, on_gpu=place.on_gpu)
    options = {
        **_shares(settings, on_gpu=place.on_gpu),
        "max_model_len": settings.max_model_len,
        "max_num_batched_tokens": settings.batched_tokens(on_gpu=place.on_gpu),
        # vLLM draws for a part of a prompt, too, and takes that back by a generator offset that CPUs lack.
        "enable_chunked_prefill": None if place.on_gpu else False,
        "block_size": None if place.on_gpu else CPU_BLOCK_TOKENS,
        "enable_sleep_mode": settings.sleep_while_training or None,
        "hf_overrides": head_overrides(settings.head_dtype, dtype),
        "tensor_parallel_size": settings.tensor_parallel_size if settings.tensor_parallel_size > 1 else None,
        "distributed_executor_backend": "external_launcher" if place.world_size > 1 else None,
    }
    return {
        "model": resolve_policy(settings.policy),
        "load_format": load_format,
        "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs",
        "dtype": dtype,
        "max_num_seqs": settings.max_num_seqs,
        "enforce_eager": settings.enforce_eager,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        **{name: value for name, value in options.items() if value is not None},
    }


def head_overrides(head_dtype: HeadDtype, dtype: torch.dtype) -> dict[str, str] | None:
    """Return what vLLM is to change in the model's configuration; None: nothing."""
    return {"head_dtype": "float32"} if head_dtype == "float32" and dtype != torch.float32 else None


def check_share(settings: VLLMSettings) -> None:
    """Refuse vLLM's default share of a GPU while a policy is on it.

    Raises:
        ValueError: neither a share nor a size of the KV cache is set; the message proposes one.
    """
    if settings.kv_cache_gib is not None or settings.gpu_memory_utilization is not None:
        return
    num_tokens = settings.max_model_len or int(describe(settings.policy, torch.bfloat16).config.max_position_embeddings)
    num_bytes = PROPOSED_COMPLETIONS * num_tokens * kv_bytes_per_token(settings.policy, torch.bfloat16)
    size = max(0.01, num_bytes / settings.tensor_parallel_size / GIB)
    raise ValueError(
        f"rollout.engine: vLLM would take {DEFAULT_UTILIZATION:.0%} of a GPU that the policy is on; set kv_cache_gib. "
        f"{size:.2g} holds {PROPOSED_COMPLETIONS} completions of {num_tokens} tokens (max_model_len)"
    )


def memory_of(settings: VLLMSettings, gpu_bytes: int | None) -> EngineMemory:
    """Estimate what an engine holds: its part of the weights, a KV cache of the configured size, and its workspace.

    Args:
        settings: Settings of the engine.
        gpu_bytes: Memory of its GPU; None: it has none.
    """
    on_gpu = gpu_bytes is not None
    dtype = engine_dtype(settings.dtype, on_gpu=on_gpu)
    model = describe(settings.policy, dtype)
    prefill = fixed = 0
    if on_gpu:
        num_tokens = settings.batched_tokens(on_gpu=True) or BATCHED_TOKENS
        prefill = prefill_bytes(model.config, dtype, num_tokens, settings.max_num_seqs) // settings.tensor_parallel_size
        fixed = fixed_bytes(model.config, settings.max_num_seqs, has_graphs=not settings.enforce_eager)
    if settings.kv_cache_gib is not None:
        kv_cache_bytes = int(settings.kv_cache_gib * GIB)
    else:
        share = int((settings.gpu_memory_utilization or DEFAULT_UTILIZATION) * (gpu_bytes or 0))
        weights = tensor_bytes(model.parameters()) // settings.tensor_parallel_size
        kv_cache_bytes = max(0, share - weights - prefill - fixed)
    return EngineMemory(
        weights_dtype=dtype,
        kv_cache_bytes=kv_cache_bytes,
        is_asleep_in_training=settings.sleep_while_training,
        num_shards=settings.tensor_parallel_size,
        prefill_bytes=prefill,
        fixed_bytes=fixed,
    )


def _shares(settings: VLLMSettings, *, on_gpu: bool) -> dict[str, float | int | None]:
    """How much memory vLLM may take."""
    if settings.kv_cache_gib is None:
        return {"gpu_memory_utilization": settings.gpu_memory_utilization}
    return {
        "kv_cache_memory_bytes": int(settings.kv_cache_gib * GIB),
        "gpu_memory_utilization": ADMITTED_UTILIZATION if on_gpu else None,
    }
