"""The facts of a configured run that `maxk_lightning.policy.memory` needs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from maxk_lightning.callbacks import RolloutCallback
from maxk_lightning.datamodule import PromptDataModule
from maxk_lightning.module import PolicyModule
from maxk_lightning.policy.memory import GIB, EngineMemory, Workload
from maxk_lightning.rollouts import EngineLoad, MeasuredEngine

CUDA_OVERHEAD_BYTES = 3 * GIB
"An assumption: context, NCCL and cuBLAS workspaces, fragmentation."
COMPUTE = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"Types of matrix products by `trainer.precision`; otherwise that of the weights."


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Machine and strategy of a run, as its Trainer says."""

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
    """Describe what the ranks of a Trainer run on."""
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


def gpus_wanted(trainer: Mapping[str, Any]) -> int:
    """How many GPUs of this node a configured Trainer asks for; 0: none.

    >>> [gpus_wanted({"accelerator": "gpu", "devices": devices}) for devices in (8, [2, 3], "0,1,4", "2")]
    [8, 2, 3, 2]
    """
    if trainer.get("accelerator") not in ("gpu", "cuda"):
        return 0
    devices = trainer.get("devices")
    if isinstance(devices, str) and "," in devices:
        devices = devices.strip(",").split(",")
    if isinstance(devices, list):
        return len(devices)
    is_number = str(devices).isdecimal()
    return int(devices) if is_number and devices is not None else max(1, torch.cuda.device_count())


def on_gpus(machine: Machine) -> Machine:
    """The same ranks on GPUs: like the first of this machine, or of a size that is not known."""
    num_bytes = torch.cuda.get_device_properties(0).total_memory if torch.cuda.device_count() else None
    return replace(machine, has_gpu=True, capacity_bytes=num_bytes)


def workload_of(module: PolicyModule, data: PromptDataModule, rollout: RolloutCallback, machine: Machine) -> Workload:
    """Collect what the memory of a run depends on.

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
        capacity_bytes=machine.capacity_bytes,
    )


def _engine_memory(data: PromptDataModule, rollout: RolloutCallback, machine: Machine) -> EngineMemory | None:
    """None for an engine whose memory is elsewhere, or its own affair."""
    if not isinstance(rollout.engine, MeasuredEngine):
        return None
    load = EngineLoad(
        num_completions=data.prompts_per_rollout * rollout.sampling.num_completions,
        max_tokens=data.max_prompt_tokens + rollout.sampling.max_new_tokens,
        gpu_bytes=(machine.capacity_bytes or 0) if machine.has_gpu else None,
    )
    return rollout.engine.memory(load)


def remark_on(rollout: RolloutCallback, workload: Workload) -> str:
    """Say what the table leaves out."""
    if workload.capacity_bytes is None and workload.overhead_bytes:
        return "there is no GPU here to compare the total with; one with room to spare gets larger chunks of logits"
    if workload.engine is not None:
        return ""
    where = "on GPUs of its own" if isinstance(rollout.engine, MeasuredEngine) else "unknown, and not counted"
    return f"memory of rollout.engine ({type(rollout.engine).__name__}): {where}"
