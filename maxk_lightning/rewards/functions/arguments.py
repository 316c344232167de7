"""What a reward function is called with: TRL's arguments (trl 1.16, docs/source/grpo_trainer.md), by name."""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maxk_lightning.types import Problem

logger = logging.getLogger(__name__)

GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"What the run gives; every other argument is a column."
NO_COLUMNS = ("prompt", "completion", "completion_ids")
"Columns that TRL keeps from reward functions: they come as lists of the run's own."
FIELDS = ("tests", "metadata", "time_limit_s", "memory_limit_mb", "compare", "checker", "function", "prefix")
"Fields of a problem that a function gets where it asks for them by name."


@dataclass(frozen=True, slots=True)
class TrainerState:
    """What of TRL's trainer state is known here."""

    global_step: int
    "Optimizer steps of the weights that sampled."


@dataclass(slots=True)
class Notes:
    """What a function logs during one call."""

    metrics: dict[str, float] = field(default_factory=dict)
    "By name; the last value."

    def log_metric(self, name: str, value: float) -> None:
        """Log a number beside the rewards of this call."""
        self.metrics[name] = float(value)

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Take what TRL shows in its table of completions; there is none here."""
        logger.info(
            "log_extra(%r, ...): %s values are not shown, there is no table of completions", column, len(values)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Completions in one list, those of a problem side by side."""

    problems: Sequence[Problem]
    "Problem of every completion."
    texts: Sequence[str]
    "Their texts."
    token_ids: Sequence[Sequence[int]] | None
    "Their tokens; None: not known."
    step: int
    "Optimizer steps of the weights that sampled."

    def __len__(self) -> int:
        return len(self.texts)

    def only(self, index: int) -> "Batch":
        """One completion alone."""
        token_ids = None if self.token_ids is None else self.token_ids[index : index + 1]
        texts = self.texts[index : index + 1]
        return Batch(problems=self.problems[index : index + 1], texts=texts, token_ids=token_ids, step=self.step)


@dataclass(frozen=True, slots=True)
class Signature:
    """Which arguments a function takes."""

    names: tuple[str, ...]
    "Parameters that have a name."
    required: tuple[str, ...]
    "Those without a default."
    takes_all: bool
    "Whether it has `**kwargs`: then it gets every column."

    def arguments(self, batch: Batch, notes: Notes) -> dict[str, Any]:
        """The arguments of a call, one list entry per completion."""
        given = {
            "prompts": [list(problem.messages) or problem.prompt for problem in batch.problems],
            "completions": [
                [{"role": "assistant", "content": text}] if problem.messages else text
                for problem, text in zip(batch.problems, batch.texts, strict=True)
            ],
            "completion_ids": batch.token_ids and [list(ids) for ids in batch.token_ids],
            "trainer_state": TrainerState(batch.step),
            "log_extra": notes.log_extra,
            "log_metric": notes.log_metric,
        }
        chosen = {name: value for name, value in given.items() if self.takes_all or name in self.names}
        return self._columns(batch.problems) | chosen

    def _columns(self, problems: Sequence[Problem]) -> dict[str, list[Any]]:
        rows = [columns_of(problem) for problem in problems]
        known = dict.fromkeys(name for row in rows for name in row)
        names = [name for name in known if self.takes_all or name in self.names]
        columns = {name: [row.get(name) for row in rows] for name in names}
        fields = [name for name in FIELDS if name in self.names and name not in columns]
        return columns | {name: [getattr(problem, name) for problem in problems] for name in fields}


def columns_of(problem: Problem) -> Mapping[str, Any]:
    """All that a reward function may ask for by name, of one problem."""
    own = {"id": problem.id} | ({} if problem.answer is None else {"answer": problem.answer})
    return own | {name: value for name, value in problem.columns.items() if name not in NO_COLUMNS}


def signature_of(function: Callable[..., Any], name: str) -> Signature:
    """Which arguments a function takes.

    Raises:
        ValueError: some cannot be given by name, or it looks at no completion.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # of some functions that are written in C
        return Signature(names=(), required=(), takes_all=True)
    kinds = inspect.Parameter
    unnamed = [p.name for p in parameters if p.kind is kinds.POSITIONAL_ONLY and p.default is kinds.empty]
    if unnamed:
        raise ValueError(f"reward function {name} cannot be given `{unnamed[0]}` by name, as rewards are called")
    named = [p for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    names = tuple(p.name for p in named)
    takes_all = any(p.kind is kinds.VAR_KEYWORD for p in parameters)
    if not takes_all and not {"completions", "completion_ids"}.intersection(names):
        raise ValueError(
            f"reward function {name}({', '.join(names)}) takes no `completions`; it is called as "
            f"{name}(prompts=[...], completions=[...], **columns) and gives one number per completion"
        )
    required = tuple(p.name for p in named if p.default is kinds.empty)
    return Signature(names=names, required=required, takes_all=takes_all)


def check_columns(signature: Signature, problems: Sequence[Problem], name: str) -> None:
    """Raise ValueError where a function asks for what no problem has, or a column would hide what the run gives."""
    known: set[str] = set()
    for problem in problems:
        columns = columns_of(problem)
        known.update(columns)
        hidden = [column for column in columns if column in GIVEN]
        if hidden:
            raise ValueError(
                f"problem {problem.id!r} has a column `{hidden[0]}`, a name under which reward functions get what the "
                "run gives; rename it"
            )
    absent = [asked for asked in signature.required if asked not in {*known, *GIVEN, *FIELDS}]
    if absent and problems:
        raise ValueError(
            f"reward function {name} asks for `{absent[0]}`, which problem {problems[0].id!r} does not have, nor any "
            f"other; columns are {', '.join(sorted(known))}"
        )
