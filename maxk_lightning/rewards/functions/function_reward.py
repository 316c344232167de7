"""Plain functions as rewards, called as TRL calls them."""

import functools
import inspect
from collections.abc import Callable, Coroutine, Sequence
from itertools import islice
from typing import Any

from maxk_lightning.rewards.functions.arguments import Batch, Notes, check_columns, signature_of
from maxk_lightning.rewards.functions.event_loop import LOOP_THREAD
from maxk_lightning.rewards.functions.values import read_values, where
from maxk_lightning.rewards.reward import RewardError
from maxk_lightning.types import Completion, Problem, Score

Scores = list[list[Score]]


class FunctionReward:
    """A function `(prompts, completions, **columns) -> list of float or None`, or an `async def` of this kind.

    It is called once per rollout with lists that have an entry per completion, those of a problem side by side:
    `prompts` and `completions` (texts; for a problem that is a chat, lists of messages), `completion_ids`, the columns
    of the problems (`answer`, `id` and all that their rows hold; None where a problem lacks one), `trainer_state` (its
    `global_step` alone), `log_metric(name, value)` and `log_extra`. It needs to name only what it uses. None, or NaN,
    leaves a completion out of its group.
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        """Take a function; `name` is what the log calls it.

        Raises:
            ValueError: it cannot be called so.
        """
        self.function = function
        self.name = name or name_of(function)
        self._signature = signature_of(function, self.name)

    def asks_for(self, argument: str) -> bool:
        """Whether the function names an argument."""
        return argument in self._signature.names

    def check_problems(self, problems: Sequence[Problem]) -> None:
        """Raise ValueError where the function asks for a column that no problem has."""
        check_columns(self._signature, problems, self.name)

    def score(self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]) -> Scores:
        """Score texts; a function that asks for `completion_ids` gets None."""
        flat = [text for group in completions for text in group]
        return self._finish(self._start(_batch(problems, completions, flat, None, 0)), completions)

    def score_completions(
        self, problems: Sequence[Problem], completions: Sequence[Sequence[Completion]], step: int
    ) -> Scores:
        """Score completions."""
        return self.start(problems, completions, step)()

    def start(
        self, problems: Sequence[Problem], completions: Sequence[Sequence[Completion]], step: int
    ) -> Callable[[], Scores]:
        """Start scoring; an `async def` runs until its scores are asked for by calling what this gives."""
        flat = [completion for group in completions for completion in group]
        token_ids = [completion.token_ids for completion in flat]
        batch = _batch(problems, completions, [completion.text for completion in flat], token_ids, step)
        return functools.partial(self._finish, self._start(batch), completions)

    def _start(self, batch: Batch) -> Callable[[], list[Score]]:
        notes = Notes()
        if not len(batch):
            return list
        return functools.partial(self._scores, batch, notes, self._begin(batch, notes))

    def _begin(self, batch: Batch, notes: Notes) -> Callable[[], Any]:
        """Begin a call, and return what gives its output: an `async def` runs at once, another when it is asked."""
        if is_async(self.function):
            return LOOP_THREAD.submit(self._coroutine(batch, notes)).result
        return lambda: self.function(**self._signature.arguments(batch, notes))

    def _scores(self, batch: Batch, notes: Notes, output: Callable[[], Any]) -> list[Score]:
        try:
            values = read_values(output(), batch, self.name)
        except RewardError:
            raise
        except Exception as error:
            raise RewardError(self._blame(batch, error)) from error
        return [Score(reward=value, verdicts=(), parts={self.name: value, **notes.metrics}) for value in values]

    def _blame(self, batch: Batch, error: Exception) -> str:
        """Name the first completion on which the function, asked for it alone, fails in the same way."""
        index = next((i for i in range(len(batch)) if self._fails_alone(batch.only(i), error)), None)
        what = f"reward function {self.name} raised {type(error).__name__}: {error}"
        if index is None:
            return f"{what} (for {len(batch)} completions together; for none of them alone)"
        return f"{what}, {where(batch, index)}"

    def _fails_alone(self, batch: Batch, error: Exception) -> bool:
        try:
            read_values(self._begin(batch, Notes())(), batch, self.name)
        except Exception as other:  # noqa: BLE001 - the user's, seen before
            return type(other) is type(error)
        return False

    def _coroutine(self, batch: Batch, notes: Notes) -> Coroutine[Any, Any, Any]:
        coroutine: Coroutine[Any, Any, Any] = self.function(**self._signature.arguments(batch, notes))
        return coroutine

    @staticmethod
    def _finish(wait: Callable[[], list[Score]], completions: Sequence[Sequence[Any]]) -> Scores:
        scores = iter(wait())
        return [list(islice(scores, len(group))) for group in completions]


def _batch(
    problems: Sequence[Problem],
    completions: Sequence[Sequence[Any]],
    texts: Sequence[str],
    token_ids: Sequence[Sequence[int]] | None,
    step: int,
) -> Batch:
    flat = [problem for problem, group in zip(problems, completions, strict=True) for _ in group]
    return Batch(problems=flat, texts=texts, token_ids=token_ids, step=step)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling gives a coroutine: an `async def`, or an object whose `__call__` is one."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def name_of(function: Callable[..., Any]) -> str:
    """What TRL calls a reward function: its `__name__`, that of the function in a `partial`, or that of its class."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", None) or type(function).__name__
