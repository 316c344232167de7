"""What the processor of this machine can do."""

import logging
from functools import cache
from pathlib import Path

import torch

logger = logging.getLogger(__name__)
CPUINFO = Path("/proc/cpuinfo")


def has_bfloat16(cpuinfo: Path = CPUINFO) -> bool:
    """Whether this machine multiplies matrices of bfloat16 in hardware: AVX512_BF16, AMX, Arm's bf16, or its GPUs."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False)) if torch.cuda.is_available() else _cpu(cpuinfo)


def is_bfloat16_slow(cpuinfo: Path = CPUINFO) -> bool:
    """Whether products of bfloat16 on the CPU are emulated: 8 times slower than those of float32 on one with AVX2."""
    return cpuinfo.is_file() and not _cpu(cpuinfo)


def _cpu(cpuinfo: Path) -> bool:
    flags = cpuinfo.read_text("utf-8").split() if cpuinfo.is_file() else []
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


@cache
def tell_of_slow_bfloat16(key: str, faster: str) -> None:
    """Warn once of a setting that asks for bfloat16 on a CPU without it."""
    if is_bfloat16_slow():
        logger.warning(
            "%s asks for bfloat16, which this processor does not have: %s is several times faster here", key, faster
        )
