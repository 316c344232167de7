"""Reward functions as TRL's users write them run unchanged, and every likely mistake is told in one sentence."""

import asyncio
import functools
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maxk_lightning.rewards import FunctionReward, RewardError, WeightedReward, WeightedRewards
from maxk_lightning.rewards.configured import as_reward, configured_reward
from maxk_lightning.rewards.functions import values
from maxk_lightning.types import Completion, Problem

PLAIN = Problem(id="sum", prompt="2+2?", answer="4", columns={"answer": 4, "solution": r"\boxed{4}"})
OTHER = Problem(id="product", prompt="2*3?", answer="6", columns={"answer": 6, "task": "math"})
CHAT = Problem(id="chat", prompt="2+2?", messages=({"role": "user", "content": "2+2?"},), columns={"ground_truth": "4"})


def completion(text: str) -> Completion:
    """A completion with a token per character."""
    ids = tuple(range(len(text)))
    return Completion(token_ids=ids, logprobs=(0.0,) * len(ids), entropies=None, text=text, finish_reason="stop")


def rewards_of(reward: Any, problems: list[Problem], *groups: list[str]) -> list[list[float | None]]:
    completions = [[completion(text) for text in group] for group in groups]
    scores = reward.score_completions(problems, completions, 7)
    return [[score.reward for score in group] for group in scores]


# The kinds of functions in TRL's documentation of GRPOTrainer: lengths of tokens, a format, a comparison with a column,
# several tasks in one set, a coroutine.


def longer_completions(completion_ids, **kwargs):  # type: ignore[no-untyped-def]
    """Reward longer completions."""
    return [float(len(ids)) for ids in completion_ids]


def think_format(completions, **kwargs):  # type: ignore[no-untyped-def]
    """Reward the format of conversational completions."""
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(r"^<think>.*?</think><answer>.*?</answer>$", content) else 0.0 for content in contents]


def boxed_matches(completions, ground_truth, **kwargs):  # type: ignore[no-untyped-def]
    """Reward a boxed answer that equals a column."""
    found = [re.search(r"\\boxed\{(.*?)\}", completion[0]["content"]) for completion in completions]
    return [1.0 if match and match[1] == truth else 0.0 for match, truth in zip(found, ground_truth, strict=True)]


def only_math(prompts, completions, task, **kwargs):  # type: ignore[no-untyped-def]
    """Judge one of the tasks of a set, and leave the others out."""
    return [float("6" in text) if kind == "math" else None for text, kind in zip(completions, task, strict=True)]


async def judged_elsewhere(prompts, completions, **kwargs):  # type: ignore[no-untyped-def]
    """Ask somebody else."""

    async def ask(prompt: str, text: str) -> float:
        await asyncio.sleep(0.001)
        return float(len(prompt) > len(text))

    return await asyncio.gather(*map(ask, prompts, completions))


def test_lengths_of_tokens() -> None:
    assert rewards_of(FunctionReward(longer_completions), [PLAIN], ["abc", ""]) == [[3.0, 0.0]]


def test_chats_come_as_messages() -> None:
    texts = ["<think>a</think><answer>4</answer>", "4"]
    assert rewards_of(FunctionReward(think_format), [CHAT], texts) == [[1.0, 0.0]]
    assert rewards_of(FunctionReward(boxed_matches), [CHAT], [r"so \boxed{4}", r"\boxed{5}"]) == [[1.0, 0.0]]


def test_a_function_leaves_out_what_is_not_its_own() -> None:
    assert rewards_of(FunctionReward(only_math), [PLAIN, OTHER], ["4", "5"], ["6", "7"]) == [[None, None], [1.0, 0.0]]


def test_a_coroutine_is_awaited() -> None:
    assert rewards_of(FunctionReward(judged_elsewhere), [PLAIN, OTHER], ["4"], ["a long answer"]) == [[1.0], [0.0]]


def test_everything_that_trl_gives_has_trls_form() -> None:
    seen: dict[str, Any] = {}

    def look(prompts, completions, completion_ids, trainer_state, log_metric, log_extra, **columns):  # type: ignore[no-untyped-def]
        seen.update(
            columns, prompts=prompts, completions=completions, ids=completion_ids, step=trainer_state.global_step
        )
        log_metric("mean_length", 1.5)
        log_extra("length", list(map(len, completions)))
        return [0] * len(prompts)

    scores = FunctionReward(look).score_completions(
        [PLAIN, CHAT], [[completion("a"), completion("b")], [completion("c")]], 7
    )
    assert seen["prompts"] == ["2+2?", "2+2?", [{"role": "user", "content": "2+2?"}]]
    assert seen["completions"] == ["a", "b", [{"role": "assistant", "content": "c"}]]
    assert (seen["ids"], seen["step"]) == ([[0], [0], [0]], 7)
    assert seen["answer"] == [4, 4, None]
    assert seen["solution"] == [r"\boxed{4}", r"\boxed{4}", None]
    assert seen["ground_truth"] == [None, None, "4"]
    assert seen["id"] == ["sum", "sum", "chat"]
    assert not {"prompt", "completion"} & seen.keys()
    assert [score.parts for group in scores for score in group] == [{"look": 0.0, "mean_length": 1.5}] * 3


