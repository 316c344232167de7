"""Prompt streams, templates and orders."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from maxk_lightning.data import Builtin, Example, JsonLines, PromptStream, PromptTemplate
from maxk_lightning.datamodule import PromptDataModule
from maxk_lightning.policy import load_tokenizer
from maxk_lightning.types import Problem, Sampling, TestCase

SAMPLING = Sampling()
PROBLEM = Problem(id="a", prompt="Add {x}.", tests=(TestCase(input="", output=""),))


def test_every_pass_visits_every_problem_once_in_another_order() -> None:
    stream = PromptStream(num_problems=7, seed=3)
    passes = [[stream.index(position) for position in range(7 * p, 7 * p + 7)] for p in range(5)]
    assert all(sorted(visited) == list(range(7)) for visited in passes)
    assert len({tuple(visited) for visited in passes}) == 5
    assert passes[0] != [PromptStream(num_problems=7, seed=4).index(position) for position in range(7)]


def test_the_template_is_the_tokenizer_s_own(random_policy: str) -> None:
    tokenizer = load_tokenizer(random_policy)
    prompt = PromptTemplate(system="Be brief.", user="Q: {prompt}").render(PROBLEM, tokenizer, seed=5)
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQ: Add {x}.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(prompt.token_ids) == expected
    assert (prompt.problem_id, prompt.seed) == ("a", 5)
    with pytest.raises(ValueError, match=r"must contain \{prompt\}"):
        PromptTemplate(user="Solve it.")


FUNCTION = Problem(
    id="f", prompt="Add.\n```python\ndef add(a, b: int = 1) -> int:\n    ...\n```", function="add", tests=()
)


def test_the_prefill_ends_the_prompt(random_policy: str) -> None:
    tokenizer = load_tokenizer(random_policy)
    plain = PromptTemplate().render(FUNCTION, tokenizer, seed=5)
    prompt = PromptTemplate(prefill="```python\ndef {signature}: # {function} {x}").render(FUNCTION, tokenizer, seed=5)
    assert prompt.prefill == "```python\ndef add(a, b: int = 1) -> int: # add {x}"
    assert prompt.token_ids[: len(plain.token_ids)] == plain.token_ids
    assert tokenizer.decode(prompt.token_ids[len(plain.token_ids) :]) == prompt.prefill
    assert plain.prefill == ""
    with pytest.raises(ValueError, match=r"prefill: problem a has no signature"):
        PromptTemplate(prefill="def {signature}:").render(PROBLEM, tokenizer, seed=5)
    with pytest.raises(ValueError, match=r"prefill ends with a blank"):
        PromptTemplate(prefill="def ")


def test_examples_are_turns_of_the_chat_or_plain_text(random_policy: str) -> None:
    tokenizer = load_tokenizer(random_policy)
    examples = (Example(prompt="1+1?", answer="2"), Example(prompt="2+2?", answer="4"))
    chat = PromptTemplate(examples=examples, user="Q: {prompt}").render(PROBLEM, tokenizer, seed=5)
    expected = "".join(
        f"<|im_start|>user\nQ: {asked}<|im_end|>\n<|im_start|>assistant\n{answer}"
        for asked, answer in (("1+1?", "2<|im_end|>\n"), ("2+2?", "4<|im_end|>\n"), ("Add {x}.", ""))
    )
    assert tokenizer.decode(chat.token_ids) == expected
    tokenizer.chat_template = None
    text = PromptTemplate(examples=examples, user="Q: {prompt}\nA: ", chat=False, prefill="So").render(
        PROBLEM, tokenizer, seed=5
    )
    assert tokenizer.decode(text.token_ids) == "Q: 1+1?\nA: 2\n\nQ: 2+2?\nA: 4\n\nQ: Add {x}.\nA: So"
    with pytest.raises(ValueError, match=r"no chat template; `chat: false`"):
        PromptTemplate().render(PROBLEM, tokenizer, seed=5)
    with pytest.raises(ValueError, match=r"template.system has no effect"):
        PromptTemplate(system="Be brief.", chat=False)


def test_a_plain_text_begins_as_the_tokenizer_begins_texts_and_a_chat_does_not(random_policy: str) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(random_policy)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    begun = PromptTemplate(chat=False, prefill="So").render(PROBLEM, tokenizer, seed=5)
    assert [place for place, token in enumerate(begun.token_ids) if token == 0] == [0]
    assert 0 not in PromptTemplate(prefill="So").render(PROBLEM, tokenizer, seed=5).token_ids


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_what_one_rank_sees(random_policy: str, world_size: int) -> None:
    def module(rank: int, ranks: int) -> PromptDataModule:
        data = PromptDataModule(policy=random_policy, train=Builtin("train", limit=11), prompts_per_rollout=8)
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks, strategy=strategy)  # type: ignore[assignment]
        data.setup("fit")
        return data

    whole = module(0, 1)
    shares = [module(rank, world_size) for rank in range(world_size)]
    for index in range(4):
        expected = Counter((prompt.problem_id, prompt.seed) for prompt in whole.order(index, SAMPLING).prompts)
        together = Counter((p.problem_id, p.seed) for share in shares for p in share.order(index, SAMPLING).prompts)
        assert together == expected
        assert sum(expected.values()) == 8
    names = [prompt.problem_id for prompt in whole.eval_order("validate", SAMPLING).prompts]
    orders = [share.eval_order("validate", SAMPLING) for share in shares]
    assert sorted(names) == sorted(prompt.problem_id for order in orders for prompt in order.prompts)


def test_no_two_groups_of_a_run_share_a_seed(random_policy: str) -> None:
    data = PromptDataModule(policy=random_policy, train=Builtin("train", limit=3), prompts_per_rollout=4)
    data.setup("fit")
    seeds = [prompt.seed for index in range(20) for prompt in data.order(index, SAMPLING).prompts]
    assert len(set(seeds)) == len(seeds) == 80


def test_long_prompts_are_left_out_and_counted(random_policy: str) -> None:
    data = PromptDataModule(policy=random_policy, train=Builtin("train", limit=30), max_prompt_tokens=120)
    data.setup("fit")
    kept = len(data.problems["fit"])
    assert 0 < kept < 30
    text = " ".join(data.reports["fit"].text().split())
    assert f"30 rows read, {kept} kept" in text
    assert f"left out {30 - kept} prompt longer than data.max_prompt_tokens (120)" in text


class Own:
    """A source of a user's own."""

    def __init__(self, *problems: object) -> None:
        self.problems = problems

    def load(self) -> list[object]:
        return list(self.problems)


@pytest.mark.parametrize(
    ("problems", "sentence"),
    [
        ([{"prompt": "Add."}], r"Own.load\(\) gave a dict at place 0, must give maxk_lightning.types.Problem"),
        ([PROBLEM, PROBLEM], r"Own.load\(\) gave two problems of id 'a'"),
        ([], r"data \(fit\): no usable problem; Own: 0 rows read, 0 kept"),
    ],
)
def test_what_a_users_source_gives_is_checked(random_policy: str, problems: list[object], sentence: str) -> None:
    source: Any = Own(*problems)
    with pytest.raises(ValueError, match=sentence):
        PromptDataModule(policy=random_policy, train=source, validation=None).setup("fit")


def test_bad_counts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data.num_ppo_iterations is 0"):
        PromptDataModule(num_ppo_iterations=0)
    with pytest.raises(ValueError, match="limit is 0"):
        JsonLines("x.jsonl", limit=0)
