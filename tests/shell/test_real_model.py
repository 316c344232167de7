"""A rollout and its training on a real language model in bfloat16: what toys of a few kilobytes cannot show."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.paths import ROOT

pytestmark = [pytest.mark.real_model, pytest.mark.slow]
MAX_GAP = 0.1
"Nats per token; .02 to .03 was measured, as bfloat16 on one side or on both gives."
ADD = {
    "id": "add",
    "prompt": "Add two numbers.\n```python\ndef add(a, b):\n    ...\n```\nAnswer with one ```python code block.",
    "tests": [{"input": "1\n2", "output": "3"}, {"input": "5\n-1", "output": "4"}],
    "function": "add",
}
DOUBLE = ADD | {
    "id": "double",
    "prompt": "Double a number.\n```python\ndef double(x):\n    ...\n```\nAnswer with one ```python code block.",
    "tests": [{"input": "2", "output": "4"}, {"input": "-1", "output": "-2"}],
    "function": "double",
}


def _scalars(root: Path, tag: str) -> list[float]:
    accumulator = EventAccumulator(str(root / "tensorboard"))
    accumulator.Reload()
    return [event.value for event in accumulator.Scalars(tag)]


def test_a_rollout_trains_with_exact_ratios_and_finite_losses(smollm2: str, tmp_path: Path) -> None:
    data = tmp_path / "problems.jsonl"
    data.write_text("".join(json.dumps(problem) + "\n" for problem in (ADD, DOUBLE)))
    source = f'{{"class_path": "maxk_lightning.data.JsonLines", "init_args": {{"path": "{data}"}}}}'
    options = {
        "model.policy": smollm2,
        "data.train": source,
        "data.validation": "null",
        "data.test": "null",
        "data.prompts_per_rollout": 2,
        "data.refill": 0,
        "data.num_ppo_iterations": 2,
        "rollout.engine": "maxk_lightning.rollouts.TransformersEngine",
        "rollout.engine.init_args.dtype": "bfloat16",
        "rollout.reward": "tests.support.fakes.LengthReward",  # tells all samples apart: every group gets credit
        "rollout.max_logprob_gap": MAX_GAP,
        "rollout.sampling.num_completions": 6,
        "rollout.sampling.max_new_tokens": 24,
        "trainer.max_epochs": 1,
        "trainer.default_root_dir": tmp_path,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": False,
        "checkpoint.every_n_epochs": 99,  # 2 GB each
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "maxk_lightning", "fit", "--config", "configs/smollm2.yaml", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=540)
    losses, norms = _scalars(tmp_path, "train/loss"), _scalars(tmp_path, "train/grad_norm")
    assert len(losses) == len(norms) == 2
    assert torch.isfinite(torch.tensor(losses + norms)).all()
    assert min(norms) > 0.0
    assert _scalars(tmp_path, "train/log_ratio_std")[0] == 0.0
    assert 0.0 < _scalars(tmp_path, "rollout/logprob_gap")[0] < MAX_GAP
    assert 0.0 < _scalars(tmp_path, "train/engine_gap")[0] < MAX_GAP
