"""Two processes do what one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.test_resume import ROOT, _scalars

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_two_ddp_processes_train_and_measure_like_one(tmp_path: Path) -> None:
    """Uneven validation (5 problems), two optimizer steps per PPO iteration, whose groups the ranks share."""
    for name, extra in {"one": [], "two": ["--trainer.strategy", "ddp", "--trainer.devices", "2"]}.items():
        args = (
            "fit --config configs/tiny.yaml --trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1"
            " --data.validation.limit 5 --data.prompts_per_rollout 4 --data.prompts_per_step 2"
            f" --trainer.enable_progress_bar false --trainer.default_root_dir {tmp_path / name}"
        )
        command = [sys.executable, "-m", "maxk_lightning", *args.split(), *extra]
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / n / "checkpoints" / "last.ckpt", weights_only=True) for n in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 6
    for name, weight in one["state_dict"].items():
        # Six Adam steps of 1e-4 on float32 gradients summed in another order.
        torch.testing.assert_close(two["state_dict"][name], weight, atol=3e-5, rtol=1e-4)
    ours, theirs = _scalars(tmp_path / "two"), _scalars(tmp_path / "one")
    assert ours.keys() == theirs.keys()
    for tag in theirs:
        if tag.startswith(("val/", "train/max_at_k", "train/pass_at_k", "train/loss")):
            assert ours[tag] == pytest.approx(theirs[tag], abs=1e-4), tag
