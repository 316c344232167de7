"""FSDP2: every rank holds a share of each weight, and gathers one decoder layer at a time to compute with it.

The same code runs on one or many ranks, on GPUs and on CPU processes.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from maxk_lightning.policy import Policy


def load_sharded(build: Callable[[bool], Policy], mesh: DeviceMesh, device: torch.device, is_bf16: bool) -> Policy:
    """Build a sharded policy; its whole weights exist on rank 0 only, in host memory, while they are handed out.

    Args:
        build: `build(True)` loads the policy, `build(False)` makes it on the meta device without reading weights.
        mesh: One dimension; weights are split over it.
        device: Where the shares go.
        is_bf16: Compute in bfloat16; weights, gradients and their sums stay float32.

    Raises:
        ValueError: rank 0 cannot load the policy; raised on all ranks.
    """
    source = _read(build)
    with torch.device("meta"):
        policy = build(False)
    _shard(policy, mesh, is_bf16)
    policy.to_empty(device=device)
    weights = {} if source is None else source.state_dict()
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(policy, weights, options=options)
    for name, buffer in policy.named_buffers():  # those that no state_dict holds, such as rotary frequencies
        if source is not None:
            buffer.copy_(source.get_buffer(name))
        dist.broadcast(buffer, src=0)
    return policy


def _read(build: Callable[[bool], Policy]) -> Policy | None:
    """The policy on rank 0, None on the others, which learn whether it can be loaded before they wait for weights."""
    source: Policy | None = None
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            source = build(True)
        except Exception as error:  # noqa: BLE001 - whatever a file of weights makes its reader raise; raised again
            failure = error
    told = [failure and str(failure)]
    dist.broadcast_object_list(told, src=0)
    if told[0] is not None:
        raise ValueError(told[0]) from failure
    return source


def _shard(policy: Policy, mesh: DeviceMesh, is_bf16: bool) -> None:
    """Shard each decoder layer, then the rest.

    `reshard_after_forward` is set for the root too, where it is not the default: without it the embedding and the head
    stay gathered after a forward pass without backward, and the next step computes with their old values.
    """
    dtypes: dict[str, Any] = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if is_bf16 else {}
    layers = set(policy.model._no_split_modules or ())
    for module in policy.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=MixedPrecisionPolicy(**dtypes))
    # The root is given token ids: nothing to cast.
    root = MixedPrecisionPolicy(**dtypes, cast_forward_inputs=False)
    fully_shard(policy, mesh=mesh, reshard_after_forward=True, mp_policy=root)


def sharded_modules(module: nn.Module) -> list[FSDPModule]:
    """List the modules inside `module` that hold shares."""
    return [child for child in module.modules() if isinstance(child, FSDPModule)]


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be sharded; all ranks must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
