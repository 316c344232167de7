"""What a reward function gave, checked: a number or nothing for every completion."""

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any, SupportsFloat

from maxk_lightning.rewards.functions.arguments import Batch
from maxk_lightning.rewards.reward import RewardError

logger = logging.getLogger(__name__)
MAX_SHOWN = 200
"Characters of a completion in an error."
_told: set[str] = set()


def read_values(output: Any, batch: Batch, name: str) -> list[float | None]:
    """One number per completion; None, or NaN, where the function leaves a completion out, as in TRL.

    Raises:
        RewardError: something else; names the function, and the problem and completion where one value is wrong.
    """
    if isinstance(output, str | bytes | Mapping) or not isinstance(output, Iterable):
        raise RewardError(
            f"reward function {name} gave {_what(output)} for {len(batch)} completions, must give a list of as many "
            "numbers"
        )
    values = list(output)
    if len(values) != len(batch):
        raise RewardError(
            f"reward function {name} gave {len(values)} rewards for {len(batch)} completions, must give one for each"
        )
    return [_number(value, batch, index, name) for index, value in enumerate(values)]


def _number(value: Any, batch: Batch, index: int, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, str | bytes) or not isinstance(value, SupportsFloat):
        raise RewardError(
            f"reward function {name} gave {_what(value)} {where(batch, index)}, must give a number or None"
        )
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:  # arrays of several numbers, and numbers beyond floats
        raise RewardError(f"reward function {name} gave no number {where(batch, index)}: {error}") from error
    if math.isinf(number):
        raise RewardError(f"reward function {name} gave {number} {where(batch, index)}, must give a finite number")
    if math.isnan(number):
        tell_of_nan(f"reward function {name}", batch.problems[index].id)
        return None
    return number


def tell_of_nan(who: str, problem_id: str) -> None:
    """Say once that a reward was NaN; how often shows in the log."""
    if who not in _told:
        _told.add(who)
        logger.warning(
            "%s gave NaN for a completion of problem %r: such rewards count as missing (train/missing_fraction)",
            who,
            problem_id,
        )


def where(batch: Batch, index: int) -> str:
    """Name a problem and a completion of it."""
    text = batch.texts[index]
    shown = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
    return f"for problem {batch.problems[index].id!r}, completion {shown!r}"


def _what(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return f"a {type(value).__name__}" if value is not None else "None"
