"""A run that is killed and resumed is, bit for bit, the run that was left alone."""

from pathlib import Path

import pytest
import torch

from tests.support.runs import Run, assert_same, scalars

OPTIONS = (
    "--config configs/tiny.yaml --trainer.max_epochs 5 --trainer.check_val_every_n_epoch 2 --data.validation.limit 2"
    " --data.prompts_per_rollout 4 --data.prompts_per_step 2 --trainer.enable_progress_bar false"
    " --model.lr_scheduler ExponentialLR --model.lr_scheduler.gamma 0.9"
)


def _points(root: Path) -> dict[tuple[str, int], float]:
    return {(tag, step): value for tag, points in scalars(root).items() for step, value in points.items()}


@pytest.mark.slow
def test_killed_three_times_and_resumed_is_the_undisturbed_run(tmp_path: Path) -> None:
    undisturbed, killed = Run(tmp_path / "undisturbed", OPTIONS).finish(), Run(tmp_path / "killed", OPTIONS)
    for kill, delay_s in enumerate((0.0, 0.4, 1.1)):  # while a checkpoint is fresh, while sampling, in a PPO iteration
        killed.start_and_kill(*(["--ckpt_path", "last"] if kill else []), delay_s=delay_s)
    killed.finish("--ckpt_path", "last")

    ours, theirs = (torch.load(run.checkpoint("last"), weights_only=True) for run in (killed, undisturbed))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert_same(ours[key], theirs[key], key)
    whole = _points(undisturbed.root)
    assert len([tag for tag, _ in whole if tag == "train/loss"]) == 5 * 3 * 2
    left = _points(killed.root)
    assert left.items() <= whole.items()
    # Lightning logs the means of an epoch behind its checkpoint: a kill between the two loses them, once per kill.
    assert len({step for _, step in whole.keys() - left.keys()}) <= 3


@pytest.mark.slow
def test_a_half_written_checkpoint_is_never_picked_up(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", OPTIONS).finish("--trainer.max_epochs", "1")
    checkpoint = run.checkpoint("last")
    checkpoint.with_name("last.ckpt.part").write_bytes(checkpoint.read_bytes()[:1000])  # what a kill leaves behind
    run.finish("--trainer.max_epochs", "2", "--ckpt_path", "last")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 2 * 3 * 2
