"""Chats, arguments of the chat template, and what of a completion is its answer."""

from collections import Counter
from typing import Any

import pytest

from maxk_lightning.data import Builtin, Example, PromptTemplate
from maxk_lightning.datamodule import PromptDataModule
from maxk_lightning.policy import load_tokenizer
from maxk_lightning.rollouts.scoring import UNFINISHED, score_groups, submit
from maxk_lightning.types import Completion, Problem, Prompt, Sampling
from tests.support.fakes import LengthReward

THINKING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if tools %}tools: {{ tools | length }}\n{% endif %}"
    "{% if messages[-1].role == 'robot' %}{{ raise_exception('robots are not served') }}{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}no thoughts\n{% endif %}"
)
CHAT = Problem(
    id="c",
    prompt="And 3?",
    messages=(
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "And 3?"},
    ),
)

SINGLE = Problem(id="s", prompt="And 3?")


@pytest.fixture
def tokenizer() -> Any:
    tokenizer = load_tokenizer("builtin")
    tokenizer.chat_template = THINKING
    return tokenizer


def rendered(tokenizer: Any, problem: Problem, **options: Any) -> str:
    """The text that a template gives to the tokenizer, seen through a tokenizer that keeps it."""
    seen: list[str] = []

    class Keeping:
        chat_template = THINKING
        name_or_path = "keeping"

        def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
            return tokenizer.apply_chat_template(*args, **kwargs)

        def __call__(self, text: str, **kwargs: Any) -> Any:
            seen.append(text)
            return tokenizer(text, **kwargs)

    PromptTemplate(**options).render(problem, Keeping(), 0)
    return seen[0]


def test_a_chat_is_rendered_as_its_turns(tokenizer: Any) -> None:
    assert rendered(tokenizer, CHAT) == "<system>Add.\n<user>1?\n<assistant>1\n<user>And 3?\n"
    with_words = rendered(tokenizer, CHAT, user="{prompt} Briefly.", examples=[Example(prompt="0?", answer="0")])
    assert with_words == (
        "<system>Add.\n<user>0? Briefly.\n<assistant>0\n<user>1?\n<assistant>1\n<user>And 3? Briefly.\n"
    )


def test_arguments_reach_the_chat_template(tokenizer: Any) -> None:
    kwargs = {"enable_thinking": False, "tools": [{"type": "function", "function": {"name": "f"}}]}
    assert rendered(tokenizer, CHAT, kwargs=kwargs).endswith("tools: 1\nno thoughts\n")
    assert "no thoughts" not in rendered(tokenizer, CHAT, kwargs={"enable_thinking": True})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kwargs": {"tokenize": True}}, "kwargs must not hold `tokenize`"),
        ({"kwargs": {"a": 1}, "chat": False}, "kwargs has no effect with data.template.chat: false"),
        ({"answer_after": ""}, "answer_after is empty"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PromptTemplate(**options)


def test_what_cannot_be_rendered_is_told(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="problem c begins with a system message of its own"):
        PromptTemplate(system="Mine.").render(CHAT, tokenizer, 0)
    with pytest.raises(ValueError, match="cannot write problem c, whose prompt is a chat"):
        PromptTemplate(chat=False).render(CHAT, tokenizer, 0)
    robot = Problem(id="r", prompt="?", messages=({"role": "robot", "content": "?"},))
    with pytest.raises(ValueError, match="refuses messages of robot: robots are not served"):
        PromptTemplate().render(robot, tokenizer, 0)
    with pytest.raises(ValueError, match=r"a special token of .*, which completions do not show"):
        PromptTemplate(answer_after=tokenizer.eos_token).check(tokenizer)


def completion(text: str) -> Completion:
    return Completion(token_ids=(1, 2), logprobs=(0.0, 0.0), entropies=None, text=text, finish_reason="stop")


def test_rewards_see_the_answer_alone_and_are_not_asked_where_there_is_none() -> None:
    class Telling(LengthReward):
        seen: list[list[str]]

        def score(self, problems: Any, completions: Any) -> Any:
            self.seen = completions
            return super().score(problems, completions)

    problems = [Problem(id=id_, prompt="?") for id_ in "ab"]
    prompts = [Prompt(problem_id=id_, token_ids=(1,), seed=0, answer_after="</think>") for id_ in "ab"]
    texts = [["X</think>ab", "endless", "1</think>2</think>AB"], ["endless", "more", "</think>a"]]
    reward = Telling()
    scores = score_groups(reward, problems, prompts, [list(map(completion, group)) for group in texts])
    assert reward.seen == [["ab", "AB"], ["a"]]
    assert [[score.reward for score in group] for group in scores] == [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    assert [score is UNFINISHED for score in scores[0]] == [False, True, False]
    future = submit(reward, problems[0], prompts[0], completion("endless"))  # type: ignore[arg-type]
    assert future.result().verdicts == ("unfinished_reasoning",)


@pytest.mark.parametrize("place", ["user", "system"])
def test_a_template_says_how_many_tries_there_will_be(place: str, tokenizer: Any) -> None:
    words = {"user": "{prompt}", place: "{prompt} You have {k} tries." if place == "user" else "{k} tries."}
    template = PromptTemplate(**words)
    prompts = [template.render(SINGLE, tokenizer, 3, told_k) for told_k in (1, 16)]
    assert [prompt.told_k for prompt in prompts] == [1, 16]
    said = PromptTemplate(**{name: word.replace("{k}", "16") for name, word in words.items()})
    assert prompts[1].token_ids == said.render(SINGLE, tokenizer, 3).token_ids
    assert said.render(SINGLE, tokenizer, 3, told_k=16).told_k is None
    with pytest.raises(ValueError, match=r"data\.template: there is no number of tries"):
        template.render(SINGLE, tokenizer, 3)


def test_training_prompts_tell_the_ks_in_equal_shares_and_others_the_number_of_completions(random_policy: str) -> None:
    template = PromptTemplate(user="{prompt} Tries: {k}.")
    data = PromptDataModule(
        Builtin("train"),
        Builtin("validation", limit=2),
        template=template,
        policy=random_policy,
        prompts_per_rollout=64,
    )
    data.setup("fit")
    sampling = Sampling(num_completions=8)
    assert {prompt.told_k for prompt in data.order(0, sampling).prompts} == {8}
    data.told_ks = [1, 2, 4]
    prompts = [prompt for index in range(4) for prompt in data.order(index, sampling).prompts]
    counts = Counter(prompt.told_k for prompt in prompts)
    assert set(counts) == {1, 2, 4}
    assert min(counts.values()) > 60  # of 256
    assert data.order(3, sampling).prompts == prompts[-64:]
    assert {prompt.told_k for prompt in data.eval_order("validate", sampling).prompts} == {8}
    data.told_k = 4
    assert {prompt.told_k for prompt in data.eval_order("validate", sampling).prompts} == {4}


def test_a_number_of_tries_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.told_k is 0"):
        PromptDataModule(told_k=0)