def test_a_function_names_only_what_it_uses() -> None:
    def short(completions, metadata):  # type: ignore[no-untyped-def]
        return [len(text) + len(facts) for text, facts in zip(completions, metadata, strict=True)]

    assert rewards_of(FunctionReward(short), [PLAIN], ["abc"]) == [[3.0]]
    assert [[s.reward for s in g] for g in FunctionReward(short).score([PLAIN], [["ab"]])] == [[2.0]]
    assert FunctionReward(functools.partial(short)).name == "short"


def gives(output: Any) -> FunctionReward:
    def wrong(completions, **kwargs):  # type: ignore[no-untyped-def]
        return output

    return FunctionReward(wrong)


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ([1.0], r"wrong gave 1 rewards for 2 completions, must give one for each"),
        ("1.0", r"wrong gave the text '1.0' for 2 completions, must give a list"),
        (1.0, r"wrong gave a float for 2 completions"),
        (None, r"wrong gave None for 2 completions"),
        ({"a": 1, "b": 2}, r"wrong gave a dict for 2 completions"),
        ([1.0, "good"], r"wrong gave the text 'good' for problem 'sum', completion 'b', must give a number or None"),
        ([1.0, [2.0]], r"wrong gave a list for problem 'sum', completion 'b'"),
        ([math.inf, 1.0], r"wrong gave inf for problem 'sum', completion 'a'"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused(output: Any, sentence: str) -> None:
    with pytest.raises(RewardError, match=sentence):
        rewards_of(gives(output), [PLAIN], ["a", "b"])


def test_nan_is_missing_and_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "_told", set())
    assert rewards_of(gives([math.nan, True]), [PLAIN], ["a", "b"]) == [[None, 1.0]]
    assert "gave NaN for a completion of problem 'sum'" in caplog.text


def test_tensors_and_arrays_are_lists_of_numbers() -> None:
    import numpy as np
    import torch

    assert rewards_of(gives(np.array([1, 2], dtype=np.float32)), [PLAIN], ["a", "b"]) == [[1.0, 2.0]]
    assert rewards_of(gives(torch.tensor([0.5, 2])), [PLAIN], ["a", "b"]) == [[0.5, 2.0]]


@pytest.mark.parametrize("is_async", [False, True])
def test_an_exception_names_function_problem_and_completion(is_async: bool) -> None:
    def divide(completions, **kwargs):  # type: ignore[no-untyped-def]
        return [1 / len(text) for text in completions]

    async def divide_later(completions, **kwargs):  # type: ignore[no-untyped-def]
        return divide(completions)

    reward = FunctionReward(divide_later if is_async else divide, "divide")
    message = "reward function divide raised ZeroDivisionError: division by zero, for problem 'product', completion ''"
    with pytest.raises(RewardError, match=message) as caught:
        rewards_of(reward, [PLAIN, OTHER], ["a"], ["b", ""])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory of the user's, which is not on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


OWN = """
import functools

def good(completions, **kwargs):
    return [1.0 for _ in completions]

def of_strings(data_source, solution_str, ground_truth, extra_info=None):
    return 1.0

def asks(completions, reference):
    return [1.0 for _ in completions]

def positional(completions, /, **kwargs):
    return [1.0 for _ in completions]

class Scores:
    def __init__(self, limit=3):
        self.limit = limit

    def score(self, problems, completions):
        return [[float(len(text) < self.limit) for text in group] for group in completions]

class Calls:
    def __call__(self, completions, **kwargs):
        return [2.0 for _ in completions]

class Swapped:
    def score(self, prompts, answers):
        return []

class Needs(Scores):
    def __init__(self, limit):
        super().__init__(limit)

class Neither:
    pass

made = Calls()
number = 3
"""


@pytest.mark.parametrize(("path", "expected"), [("good", 1.0), ("Scores", 1.0), ("Calls", 2.0), ("made", 2.0)])
def test_import_paths_are_found_in_the_working_directory(directory: Path, path: str, expected: float) -> None:
    (directory / "own_rewards.py").write_text(OWN)
    reward = configured_reward(f"own_rewards.{path}")
    scores = reward.score([PLAIN], [["ab"]])
    assert [[getattr(score, "reward", score) for score in group] for group in scores] == [[expected]]


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (
            "own_rewards.god",
            r"rollout.reward is 'own_rewards.god', but module own_rewards \(.*\) has no god; it has good",
        ),
        ("own_rewards.good.more", r"module own_rewards.good needs|no module own_rewards.good"),
        ("own_absent.good", r"there is no module own_absent in the working directory or on PYTHONPATH"),
        ("own_broken.good", r"module own_broken cannot be imported \(SyntaxError"),
        ("own_needy.good", r"module own_needy needs one that is missing: No module named 'own_nothing'"),
        ("good", r"module maxk_lightning.rewards \(.*\) has no good"),
        ("own_rewards.of_strings", r"of_strings\(data_source, .*\) takes no `completions`; it is called as"),
        ("own_rewards.positional", r"positional cannot be given `completions` by name"),
        (
            "own_rewards.Swapped",
            r"own_rewards.Swapped.score takes \(self, prompts, answers\), must take \(self, problems",
        ),
        ("own_rewards.Needs", r"class own_rewards.Needs cannot be made without arguments .*init_args"),
        ("own_rewards.Neither", r"class own_rewards.Neither has no method score\(problems, completions\)"),
        ("own_rewards.number", r"rollout.reward is a int, must be a function"),
    ],
)
def test_a_path_to_nothing_useful_is_told_in_one_sentence(directory: Path, path: str, sentence: str) -> None:
    (directory / "own_rewards.py").write_text(OWN)
    (directory / "own_broken.py").write_text("def good(:\n")
    (directory / "own_needy.py").write_text("import own_nothing\n")
    with pytest.raises(ValueError, match=sentence):
        configured_reward(path)


