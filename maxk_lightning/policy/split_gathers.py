"""The gathers of attention over split rows. Their backward passes know who read a token, and gather too.

Autograd's own backward pass of a gather scatters number by number: on a CPU it takes a quarter of the time of all
matrix products of a step in float32, and as long as they in bfloat16. The sums are the same, in the same order.

Shapes: R packed rows, L tokens of a row, U rows of one completion, S tokens of such a row, T tokens of the longest
completion, W columns that prompts take, F features of a token.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitIndices:
    """Where the tokens of packed rows go when prompts and completions are taken apart, and where they come from."""

    num_prompt_tokens: int
    "Number W of columns that the longest prompt takes."
    prompt_lengths: list[int]
    "Tokens of the prompt of each packed row."
    num_copies: list[int]
    "Rows of one completion that each packed row has."
    queries_UT: Tensor
    "Index, into the flattened packed rows, of each completion's tokens, int64; anything behind its end."
    copies_US: Tensor
    "Index, into the flattened packed rows, of the tokens of the U rows; 0 where padded, int64."
    seen_RL: Tensor
    "Index, into the flattened U rows, of a copy of each token; 0 where padded, int64."
    places_RL: Tensor
    "Index of each token in the flattened prompts [R, W] followed by the flattened completions [U, T]; 0 where padded."
    is_padding_RL: Tensor
    "True behind the end of a packed row."
    is_behind_UT: Tensor
    "True behind the end of a completion."


def take_apart(tokens_RLF: Tensor, indices: SplitIndices) -> tuple[Tensor, Tensor]:
    """Prompts [R, W, F] and completions [U, T, F] of packed rows."""
    prompts_RWF, completions_UTF = _TakeApart.apply(tokens_RLF, indices)  # type: ignore[no-untyped-call]
    return prompts_RWF, completions_UTF


def put_together(prompts_RWF: Tensor, completions_UTF: Tensor, indices: SplitIndices) -> Tensor:
    """The packed rows [R, L, F] that prompts and completions were taken from."""
    tokens_RLF: Tensor = _PutTogether.apply(prompts_RWF, completions_UTF, indices)  # type: ignore[no-untyped-call]
    return tokens_RLF


def copy_prompts(tokens_RLF: Tensor, indices: SplitIndices) -> Tensor:
    """Rows [U, S, F] of one completion, each behind a copy of its prompt."""
    copies_USF: Tensor = _CopyPrompts.apply(tokens_RLF, indices)  # type: ignore[no-untyped-call]
    return copies_USF


class _TakeApart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens_RLF: Tensor, indices: SplitIndices) -> tuple[Tensor, Tensor]:
        ctx.indices = indices
        return tokens_RLF[:, : indices.num_prompt_tokens].clone(), _gather(tokens_RLF, indices.queries_UT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, prompt_grads_RWF: Tensor, grads_UTF: Tensor) -> tuple[Tensor, None]:
        grads_RLF = _joined(prompt_grads_RWF, grads_UTF, ctx.indices.places_RL)
        return _zeroed(grads_RLF, ctx.indices.is_padding_RL), None


class _PutTogether(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prompts_RWF: Tensor, completions_UTF: Tensor, indices: SplitIndices) -> Tensor:
        ctx.indices = indices
        return _joined(prompts_RWF, completions_UTF, indices.places_RL)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads_RLF: Tensor) -> tuple[Tensor, Tensor, None]:
        indices: SplitIndices = ctx.indices
        prompt_grads_RWF = grads_RLF[:, : indices.num_prompt_tokens].clone()
        for row, length in enumerate(indices.prompt_lengths):
            prompt_grads_RWF[row, length:] = 0  # those of completions, which start there
        return prompt_grads_RWF, _zeroed(_gather(grads_RLF, indices.queries_UT), indices.is_behind_UT), None


class _CopyPrompts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens_RLF: Tensor, indices: SplitIndices) -> Tensor:
        ctx.indices = indices
        return _gather(tokens_RLF, indices.copies_US)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads_USF: Tensor) -> tuple[Tensor, None]:
        indices: SplitIndices = ctx.indices
        grads_RLF = _gather(grads_USF, indices.seen_RL)
        start = 0
        for row, (length, number) in enumerate(zip(indices.prompt_lengths, indices.num_copies, strict=True)):
            grads_RLF[row, :length] = grads_USF[start : start + number, :length].sum(0)
            start += number
        return _zeroed(grads_RLF, indices.is_padding_RL), None


def _gather(tokens: Tensor, indices: Tensor) -> Tensor:
    features = tokens.shape[-1]
    return tokens.reshape(-1, features).index_select(0, indices.flatten()).view(*indices.shape, features)


def _joined(prompts_RWF: Tensor, completions_UTF: Tensor, places_RL: Tensor) -> Tensor:
    return _gather(torch.cat([prompts_RWF.flatten(0, 1), completions_UTF.flatten(0, 1)]), places_RL)


def _zeroed(tokens: Tensor, mask: Tensor) -> Tensor:
    return tokens.masked_fill_(mask[..., None], 0)
