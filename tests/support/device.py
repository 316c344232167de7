"""Where tests marked `gpu` run: on a GPU, or on the CPU when `scripts/gpu_check.sh --cpu` rehearses itself."""

import os

import pytest
import torch

IS_REHEARSAL = os.environ.get("MAXK_GPU_CHECK") == "cpu"
DEVICE = "cpu" if IS_REHEARSAL else "cuda"
ACCELERATOR = "cpu" if IS_REHEARSAL else "gpu"
needs_gpu = pytest.mark.skipif(IS_REHEARSAL, reason="a CPU has nothing of the kind")
needs_two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
