"""Rounds of samples until the band is narrow: every problem alike, every sample anew, resumed after any cut."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from maxk_lightning.commands.evaluate.until_width import collect_until, outcome, rounds, samples_per_round
from maxk_lightning.evaluation.estimates import rewards_of
from maxk_lightning.evaluation.prediction import band_width
from maxk_lightning.evaluation.samples import Sample, by_problem
from maxk_lightning.types import Sampling
from tests.commands.test_collect_samples import SETTINGS, LastDigitReward, SeededEngine, make_task

NUM_SAMPLES = 32
TASK = replace(make_task(), sampling=Sampling(num_completions=NUM_SAMPLES))


def collect(width: float, directory: Path, engine: SeededEngine | None = None) -> list[Sample]:
    return collect_until(width, TASK, engine or SeededEngine(), LastDigitReward(), directory, SETTINGS)


def test_rounds_make_up_the_samples_and_share_no_random_numbers() -> None:
    for num_samples in (1, 7, 32, 100):
        parts = list(rounds(replace(TASK, sampling=Sampling(num_completions=num_samples))))
        assert [index for part in parts for index in part.indices] == list(range(num_samples))
        assert len(parts) <= 16
    seeds = [prompt.seed for part in rounds(TASK) for prompt in part.prompts]
    assert len(set(seeds)) == len(seeds)


def test_it_stops_at_the_first_round_that_is_narrow_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = by_problem(collect(1e-9, tmp_path / "whole"))
    assert {len(group) for group in whole.values()} == {NUM_SAMPLES}
    assert "not reached" in capsys.readouterr().out
    size = samples_per_round(NUM_SAMPLES)
    widths = [
        band_width(rewards_of({id_: group[:num_drawn] for id_, group in whole.items()}), NUM_SAMPLES)
        for num_drawn in range(size, NUM_SAMPLES + 1, size)
    ]
    target = sorted(widths)[len(widths) // 2]
    num_rounds = next(number for number, width in enumerate(widths, 1) if width < target)
    assert 1 < num_rounds < len(widths)
    stopped = by_problem(collect(target, tmp_path / "stopped"))
    assert stopped == {id_: group[: num_rounds * size] for id_, group in whole.items()}
    text = f"after {num_rounds * size * len(TASK.problems)} of {NUM_SAMPLES * len(TASK.problems)} samples"
    assert text in capsys.readouterr().out


def test_a_file_cut_at_any_byte_is_completed_to_the_same_bytes(tmp_path: Path) -> None:
    collect(0.2, tmp_path / "whole")
    whole = (tmp_path / "whole" / "samples.jsonl").read_bytes()
    path = tmp_path / "cut" / "samples.jsonl"
    collect(0.2, tmp_path / "cut")
    for length in [0, len(whole) - 1, *random.Random(0).sample(range(len(whole)), 5)]:
        path.write_bytes(whole[:length])
        collect(0.2, tmp_path / "cut")
        assert path.read_bytes() == whole
    engine = SeededEngine()
    collect(0.2, tmp_path / "cut", engine)
    assert engine.generated == []
    assert json.loads((tmp_path / "cut" / "settings.json").read_text())["samples_per_round"] == 2


def test_the_outcome_says_what_was_saved_or_what_it_would_take() -> None:
    assert outcome(0.1, 0.09, 480, 256, 10) == (
        "--until_width 0.1: the widest interval is 0.090 wide after 480 of 2560 samples; 2080 (81%) were not needed"
    )
    assert outcome(0.1, 0.2, 2560, 256, 10) == (
        "--until_width 0.1: not reached, the widest interval is 0.200 wide with all samples; "
        "about 40 problems like these would do"
    )
    assert "problems" not in outcome(0.1, float("inf"), 256, 256, 1)
