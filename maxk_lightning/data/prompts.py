"""From a problem to the tokens the policy reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

from maxk_lightning.seeds import derive_seed
from maxk_lightning.types import Problem, Prompt


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """The text around a problem's statement, inside the tokenizer's own chat template."""

    system: str | None = None
    "System message; None: whatever the chat template puts there by itself."
    user: str = "{prompt}"
    "User message; `{prompt}` stands for the statement."

    def __post_init__(self) -> None:
        if "{prompt}" not in self.user:
            raise ValueError("data.template.user must contain {prompt}")

    def render(self, problem: Problem, tokenizer: Any, seed: int) -> Prompt:
        """Render with a transformers tokenizer, generation prompt included."""
        messages = [{"role": "user", "content": self.user.replace("{prompt}", problem.prompt)}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
        return Prompt(problem_id=problem.id, token_ids=tuple(encoded["input_ids"]), seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptStream:
    """An endless, seeded order of problems: one shuffled pass after another.

    Position is all the state there is: what stands at a position is a function of the seed, so a resumed run continues
    exactly, and every rank can tell its own part without talking to the others.
    """

    num_problems: int
    "Size of the data set."
    seed: int
    "Seed of all shuffles."

    def index(self, position: int) -> int:
        """Index of the problem that stands at a position, counted from 0 over all passes."""
        data_pass, offset = divmod(position, self.num_problems)
        return _permutation(self.num_problems, derive_seed(self.seed, "pass", data_pass))[offset]


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int) -> Sequence[int]:
    order = list(range(size))
    Random(seed).shuffle(order)
    return order
