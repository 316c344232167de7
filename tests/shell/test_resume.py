"""A run that is killed and resumed is, bit for bit, the run that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.paths import ROOT

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
RUN = (
    f"{sys.executable} -m maxk_lightning fit --config configs/tiny.yaml --trainer.max_epochs 5"
    " --trainer.check_val_every_n_epoch 2 --data.validation.limit 2 --data.prompts_per_rollout 4"
    " --data.prompts_per_step 2 --trainer.enable_progress_bar false --model.lr_scheduler ExponentialLR"
    " --model.lr_scheduler.gamma 0.9"
).split()


def _start(root: Path, *args: str) -> "subprocess.Popen[bytes]":
    command = [*RUN, "--trainer.default_root_dir", str(root), *args]
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _finish(process: "subprocess.Popen[bytes]") -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()[-3000:]


def _kill_after(process: "subprocess.Popen[bytes]", checkpoint: Path, delay_s: float) -> None:
    """SIGKILL the run some time after it has written a checkpoint newer than any it started with."""
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
        time.sleep(0.01)
    time.sleep(delay_s)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.communicate()


def _scalars(root: Path) -> dict[str, dict[int, float]]:
    """Every logged scalar by tag and step; a step logged twice must have been logged alike.

    Without those of the clock, and without the self-test of a weight sync: a resumed run has to push weights that the
    undisturbed one had pushed for a validation, whose prompts the test then sampled from.
    """
    accumulator = EventAccumulator(str(root / "tensorboard"))
    accumulator.Reload()
    scalars: dict[str, dict[int, float]] = {}
    for tag in accumulator.Tags()["scalars"]:
        if not tag.startswith("time/") and tag != "rollout/logprob_gap":
            for event in accumulator.Scalars(tag):
                assert scalars.setdefault(tag, {}).setdefault(event.step, event.value) == event.value, tag
    return scalars


def _points(root: Path) -> dict[tuple[str, int], float]:
    return {(tag, step): value for tag, points in _scalars(root).items() for step, value in points.items()}


def _assert_same(a: Any, b: Any, where: str) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            _assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            _assert_same(x, y, f"{where}[{index}]")
    else:
        assert a == b, where


@pytest.mark.slow
def test_killed_three_times_and_resumed_is_the_undisturbed_run(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    _finish(_start(undisturbed))
    checkpoint = killed / "checkpoints" / "last.ckpt"
    for kill, delay_s in enumerate((0.0, 0.4, 1.1)):  # while a checkpoint is fresh, while sampling, in a PPO iteration
        _kill_after(_start(killed, *(["--ckpt_path", "last"] if kill else [])), checkpoint, delay_s)
    _finish(_start(killed, "--ckpt_path", "last"))

    ours = torch.load(checkpoint, weights_only=True)
    theirs = torch.load(undisturbed / "checkpoints" / "last.ckpt", weights_only=True)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        _assert_same(ours[key], theirs[key], key)
    whole = _points(undisturbed)
    assert len([tag for tag, _ in whole if tag == "train/loss"]) == 5 * 3 * 2
    left = _points(killed)
    assert left.items() <= whole.items()
    # Lightning logs the means of an epoch behind its checkpoint: a kill between the two loses them, once per kill.
    assert len({step for _, step in whole.keys() - left.keys()}) <= 3


@pytest.mark.slow
def test_a_half_written_checkpoint_is_never_picked_up(tmp_path: Path) -> None:
    root = tmp_path / "run"
    _finish(_start(root, "--trainer.max_epochs", "1"))
    checkpoint = root / "checkpoints" / "last.ckpt"
    (root / "checkpoints" / "last.ckpt.part").write_bytes(checkpoint.read_bytes()[:1000])  # what a kill leaves behind
    _finish(_start(root, "--trainer.max_epochs", "2", "--ckpt_path", "last"))
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 2 * 3 * 2
