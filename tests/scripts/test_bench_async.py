"""The benchmark of sampling ahead: its cycles are whole ones, and its ratios those of its docstring."""

from pathlib import Path

import bench_async
import pytest
from bench_async import Cycle
from torch.utils.tensorboard import SummaryWriter


def test_a_cycle_lasts_from_the_end_of_a_training_to_the_next(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "tensorboard")) as writer:
        for place, end in enumerate([10.0, 30.0, 60.0, 100.0, 150.0]):
            writer.add_scalar("time/train_s", place + 1.0, place, walltime=end)
            for part in ("sync", "generate", "score"):
                writer.add_scalar(f"time/{part}_s", 1.0, place, walltime=end - 5.0)
    assert bench_async.NUM_WARM == 2
    assert bench_async.read("ahead", tmp_path) == [
        Cycle(side="ahead", cycle_s=30.0, sampling_s=3.0, training_s=3.0),
        Cycle(side="ahead", cycle_s=40.0, sampling_s=3.0, training_s=4.0),
    ]


def test_ratios_are_of_medians_and_of_the_halves_that_take_turns() -> None:
    turns = [Cycle(side="turns", cycle_s=cycle_s, sampling_s=4.0, training_s=6.0) for cycle_s in (9.0, 11.0, 50.0)]
    ahead = [Cycle(side="ahead", cycle_s=6.6, sampling_s=8.0, training_s=9.0)]
    assert bench_async.ratios_of([*turns, *ahead]) == pytest.approx(
        {"cycle_vs_longer_half": 6.6 / 6.0, "speed_vs_turns": 11.0 / 6.6}
    )
