"""The arguments of a vLLM server that is started here, and the GPUs that it takes."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from maxk_lightning.policy import resolve_policy
from maxk_lightning.rollouts.engines.vllm.arguments import ADMITTED_UTILIZATION, HeadDtype
from maxk_lightning.rollouts.engines.vllm.gpus import own_gpu
from maxk_lightning.rollouts.engines.vllm.launch import REQUIRED_ARGS, Launch, as_json
from maxk_lightning.rollouts.engines.vllm.server_options import CACHE_BYTES, LOOPBACK, Transfer

UTILIZATION = "gpu-memory-utilization"
PARALLEL_SIZES = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")
LABELLING_ARGS = {"enable-scale-out": True}
"What a server must be started with to say which weights sampled which tokens."
Arguments = dict[str, str | int | float | bool]


def own_launch(
    *,
    policy: str,
    server_args: Mapping[str, Any],
    gpus: str | None,
    head_dtype: HeadDtype,
    transfer: Transfer,
    is_labelled: bool,
    load_format: str,
    port: int,
) -> Launch:
    """Make the launch of a server on this machine; for the arguments see `VLLMServerEngine`.

    Args:
        policy: Directory or name.
        server_args: Arguments of the user, which replace defaults.
        gpus: CUDA_VISIBLE_DEVICES.
        head_dtype: Type of the logits.
        transfer: How weights reach it.
        is_labelled: Whether it says which weights sampled which tokens.
        load_format: `auto` or `dummy`: read the policy's weights, or wait for some.
        port: Port on the loopback.
    """
    arguments = {
        **REQUIRED_ARGS,
        **(LABELLING_ARGS if is_labelled else {}),
        **_defaults(server_args, head_dtype),
        **server_args,
        "load-format": load_format,
        "host": LOOPBACK,
        "port": port,
    }
    if transfer != "file":
        arguments["weight-transfer-config"] = as_json({"backend": transfer})
    gpu = own_gpu()
    return Launch(
        policy=resolve_policy(policy),
        arguments=arguments,
        gpus=gpu.name if transfer == "ipc" and gpu is not None else gpus,
        takes_handles=transfer == "ipc",
    )


def num_gpus(server_args: Mapping[str, Any]) -> int:
    """Count the GPUs that a server with these arguments takes."""
    return math.prod(int(server_args.get(name, 1)) for name in PARALLEL_SIZES)


def _defaults(server_args: Mapping[str, Any], head_dtype: HeadDtype) -> Arguments:
    """The arguments of a server unless server_args say otherwise; the reasons are in `arguments`."""
    told: Arguments = {}
    if not torch.cuda.is_available():
        told["enable-chunked-prefill"] = False
    elif CACHE_BYTES in server_args:
        told[UTILIZATION] = ADMITTED_UTILIZATION
    if head_dtype == "float32" and server_args.get("dtype") not in ("float32", "float"):
        told["hf-overrides"] = as_json({"head_dtype": "float32"})
    return told
