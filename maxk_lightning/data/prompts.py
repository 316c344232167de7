"""From a problem to the tokens the policy reads."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from random import Random
from typing import Any

from maxk_lightning.seeds import derive_seed
from maxk_lightning.types import Problem, Prompt

TOLD_K = "{k}"
"Stands in a template for the number of tries."
OWN_KWARGS = ("messages", "conversation", "add_generation_prompt", "continue_final_message", "tokenize")
"Arguments of `apply_chat_template` that rendering decides."


@dataclass(frozen=True, kw_only=True)
class Example:
    """A solved problem, shown before the one that is asked."""

    prompt: str
    "Statement, as a problem's; the template's `user` is put around it."
    answer: str
    "Whole answer, in the form that is wanted."


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """The text around a problem's statement, inside the tokenizer's own chat template, or as plain text.

    The answer's beginning may be given (`prefill`). It belongs to the prompt: it is not sampled and not trained on, and
    rewards see it in front of what was. The whole is tokenized at once, as a text that the policy has read would be.
    """

    system: str | None = None
    "System message; None: whatever the chat template puts there by itself."
    user: str = "{prompt}"
    """User message; `{prompt}` is the statement. `{k}`, here or in `system`, is how many tries there will be:
    what `objectives.ToldK` drew for the group, or else `data.told_k`."""
    examples: tuple[Example, ...] = ()
    "Solved problems before the one that is asked: turns of the chat, or text with an empty line behind each answer."
    prefill: str = ""
    """Beginning of the answer. `{function}` is the name of the problem's function, `{signature}` what its prompt says
    behind `def`, as in `add(a, b)`. Where more of a line is to come, a blank at its end would be half of a token."""
    chat: bool = True
    "False: no chat template, as of base models; examples, `user` and prefill follow each other as plain text."
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed on to the tokenizer's `apply_chat_template`: `{enable_thinking: false}` of Qwen3, `tools`, whatever the
    template asks for."""
    answer_after: str | None = None
    """Text that ends the reasoning of a model that thinks first, such as `</think>`: rewards see what follows its last
    occurrence. A completion without it was cut off before its answer: its reward is 0 without any reward being asked,
    and `unfinished_reasoning_fraction` counts it."""

    def __post_init__(self) -> None:
        if "{prompt}" not in self.user:
            raise ValueError("data.template.user must contain {prompt}")
        if self.system is not None and not self.chat:
            raise ValueError("data.template.system has no effect with data.template.chat: false; begin `user` with it")
        if self.prefill.endswith((" ", "\t")):
            raise ValueError("data.template.prefill ends with a blank, which belongs to the token that comes next")
        object.__setattr__(self, "examples", tuple(self.examples))  # lists come from YAML
        if self.answer_after == "":
            raise ValueError("data.template.answer_after is empty")
        if self.kwargs and not self.chat:
            raise ValueError("data.template.kwargs has no effect with data.template.chat: false")
        taken = [name for name in OWN_KWARGS if name in self.kwargs]
        if taken:
            raise ValueError(f"data.template.kwargs must not hold `{taken[0]}`, which is fixed")

    @property
    def tells_k(self) -> bool:
        """Whether prompts say how many tries there will be."""
        return TOLD_K in self.user or (self.system is not None and TOLD_K in self.system)

    def render(self, problem: Problem, tokenizer: Any, seed: int, told_k: int | None = None) -> Prompt:
        """Render with a transformers tokenizer, generation prompt and prefill included.

        Args:
            problem: What is asked.
            tokenizer: Of the policy.
            seed: Of the group.
            told_k: Number of tries that the prompt says there will be; needed where the template has a place for it.

        Raises:
            ValueError: there is no chat template, or nothing to fill a word of the prefill or `{k}` with.
        """
        if self.tells_k:
            if told_k is None:
                raise ValueError("data.template: there is no number of tries for `{k}`")
            words = {name: getattr(self, name) for name in ("user", "system")}
            told = {name: word and word.replace(TOLD_K, str(told_k)) for name, word in words.items()}
            return replace(replace(self, **told).render(problem, tokenizer, seed), told_k=told_k)
        prefill = self._prefill_of(problem) if self.prefill else ""
        text = self._chat_text(problem, tokenizer) if self.chat else self._plain_text(problem)
        # A chat template writes special tokens itself; a plain text begins as the tokenizer begins texts.
        token_ids = tokenizer(text + prefill, add_special_tokens=not self.chat)["input_ids"]
        return Prompt(
            problem_id=problem.id,
            token_ids=tuple(token_ids),
            seed=seed,
            prefill=prefill,
            answer_after=self.answer_after,
        )

    def check(self, tokenizer: Any) -> None:
        """Raise ValueError where no completion could hold `answer_after`, because decoding leaves it out."""
        if self.answer_after is None:
            return
        token_ids = tokenizer(self.answer_after, add_special_tokens=False)["input_ids"]
        if self.answer_after.strip() not in tokenizer.decode(token_ids, skip_special_tokens=True):
            raise ValueError(
                f"data.template.answer_after is {self.answer_after!r}, a special token of {tokenizer.name_or_path}, "
                "which completions do not show"
            )

    def _chat_text(self, problem: Problem, tokenizer: Any) -> str:
        if not tokenizer.chat_template:
            raise ValueError(
                f"data.template: the tokenizer of {tokenizer.name_or_path} has no chat template; `chat: false` writes "
                "prompts as plain text"
            )
        given: Sequence[Mapping[str, Any]] = problem.messages or (_turn("user", problem.prompt),)
        num_system = sum(message["role"] == "system" for message in given[:1])
        if num_system and self.system is not None:
            raise ValueError(f"data.template.system: problem {problem.id} begins with a system message of its own")
        messages = [dict(message) for message in given[:num_system]]
        messages += [] if self.system is None else [_turn("system", self.system)]
        for example in self.examples:
            messages += [_turn("user", self._user(example.prompt)), _turn("assistant", example.answer)]
        messages += [dict(message) for message in given[num_system:]]
        if messages[-1]["role"] == "user":
            messages[-1]["content"] = self._user(problem.prompt)
        return _rendered(tokenizer, messages, self.kwargs)

    def _plain_text(self, problem: Problem) -> str:
        if problem.messages:
            raise ValueError(f"data.template.chat: false cannot write problem {problem.id}, whose prompt is a chat")
        before = (f"{self._user(example.prompt)}{example.answer}\n\n" for example in self.examples)
        return "".join(before) + self._user(problem.prompt)

    def _user(self, statement: str) -> str:
        return self.user.replace("{prompt}", statement)

    def _prefill_of(self, problem: Problem) -> str:
        words = {"function": problem.function, "signature": signature_in(problem)}

        def fill(place: re.Match[str]) -> str:
            word = words[place[1]]
            if word is None:
                raise ValueError(f"data.template.prefill: problem {problem.id} has no {place[1]}")
            return word

        return re.sub(r"\{(function|signature)\}", fill, self.prefill)


