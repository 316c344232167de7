"""Weights on their way from the policy to an engine."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from maxk_lightning.policy.processor import tell_of_slow_bfloat16

SHARD_BYTES = 4 << 30
"Size at which a file of weights is closed; bounds the copies in memory."


def engine_dtype(name: str, *, on_gpu: bool) -> torch.dtype:
    """Return the type that an engine's `dtype` names; `auto`: bfloat16 on a GPU, float32 on a CPU."""
    auto = "bfloat16" if on_gpu else "float32"
    dtype: torch.dtype = getattr(torch, auto if name == "auto" else name)
    return dtype


def starting_dtype(name: str, *, on_gpu: bool) -> torch.dtype:
    """`engine_dtype` of an engine that starts; warns where this processor is slow with it."""
    dtype = engine_dtype(name, on_gpu=on_gpu)
    if dtype == torch.bfloat16 and not on_gpu:
        tell_of_slow_bfloat16("rollout.engine.dtype", "float32")
    return dtype


def complete(named_tensors: Iterable[tuple[str, Tensor]], expected: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the same tensors; ValueError when a weight is unknown, given twice or missing.

    Else a missing weight would silently keep its old value (a tied head on CPU, part of a fused projection).
    """
    missing = set(expected)
    for name, tensor in named_tensors:
        if name not in missing:
            raise ValueError(f"weight {name} is unknown to the rollout engine, or given twice")
        missing.discard(name)
        yield name, tensor
    if missing:
        raise ValueError(f"the rollout engine was not given {len(missing)} weights, among them {min(missing)}")


def checked(named_tensors: Iterable[tuple[str, Tensor]], expected: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield as `complete`; ValueError when a weight is not finite: one generation with NaN poisons vLLM's KV blocks."""
    for name, tensor in complete(named_tensors, expected):
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"weight {name} is not finite: training has diverged")
        yield name, tensor


def save_shards(named_tensors: Iterable[tuple[str, Tensor]], directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write weights as safetensors files of bounded size."""
    shards = 0
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in named_tensors:
        shard[name] = tensor.detach().to("cpu", copy=True)  # safetensors refuses tensors that share memory
        size += tensor.nbytes
        if size >= shard_bytes:
            _save(shard, directory, shards)
            shards, shard, size = shards + 1, {}, 0
    if shard:
        _save(shard, directory, shards)


def _save(shard: dict[str, Tensor], directory: Path, index: int) -> None:
    from safetensors.torch import save_file

    save_file(shard, directory / f"model-{index:05d}.safetensors")
