"""A temperature of its own for every k: it is chosen without the problems that it is measured on."""

from collections.abc import Sequence

import numpy as np
import pytest
from study_results import Job, Result
from study_temperatures import TRAINED_AT, Tempered, temperature_comparisons, temperature_figure, temperature_table

NUM_SAMPLES = 4


def _result(num_solved: Sequence[int], seed: int = 1) -> Result:
    """A problem for each number of its 4 samples that have reward 1; the others have 0."""
    job = Job(benchmark="b", arm="a", learning_rate=0.1, seed=seed, split="test", num_samples=NUM_SAMPLES)
    rewards = {f"problem-{i}": {"0": NUM_SAMPLES - count, "1": count} for i, count in enumerate(num_solved)}
    parts = {"commit": "", "machine": {}, "seconds": {}, "entropy_bins": {}, "summary": {}}
    return Result(job=job, rewards={id_: {t: c for t, c in r.items() if c} for id_, r in rewards.items()}, **parts)


def test_each_half_is_measured_at_the_temperature_that_the_other_chooses() -> None:
    # The even problems are best at .5, the odd ones at 1; so the even are measured at 1, the odd at .5.
    arm = Tempered(name="arm", at={0.5: [_result([4, 1, 4, 1])], TRAINED_AT: [_result([2, 3, 2, 3])]})
    values_PS, temperatures = arm.chosen(1)
    np.testing.assert_allclose(values_PS[:, 0], [0.5, 0.25, 0.5, 0.25])
    assert temperatures == [1.0, 0.5]
    assert arm.max_at_k_TPS(2)[1, 0, 0] == pytest.approx(5 / 6)  # of 6 pairs one holds no solution


def test_a_temperature_may_differ_between_k() -> None:
    # At .5 half of the problems are always solved, the others never; at 1 every problem once in four samples.
    arm = Tempered(name="arm", at={0.5: [_result([4, 4, 0, 0])], TRAINED_AT: [_result([1, 1, 1, 1])]})
    assert arm.chosen(1)[1] == [0.5, 0.5]
    assert arm.chosen(4)[1] == [1.0, 1.0]
    plain, chosen = temperature_table([arm]).splitlines()[2:]
    assert plain == "| arm | 1 | 0.250 | 0.500 | 1.000 |"
    assert chosen == "| arm | chosen for each k | 0.500 (0.5) | 0.500 (0.5) | 1.000 (1) |"


def test_noise_alone_gains_nothing() -> None:
    """Equal solve rates at all temperatures: the best of them looks better than it is, the chosen one does not."""
    rng = np.random.default_rng(0)
    best, chosen = [], []
    for _ in range(200):
        at = {t: [_result(rng.binomial(NUM_SAMPLES, 0.5, 6).tolist())] for t in (0.4, 0.6, 0.8, 1.0)}
        arm = Tempered(name="arm", at=at)
        best.append(arm.max_at_k_TPS(1).mean(axis=(1, 2)).max())
        chosen.append(arm.chosen(1)[0].mean())
    assert np.mean(best) > 0.58
    assert abs(np.mean(chosen) - 0.5) < 3 * np.std(chosen) / np.sqrt(len(chosen))


def test_arms_are_compared_once_at_their_chosen_temperatures() -> None:
    def arm(hot: Sequence[int], plain: Sequence[int]) -> Tempered:
        return Tempered(name="arm", at={0.5: [_result(hot)], TRAINED_AT: [_result(plain)]})

    arms = {"base": arm([1] * 4, [1] * 4), "grpo_3": arm([2] * 4, [3] * 4), "ours": arm([4] * 4, [1] * 4)}
    tests = temperature_comparisons(arms, ["base", "grpo_3", "ours", "left out"], [1])
    assert {(test.against, test.arm): test.test.difference for test in tests} == pytest.approx(
        {("base", "grpo_3"): 0.5, ("base", "ours"): 0.75, ("grpo_3", "ours"): 0.25}
    )
    figure = temperature_figure(list(arms.values()), [1, 2, 4])
    assert [len(axes.lines) for axes in figure.axes] == [3, 3]
