"""GSM8K as published, a real language model and math-verify, through `fit` and `evaluate`: a few tokens of each."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.runs import scalars

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.published,
    pytest.mark.slow,
    pytest.mark.timeout(1300),
    pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs math-verify"),
]
SHARED = Path(os.environ.get("MAXK_SHARED", ROOT.parent / "shared"))
FILE = SHARED / "data" / "gsm8k" / "test_first_660.jsonl"
CHANGES = {
    "trainer.accelerator": "cpu",
    "trainer.precision": "32-true",
    "trainer.max_epochs": 1,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.enable_progress_bar": "false",
    "checkpoint.every_n_epochs": 99,  # large, and of no use here
    "data.prompts_per_rollout": 1,
    "data.num_ppo_iterations": 1,
    "data.validation.init_args.limit": 1,
    "rollout.engine": "maxk_lightning.rollouts.TransformersEngine",
    "rollout.sampling.num_completions": 5,
    "rollout.sampling.max_new_tokens": 12,
    "rollout.max_logprob_gap": 0.1,
}
EVAL = {
    "data.test.init_args.path": FILE,
    "data.test.init_args.limit": 1,
    "rollout.eval_sampling.num_completions": 2,
    "rollout.eval_sampling.max_new_tokens": 12,
}


def command(name: str, *words: str, **options: object) -> list[str]:
    flags = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    return [sys.executable, "-m", "maxk_lightning", name, "--config", "configs/math.yaml", *words, *flags]


@pytest.mark.skipif(not FILE.is_file(), reason=f"no {FILE}")
def test_gsm8k_goes_through_fit_and_evaluate(smollm2: str, tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    data = {f"data.{split}.init_args.path": FILE for split in ("train", "validation")}
    root = {"model.policy": smollm2, "trainer.default_root_dir": tmp_path / "run"}
    fit = command("fit", **CHANGES, **EVAL, **data, **root)
    subprocess.run(fit, cwd=ROOT, env=environment, check=True, timeout=590)
    logged = scalars(tmp_path / "run")
    assert set(logged["train/missing_fraction"].values()) == {0.0}
    assert set(logged["val/missing_fraction"].values()) == {0.0}
    out = tmp_path / "evaluation"
    words = ("--policy", smollm2, "--num_samples", "2", "--out", str(out))
    engine = {"rollout.engine": "maxk_lightning.rollouts.TransformersEngine"}
    subprocess.run(command("evaluate", *words, **EVAL, **engine), cwd=ROOT, env=environment, check=True, timeout=590)
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2
    for sample in samples:
        (verdict,) = sample["verdicts"]
        assert sample["reward"] == float(verdict == "passed")
        assert verdict in ("passed", "wrong_answer", "no_answer")