def _turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _rendered(tokenizer: Any, messages: list[dict[str, Any]], kwargs: Mapping[str, Any]) -> str:
    """The text of a chat, generation prompt included; ValueError where the template refuses it."""
    from jinja2.exceptions import TemplateError  # transformers needs it for chat templates

    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **kwargs)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(f"data.template: the chat template refuses messages of {roles}: {error}") from error
    assert isinstance(text, str)
    return text


def signature_in(problem: Problem) -> str | None:
    """What a problem's prompt says between `def` and the colon of its function; None: it says nothing.

    >>> starter = "Add.\\n```python\\ndef add(a: int, b=':') -> int:\\n    ...\\n```"
    >>> signature_in(Problem(id="a", prompt=starter, function="add", tests=()))
    "add(a: int, b=':') -> int"
    """
    if problem.function is None:
        return None
    lines = re.findall(rf"^def ({re.escape(problem.function)}\(.*\).*):\s*$", problem.prompt, re.MULTILINE)
    return lines[-1] if lines else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptStream:
    """An endless, seeded order of problems: one shuffled pass after another.

    Position is all the state there is: the problem at a position is a function of the seed, so a resumed run continues
    exactly, and every rank knows its own part without asking the others.
    """

    num_problems: int
    "Size of the data set."
    seed: int
    "Seed of all shuffles."

    def index(self, position: int) -> int:
        """Index of the problem at a position, counted from 0 over all passes."""
        data_pass, offset = divmod(position, self.num_problems)
        return _permutation(self.num_problems, derive_seed(self.seed, "pass", data_pass))[offset]

    def others(self, positions: Sequence[int]) -> list[int]:
        """Indices of the problems that stand at none of these positions, in an order that the first one decides."""
        here = {self.index(position) for position in positions}
        others = [index for index in range(self.num_problems) if index not in here]
        Random(derive_seed(self.seed, "others", positions[0])).shuffle(others)
        return others


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int) -> Sequence[int]:
    order = list(range(size))
    Random(seed).shuffle(order)
    return order
