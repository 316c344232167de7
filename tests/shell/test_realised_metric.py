"""`rollout.select`: realised best-of-k of the validation problems, as a metric that a checkpoint can be chosen by."""

import math
from pathlib import Path

import pytest

from maxk_lightning.callbacks import RolloutCallback
from maxk_lightning.commands.evaluate.realised import realised_curves
from maxk_lightning.data import Builtin
from maxk_lightning.evaluation.samples import to_sample
from maxk_lightning.rewards import UnitTestReward
from maxk_lightning.rollouts import TransformersEngine
from maxk_lightning.selection import parse_selectors
from maxk_lightning.types import Sampling
from tests.support.fakes import LengthReward
from tests.support.runs import Run, scalars
from tests.support.training import fit

OPTIONS = (
    "--config configs/tiny.yaml --trainer.max_epochs 1 --validate_before_fit false --trainer.enable_progress_bar false"
    " --trainer.check_val_every_n_epoch 1"
    " --data.prompts_per_rollout 2 --data.num_ppo_iterations 1 --data.validation.limit 3 --data.validation.num_public 2"
    " --rollout.sampling.num_completions 4 --rollout.eval_sampling.num_completions 8"
    " --rollout.select public+agreement --checkpoint.monitor val/realised_max_at_k/4 --checkpoint.mode max"
)
TAG = "val/realised_max_at_k/"


def test_it_is_what_evaluate_says_of_the_same_samples(tmp_path: Path) -> None:
    with UnitTestReward() as reward:
        rollout = RolloutCallback(
            TransformersEngine("builtin"),
            reward,
            Sampling(num_completions=4),
            Sampling(num_completions=8),
            select="public+agreement",
        )
        validation = Builtin("validation", limit=3, num_public=2)
        done = fit(
            "builtin", tmp_path, epochs=1, rollout=rollout, data={"validation": validation, "num_ppo_iterations": 1}
        )
        logged = done.trainer.callback_metrics
        groups = [group for step in done.datamodule.buffers["validate"].steps for group in step.groups]
        samples = [
            to_sample(group.problem.id, place, completion, score)
            for group in groups
            for place, (completion, score) in enumerate(zip(group.completions, group.scores, strict=True))
        ]
        problems, prompts = [group.problem for group in groups], [group.prompt for group in groups]
        selectors = parse_selectors("public+agreement", reward)
        (curve,) = realised_curves(problems, prompts, samples, selectors, done.datamodule.seed).values()
    assert len(groups) == 3
    values = {point.k: float(logged[f"{TAG}{point.k}"]) for point in curve.curve}
    assert values == pytest.approx({point.k: point.value for point in curve.curve}, rel=1e-6)
    assert list(values) == [1, 2, 4, 8]
    for k, value in values.items():
        assert value <= float(logged[f"val/max_at_k/{k}"]) + 1e-6
    assert values[1] == pytest.approx(float(logged["val/max_at_k/1"]), rel=1e-6)  # one sample leaves no choice
    assert values[8] > values[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_log_what_one_logs(tmp_path: Path) -> None:
    one = Run(tmp_path / "one", OPTIONS).finish()
    two = Run(tmp_path / "two", f"{OPTIONS} --trainer.strategy ddp --trainer.devices 2").finish()
    logged = [{tag: values for tag, values in scalars(run.root).items() if tag.startswith(TAG)} for run in (one, two)]
    assert set(logged[0]) == {f"{TAG}{k}" for k in (1, 2, 4, 8)}
    assert all(math.isfinite(value) for values in logged[0].values() for value in values.values())
    assert logged[0] == logged[1]


@pytest.mark.parametrize(
    ("select", "reward", "message"),
    [
        ("public,agreement", UnitTestReward(), "rollout.select is 'public,agreement', must be one selector"),
        ("best", UnitTestReward(), "rollout.select is 'best': 'best' must be one of"),
        ("public", LengthReward(), "rollout.select public needs rollout.reward: UnitTestReward, not LengthReward"),
    ],
)
def test_what_cannot_be_selected_by_is_refused(select: str, reward: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutCallback(reward=reward, select=select)  # type: ignore[arg-type]
