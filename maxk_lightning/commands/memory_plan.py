"""The facts of a configured run that `maxk_lightning.policy.memory` needs."""

from dataclasses import dataclass

import torch
from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from maxk_lightning.callbacks import RolloutCallback
from maxk_lightning.datamodule import PromptDataModule
from maxk_lightning.module import PolicyModule
from maxk_lightning.policy.memory import GIB, EngineMemory, Workload, describe, kv_bytes_per_token, tensor_bytes
from maxk_lightning.rollouts import TransformersEngine, VLLMEngine, VLLMServerEngine

CUDA_OVERHEAD_BYTES = 3 * GIB
"An assumption: context, NCCL and cuBLAS workspaces, vLLM's CUDA graphs, fragmentation."
DEFAULT_UTILIZATION = 0.9
"What vLLM takes of a GPU when nobody says how much."
COMPUTE = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"Types of matrix products by `trainer.precision`; otherwise that of the weights."


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the Trainer says."""

    num_ranks: int = 1
    "GPUs, or processes."
    precision: str = "32-true"
    "`trainer.precision`."
    is_sharded: bool = False
    "Whether the strategy is FSDP2."
    reduces_every_micro_batch: bool = False
    "See `FSDP2Strategy`."
    has_gpu: bool = False
    "Whether ranks run on GPUs."
    capacity_bytes: int | None = None
    "Memory of a GPU."


def machine_of(trainer: Trainer) -> Machine:
    """What the ranks of a Trainer run on."""
    strategy = trainer.strategy
    has_gpu = strategy.root_device.type == "cuda"
    return Machine(
        num_ranks=trainer.world_size,
        precision=str(trainer.precision),
        is_sharded=isinstance(strategy, ModelParallelStrategy),
        reduces_every_micro_batch=bool(getattr(strategy, "reduce_every_micro_batch", False)),
        has_gpu=has_gpu,
        capacity_bytes=torch.cuda.get_device_properties(strategy.root_device).total_memory if has_gpu else None,
    )


def plan_of(module: PolicyModule, data: PromptDataModule, rollout: RolloutCallback, machine: Machine) -> Workload:
    """What the memory of a run depends on.

    Raises:
        ValueError: the policy cannot be described.
    """
    weights_dtype = getattr(torch, module.dtype_name)
    groups_per_step = -(-data.prompts_per_step // machine.num_ranks)
    num_groups = min(groups_per_step, module.prompts_per_micro_batch or groups_per_step)
    return Workload(
        policy=module.policy_name,
        lora=module.lora,
        weights_dtype=weights_dtype,
        compute_dtype=COMPUTE.get(machine.precision, weights_dtype),
        optimizer=module.optimizer_from,
        has_reference=module.kl_target == "reference",
        is_checkpointing=module.gradient_checkpointing,
        num_groups=num_groups,
        num_completions=rollout.sampling.num_completions,
        max_prompt_tokens=data.max_prompt_tokens,
        max_new_tokens=rollout.sampling.max_new_tokens,
        max_row_tokens=module.max_row_tokens,
        num_ranks=machine.num_ranks,
        is_sharded=machine.is_sharded,
        has_whole_gradients=not machine.reduces_every_micro_batch and num_groups < groups_per_step,
        engine=_engine_memory(data, rollout, machine),
        overhead_bytes=CUDA_OVERHEAD_BYTES if machine.has_gpu else 0,
    )


def _engine_memory(data: PromptDataModule, rollout: RolloutCallback, machine: Machine) -> EngineMemory | None:
    """None for an engine whose memory is elsewhere, or its own affair."""
    engine = rollout.engine
    if isinstance(engine, TransformersEngine):
        sampling = rollout.sampling
        num_rows = min(engine.max_batch_rows, data.prompts_per_rollout * sampling.num_completions)
        width = data.max_prompt_tokens + sampling.max_new_tokens
        kv_cache_bytes = num_rows * width * kv_bytes_per_token(engine.policy, torch.float32)
        return EngineMemory(weights_dtype=torch.float32, kv_cache_bytes=kv_cache_bytes)
    if not isinstance(engine, VLLMEngine):
        return None
    auto = "bfloat16" if machine.has_gpu else "float32"
    dtype = getattr(torch, auto if engine.dtype == "auto" else engine.dtype)
    if engine.kv_cache_gib is not None:
        kv_cache_bytes = int(engine.kv_cache_gib * GIB)
    else:
        share = engine.gpu_memory_utilization or DEFAULT_UTILIZATION
        weights = tensor_bytes(describe(engine.policy, dtype).parameters())
        kv_cache_bytes = max(0, int(share * (machine.capacity_bytes or 0)) - weights)
    return EngineMemory(
        weights_dtype=dtype, kv_cache_bytes=kv_cache_bytes, is_asleep_in_training=engine.sleep_while_training
    )


def remark_on(rollout: RolloutCallback) -> str:
    """What the table leaves out."""
    engine = rollout.engine
    if isinstance(engine, TransformersEngine | VLLMEngine):
        return ""
    where = "on GPUs of its own" if isinstance(engine, VLLMServerEngine) else "unknown, and not counted"
    return f"memory of rollout.engine ({type(engine).__name__}): {where}"
