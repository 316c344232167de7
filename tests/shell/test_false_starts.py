"""Runs that go wrong early leave nothing in the way, and checkpoints can always be read back, or say why not."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maxk_lightning.commands.trainer import MaxKCLI
from maxk_lightning.rewards.outcome import as_scores
from maxk_lightning.rewards.reward import RewardError
from maxk_lightning.training.recall import Recall
from maxk_lightning.types import Problem, Score
from tests.support.groups import make_group
from tests.support.refusals import refusal

SMALL = (
    "--trainer.accelerator cpu --trainer.enable_progress_bar false --trainer.max_epochs 1 --data.validation null"
    " --data.prompts_per_rollout 2 --data.num_ppo_iterations 1 --rollout.sampling.num_completions 3"
    " --rollout.sampling.max_new_tokens 4 --model.objective MaxAtK --model.objective.k 2"
)
REWARDS = """
import numpy as np
from maxk_lightning.types import Score

def fails(completions):
    return [1 / 0 for _ in completions]

def length(completions):
    return [float(len(completion)) for completion in completions]

class Numpy:
    def score(self, problems, completions):
        return [
            [Score(reward=np.mean([len(text), place]), verdicts=(), behaviour=np.int64(place))
             for place, text in enumerate(group)]
            for group in completions
        ]
"""


@pytest.fixture
def reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with rewards of a user's own."""
    (tmp_path / "early_rewards.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("early_rewards", None)
    return "early_rewards"


def _fit(root: Path, *args: str) -> None:
    MaxKCLI(["fit", *SMALL.split(), "--trainer.default_root_dir", str(root), *args])


def test_a_reward_that_fails_in_the_first_rollout_can_be_mended_and_run_again(tmp_path: Path, reward: str) -> None:
    with pytest.raises(Exception, match="ZeroDivisionError"):
        _fit(tmp_path / "run", "--rollout.reward", f"{reward}.fails")
    _fit(tmp_path / "run", "--rollout.reward", f"{reward}.length")
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_a_fast_dev_run_leaves_no_checkpoint(tmp_path: Path, reward: str) -> None:
    _fit(tmp_path / "run", "--rollout.reward", f"{reward}.length", "--trainer.fast_dev_run", "true")
    assert not list(tmp_path.glob("run/**/*.ckpt"))


def test_a_checkpoint_of_another_policy_is_refused_in_one_sentence(
    tmp_path: Path, reward: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--rollout.reward", f"{reward}.length"]
    _fit(tmp_path / "run", *own)
    last = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    vague = ["test", *own, "--trainer.accelerator", "cpu", "--data.test.limit", "1", "--ckpt_path", last]
    said = refusal([*vague, "--model.policy", "builtin-vague"], capsys)
    assert said.endswith("ckpt_path: model.policy is builtin-vague, but the checkpoint was written with builtin")
    again = ["fit", *SMALL.split(), "--trainer.default_root_dir", str(tmp_path / "run"), "--ckpt_path", "last", *own]
    assert "model.lora is {" in refusal([*again, "--trainer.max_epochs", "2", "--model.lora.r", "4"], capsys)


def test_a_checkpoint_within_a_rollout_holds_no_scalars_of_numpy(tmp_path: Path, reward: str) -> None:
    within = [
        "--data.prompts_per_step",
        "1",
        "--checkpoint.every_n_train_steps",
        "1",
        "--checkpoint.every_n_epochs",
        "null",
        "--data.curriculum.floor",
        "0.1",
    ]
    _fit(tmp_path / "run", *within, "--trainer.max_steps", "1", "--rollout.reward", f"{reward}.Numpy")
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 1


def test_scores_are_of_pythons_own_types() -> None:
    problem = Problem(id="a", prompt="p", tests=())

    def scored(given: Score) -> Score:
        return as_scores("Own", [problem], [[None]], [[given]])[0][0]

    given: Any = Score(reward=np.float32(0.5), verdicts=(), behaviour=np.str_("x"), parts={"one": np.float64(1.0)})
    assert repr(scored(given)) == repr(Score(reward=0.5, verdicts=(), behaviour="x", parts={"one": 1.0}))
    wrong: Any = Score(reward=0.5, verdicts=(), behaviour=(1, 2))
    with pytest.raises(RewardError, match=r"Own.score gave a behaviour of type tuple, must be int, str or None"):
        scored(wrong)


def test_a_group_that_was_idle_when_the_checkpoint_was_saved_cannot_take_part_later() -> None:
    groups = [make_group("a", 3, [2, 2])]
    with pytest.raises(ValueError, match=r"change model\.kl_coef, .* at the end of a rollout"):
        Recall().load_state(groups, {}, torch.device("cpu"))