def test_a_column_that_no_problem_has_is_told_before_sampling(directory: Path) -> None:
    (directory / "own_rewards.py").write_text(OWN)
    reward = as_reward("own_rewards.asks", "rollout.reward")
    with pytest.raises(
        ValueError, match=r"asks for `reference`, which problem 'sum' does not have.*answer, id, solution"
    ):
        reward.check_problems([PLAIN, OTHER])  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="problem 'p' has a column `completions`, a name under which"):
        FunctionReward(only_math).check_problems([Problem(id="p", prompt="?", columns={"completions": 1})])


def constant(name: str, *values: float | None) -> FunctionReward:
    def function(completions, **kwargs):  # type: ignore[no-untyped-def]
        return list(values)

    return FunctionReward(function, name)


def test_several_rewards_are_summed_as_trl_sums_them() -> None:
    """TRL: nansum over functions of weight x reward; NaN where all are NaN (grpo_trainer.py of 1.16)."""
    import torch

    given = {"a": (1.0, None, None), "b": (0.5, 2.0, None), "c": (-1.0, 1.0, None)}
    weights = {"a": 1.0, "b": -2.0, "c": 0.0}
    entries = [WeightedReward(reward=constant(name, *given[name]), weight=weights[name]) for name in given]
    reward = configured_reward(as_default(), entries)
    found = rewards_of(reward, [PLAIN], ["x", "y", "z"])[0]
    table = torch.tensor([[math.nan if value is None else value for value in column] for column in given.values()]).T
    expected = (table * torch.tensor(list(weights.values()))).nansum(1)
    expected[table.isnan().all(1)] = math.nan
    assert [math.nan if value is None else value for value in found] == pytest.approx(expected.tolist(), nan_ok=True)


def test_a_metric_of_weight_0_gives_no_reward_to_what_nothing_else_judged() -> None:
    entries = [constant("tests", 0.5, None), WeightedReward(reward=constant("length", 7.0, 8.0), weight=0.0)]
    reward = configured_reward(as_default(), entries)
    scores = reward.score([PLAIN], [["x", "y"]])[0]
    assert [score.reward for score in scores] == [0.5, None]
    assert [score.parts["length"] for score in scores] == [7.0, 8.0]
    with pytest.raises(ValueError, match="every weight is 0"):
        configured_reward(as_default(), entries[1:])


def as_default() -> Any:
    from maxk_lightning.rewards import UnitTestReward

    return UnitTestReward()


def test_coroutines_run_beside_each_other() -> None:
    """Each waits for the other to have begun, which would never end if they ran one after the other."""
    began = {"a": asyncio.Event(), "b": asyncio.Event()}

    def waiting(mine: str, other: str) -> FunctionReward:
        async def wait(completions, **kwargs):  # type: ignore[no-untyped-def]
            began[mine].set()
            await asyncio.wait_for(began[other].wait(), 20)
            return [1.0 for _ in completions]

        return FunctionReward(wait, mine)

    reward = configured_reward(as_default(), [waiting("a", "b"), waiting("b", "a")])
    assert rewards_of(reward, [PLAIN], ["x"]) == [[2.0]]


def test_parts_are_told_apart_by_name() -> None:
    with pytest.raises(ValueError, match="two are called 'a'; give one of them another `name`"):
        configured_reward(as_default(), [constant("a", 1.0), constant("a", 2.0)])
    reward = configured_reward(as_default(), [constant("a", 1.0), WeightedReward(reward=constant("x", 2.0), name="b")])
    assert isinstance(reward, WeightedRewards)
    (score,) = reward.score_completions([PLAIN], [[completion("x")]], 0)[0]
    assert score.parts["a"] == 1.0
    assert score.parts["b"] == 2.0


def test_one_reward_and_several_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"rollout.reward and rollout.rewards exclude each other"):
        configured_reward(constant("a", 1.0), [constant("b", 1.0)])
    with pytest.raises(ValueError, match=r"rollout.rewards is empty"):
        configured_reward(as_default(), [])
    with pytest.raises(ValueError, match="weight is inf, must be a finite number"):
        WeightedReward(reward="a.b", weight=math.inf)
