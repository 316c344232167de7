"""A process in which vLLM finds a GPU that is only described: a script that answers questions about what it would do.

Run by path, `described_gpu.py < questions > answers` (JSON lists). vLLM's platform is its own class for CUDA, whose
queries of the device are answered from constants here, and Triton counts as usable, which decides between the model
runners. Everything that is asked, vLLM's configuration, admission of memory, loaders and parsers, is its own code; no
kernel runs. `vllm.LLM` and the command of a server are caught at the moment when they would start.
"""

import importlib
import json
import sys
import types
from dataclasses import asdict
from typing import Any

NAME, CAPABILITY = "NVIDIA H100 80GB HBM3", (9, 0)
GIB = 2**30


class Caught(BaseException):
    """What would have been started."""

    def __init__(self, *what: Any) -> None:
        self.what = what


def describe(total_bytes: int) -> None:
    """Make vLLM and the package see a GPU of this size; must come before anything asks vLLM for its platform."""
    sys.modules["vllm._C_stable_libtorch"] = types.ModuleType("kernels")  # of CUDA builds; nothing here calls one
    importlib.import_module("torchao.prototype.mx_formats")  # asks torch for GPUs when it is imported
    import torch
    import vllm.platforms
    from vllm.platforms import cuda, interface

    class Described(cuda.CudaPlatformBase):  # type: ignore[misc]
        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> Any:
            return interface.DeviceCapability(*CAPABILITY)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return NAME

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return total_bytes

        @classmethod
        def is_fully_connected(cls, device_ids: list[int]) -> bool:
            return True

        @classmethod
        def device_count(cls) -> int:
            return 8

        def is_cumem_allocator_available(self) -> bool:
            return True

        def is_sleep_mode_available(self) -> bool:
            return True

    own = vllm.platforms.current_platform
    vllm.platforms.current_platform = Described()
    for name in ("vllm.engine.arg_utils", "vllm.v1.engine.input_processor", "vllm.entrypoints.launchers.cli_args"):
        importlib.import_module(name)  # they keep the platform that they find
    vllm.platforms.current_platform = own
    importlib.import_module("vllm.v1.worker.utils")  # loads kernels that only the platform of this build has
    vllm.platforms.current_platform = Described()
    importlib.import_module("vllm.config.vllm").HAS_TRITON = True  # type: ignore[attr-defined]
    torch.cuda.is_available = lambda: True
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_rng_state = lambda device=None: torch.zeros(16, dtype=torch.uint8)
    torch.cuda.set_rng_state = lambda state, device=None: None
    torch.cuda.get_device_properties = lambda device=None: types.SimpleNamespace(uuid=f"{device}-of-eight")


def colocated(question: dict[str, Any]) -> dict[str, Any]:
    """What vLLM would do with the engine of a question, started for training on a GPU of which so much is free."""
    import torch
    import vllm
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.mem_utils import MemorySnapshot
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.utils import request_memory

    from maxk_lightning.rollouts import VLLMEngine

    torch.cuda.current_device = lambda: question.get("device", 0)
    vllm.LLM = _catch
    engine = VLLMEngine(question["policy"], **question["options"])
    try:
        engine.load_weights(iter(()), 0)
        raise AssertionError("vLLM was not asked to start")
    except ValueError as error:
        return {"refused": str(error)}
    except Caught as caught:
        _, arguments = caught.what
    config = vllm.EngineArgs(**arguments).create_engine_config(UsageContext.LLM_CLASS)
    snapshot = MemorySnapshot(
        device="cuda:0",
        auto_measure=False,
        free_memory=int(question["free_gib"] * GIB),
        total_memory=int(question["total_gib"] * GIB),
    )
    told = types.SimpleNamespace(vllm_config=config, model_config=config.model_config)
    return {
        "admission": _error_of(lambda: request_memory(snapshot, config.cache_config)),
        "logits_processors": _error_of(lambda: InputProcessor._build_logits_processors_params_validator(told)),
        "is_second_runner": config.use_v2_model_runner,
        "kv_cache_bytes": config.cache_config.kv_cache_memory_bytes,
        "batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "head_dtype": str(config.model_config.head_dtype),
        "dtype": str(config.model_config.dtype),
        "default_share": type(config.cache_config)().gpu_memory_utilization,
        "sleeps": config.model_config.enable_sleep_mode,
    }


def server(question: dict[str, Any]) -> dict[str, Any]:
    """What command a server engine would start, and vLLM's own reading of it."""
    import subprocess

    import torch

    from maxk_lightning.rollouts import VLLMServerEngine

    torch.cuda.current_device = lambda: question.get("device", 0)
    subprocess.Popen = _catch  # type: ignore[misc, assignment]
    engine = VLLMServerEngine(question["policy"], **question["options"])
    try:
        engine.load_weights(iter(()), 0)
        raise AssertionError("no server was started")
    except ValueError as error:
        return {"refused": str(error)}
    except Caught as caught:
        (command,), options = caught.what
    environment = options["env"]
    arguments = _parsed(command[command.index("--model") :])
    return {"gpus": environment.get("CUDA_VISIBLE_DEVICES"), "arguments": arguments, "command": command}


def _parsed(flags: list[str]) -> dict[str, Any]:
    """vLLM's reading of a server's arguments, and the configuration that it makes of them."""
    from vllm import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(flags)
    validate_parsed_serve_args(parsed)
    config = AsyncEngineArgs.from_cli_args(parsed).create_engine_config(UsageContext.OPENAI_API_SERVER)
    return {
        "port": parsed.port,
        "backend": config.weight_transfer_config and config.weight_transfer_config.backend,
        "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
        "utilization": config.cache_config.gpu_memory_utilization,
        "kv_cache_bytes": config.cache_config.kv_cache_memory_bytes,
        "head_dtype": str(config.model_config.head_dtype),
        "logprobs_mode": config.model_config.logprobs_mode,
    }


def transfer(question: dict[str, Any]) -> dict[str, Any]:
    """How a server engine would open its NCCL group, as vLLM's parser at the other end reads it."""
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.nccl_common import worker_init_payload
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferInitInfo

    from maxk_lightning.rollouts import EngineError, VLLMServerEngine

    caught: list[Any] = []

    def catch(info: Any, **_: Any) -> None:
        caught.append(info)
        raise ValueError("not opened here")

    WeightTransferTrainerFactory.trainer_init = catch
    engine = VLLMServerEngine(question["policy"], url=question["url"])
    try:
        engine.load_weights(iter(()), 0)
        raise AssertionError("no group was opened")
    except (EngineError, ValueError):
        (info,) = caught
    shared = {name: value for name, value in asdict(info).items() if name != "rank"}
    payload = worker_init_payload(NCCLWeightTransferInitInfo(rank_offset=1, **shared))
    worker = types.SimpleNamespace(init_info_cls=NCCLWeightTransferInitInfo)
    read = NCCLWeightTransferEngine.parse_init_info(worker, payload)
    return {"master_port": read.master_port, "world_size": read.world_size, "master_address": read.master_address}


def _catch(*args: Any, **options: Any) -> None:
    raise Caught(args, options)


def _error_of(call: Any) -> str | None:
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


def main() -> None:
    """Answer the questions on standard input, one after another."""
    questions = json.load(sys.stdin)
    out, sys.stdout = sys.stdout, sys.stderr  # vLLM prints
    describe(int(questions[0].get("total_gib", 79.1) * GIB))
    answers = [globals()[question["about"]](question) for question in questions]
    json.dump(answers, out)
    out.flush()


if __name__ == "__main__":
    main()
