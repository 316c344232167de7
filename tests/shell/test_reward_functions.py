"""Reward functions in a real run: what is logged, what stops it, and what a checkpoint keeps."""

import json
import math
import statistics
from pathlib import Path

import pytest

from maxk_lightning.callbacks.reward_parts import part_values, sums_of
from maxk_lightning.rewards import RewardError
from maxk_lightning.rollouts.rollout import Group, Samples
from maxk_lightning.types import Completion, Problem, Prompt, Sampling, Score
from tests.support.runs import scalars
from tests.support.tiny_run import run

LOWER, RARE = "tests.shell.test_reward_functions.lower", "tests.shell.test_reward_functions.rare"


def lower(completions, **kwargs):  # type: ignore[no-untyped-def]
    return [sum(map(str.islower, text)) / max(1, len(text)) for text in completions]


async def rare(completions, answer, log_metric, **kwargs):  # type: ignore[no-untyped-def]
    log_metric("longest", max(map(len, completions)))
    return [float(len(text)) if given == "x" else None for text, given in zip(completions, answer, strict=True)]


def fails(completions, **kwargs):  # type: ignore[no-untyped-def]
    raise LookupError("nothing there")


@pytest.fixture
def questions(tmp_path: Path) -> str:
    path = tmp_path / "questions.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"What is {n}?", "answer": "x" if n % 2 else n}) + "\n" for n in range(6))
    )
    return json.dumps({"class_path": "maxk_lightning.data.JsonLines", "init_args": {"path": str(path), "limit": None}})


def options(questions: str, **more: object) -> dict[str, object]:
    return {
        "data.train": questions,
        "data.validation": questions,
        "data.test": questions,
        "model.objective": "GRPO",
        **more,
    }


def test_every_reward_function_is_logged_by_name(random_policy: str, questions: str, tmp_path: Path) -> None:
    entries = json.dumps([LOWER, {"reward": RARE, "weight": 0.1, "name": "tail"}])
    root = tmp_path / "run"
    settings = options(
        questions, **{"rollout.reward": "maxk_lightning.rewards.UnitTestReward", "rollout.rewards": entries}
    )
    run("fit", root, random_policy, **settings)
    logged = scalars(root)
    for stage in ("train", "val"):
        for name in ("lower", "tail", "longest"):
            assert {f"{stage}/rewards/{name}{suffix}" for suffix in ("", "_std", "_missing")} <= logged.keys()
    assert set(logged["val/rewards/tail_missing"].values()) == {0.5}
    assert set(logged["val/rewards/lower_missing"].values()) == {0.0}
    for step, reward in logged["val/reward"].items():
        tail = logged["val/rewards/tail"][step]
        assert reward == pytest.approx(logged["val/rewards/lower"][step] + 0.1 * 0.5 * tail, rel=1e-5)


def test_one_function_needs_no_weights(random_policy: str, questions: str, tmp_path: Path) -> None:
    run("fit", tmp_path / "run", random_policy, **options(questions, **{"rollout.reward": LOWER}))
    logged = scalars(tmp_path / "run")
    assert logged["train/rewards/lower"] == logged["train/reward"]


def test_a_failing_function_stops_the_run_with_its_name(random_policy: str, questions: str, tmp_path: Path) -> None:
    reward = "tests.shell.test_reward_functions.fails"
    with pytest.raises(
        RewardError, match=r"reward function fails raised LookupError: nothing there, for problem '\d', comp"
    ):
        run("fit", tmp_path / "run", random_policy, **options(questions, **{"rollout.reward": reward}))


@pytest.mark.parametrize(
    ("reward", "sentence"),
    [
        (LOWER.replace("lower", "lowre"), "has no lowre"),
        ("nowhere.lower", "there is no module nowhere in the working directory or on PYTHONPATH"),
        ("maxk_lightning.rewards.UnitTestReward", "problem '1' has no `tests`, which UnitTestReward runs"),
    ],
)
def test_what_cannot_work_ends_the_command_before_sampling(
    random_policy: str, questions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], reward: str, sentence: str
) -> None:
    with pytest.raises(SystemExit):
        run("fit", tmp_path / "run", random_policy, **options(questions, **{"rollout.reward": reward}))
    assert sentence in capsys.readouterr().err


def test_mean_and_spread_are_those_of_all_ranks() -> None:
    """Against `statistics`, with completions of three ranks, one of them without any."""
    values: list[list[float | None]] = [[1.0, 2.5, None, math.nan], [], [4.0]]
    of_ranks = [sums_of(_samples(said)) for said in values]
    known = [value for said in values for value in said if value is not None and not math.isnan(value)]
    found = part_values(of_ranks)
    assert found["f"] == pytest.approx(statistics.mean(known))
    assert found["f_std"] == pytest.approx(statistics.stdev(known))
    assert found["f_missing"] == pytest.approx(2 / 5)


def _samples(values: list[float | None]) -> Samples:
    completion = Completion(token_ids=(1,), logprobs=(0.0,), entropies=None, text="a", finish_reason="stop")
    scores = [Score(reward=value, verdicts=(), parts={"f": value}) for value in values]
    group = Group(
        problem=Problem(id="p", prompt="?"),
        prompt=Prompt(problem_id="p", token_ids=(1,), seed=0),
        completions=[completion] * len(values),
        scores=scores,
    )
    return Samples(groups=[group] if values else [], sampling=Sampling(num_completions=max(1, len(values))))
