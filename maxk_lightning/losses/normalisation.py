"""Weights that turn per-token losses into one number: (loss_BT * weights_BT).sum().

Shapes: B rows (P prompts times N completions), T completion tokens. Denominators are *global*: counted over the whole
optimizer batch, all micro-batches and ranks, so that the sum over pieces is the loss of the batch, however it is cut.
Credits already hold the 1/N of the group (see `Objective`); multiply by weights / N for terms that do not, such as a KL
penalty.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Normalisation = Literal["sequence", "token", "constant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCounts:
    """Global counts of the optimizer batch."""

    num_prompts: int
    "Prompts P over all micro-batches and ranks."
    num_completions: float
    "Completions per prompt, N; the mean, where prompts differ."
    total_tokens: int
    "Completion tokens over all micro-batches and ranks."
    max_tokens: int
    "Tokens of the longest completion that sampling allows (not of the longest sampled)."


def weights_by_sequence(mask_BT: Tensor, num_prompts: int) -> Tensor:
    """1 / (P length): the mean over tokens inside each completion (GRPO); favours short correct completions."""
    lengths_B1 = mask_BT.sum(-1, keepdim=True).clamp(min=1)
    return mask_BT.float() / (num_prompts * lengths_B1)


def weights_by_token(mask_BT: Tensor, total_tokens: int, num_completions: float) -> Tensor:
    """N / total tokens: every token of the batch counts the same (DAPO, arXiv:2503.14476)."""
    return mask_BT.float() * (num_completions / max(total_tokens, 1))


def weights_by_constant(mask_BT: Tensor, num_prompts: int, max_tokens: int) -> Tensor:
    """1 / (P max tokens): proportional to the gradient of the objective itself (Dr. GRPO, arXiv:2503.20783)."""
    return mask_BT.float() / (num_prompts * max_tokens)


def token_weights(normalisation: Normalisation) -> Callable[[Tensor, StepCounts], Tensor]:
    """Return the weights that a config names: (mask_BT, counts) -> weights_BT. ValueError for an unknown name."""
    if normalisation not in _BY_NAME:
        raise ValueError(f"`normalisation` is {normalisation!r}, must be one of {', '.join(_BY_NAME)}")
    return _BY_NAME[normalisation]


def _by_sequence(mask_BT: Tensor, counts: StepCounts) -> Tensor:
    return weights_by_sequence(mask_BT, counts.num_prompts)


def _by_token(mask_BT: Tensor, counts: StepCounts) -> Tensor:
    return weights_by_token(mask_BT, counts.total_tokens, counts.num_completions)


def _by_constant(mask_BT: Tensor, counts: StepCounts) -> Tensor:
    return weights_by_constant(mask_BT, counts.num_prompts, counts.max_tokens)


_BY_NAME: dict[str, Callable[[Tensor, StepCounts], Tensor]] = {
    "sequence": _by_sequence,
    "token": _by_token,
    "constant": _by_constant,
}
