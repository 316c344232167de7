"""Attention over packed rows without a mask: each completion attends in a row of its own.

All other layers see the packed rows, in which the completions of a group share one copy of their prompt. In attention
sharing would cost time: every token would be compared with every other of its row, and most pairs masked. So queries,
keys and values are copied into rows of one completion each, for which the causal kernel is enough, and the results are
put back. Shapes: R packed rows, L tokens of a row, H heads, U rows of one completion, S tokens of such a row.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from maxk_lightning.policy.masks import FULL, attention_kinds
from maxk_lightning.policy.packing import PADDING, PROMPT, PackedRows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "shared_prompt"
BLOCK_TOKENS = 256
"""Tokens of a completion that attend together, to all that comes before the last of them: a kernel with a mask skips
nothing, and the tokens after a block need not be masked."""
NO_MASK_1111 = torch.ones(1, 1, 1, 1, dtype=torch.bool)
"Mask that nobody reads: transformers leaves four dimensions alone, and would make a mask of its own for None."


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRows:
    """Prompts and completions taken apart, so that a prompt attends once, however many completions share it.

    In the packed rows prompts come first. W is the number of tokens of the longest prompt, T that of the longest
    completion.
    """

    num_prompt_tokens: int
    "Width W of the prompts."
    queries_UT: Tensor
    "Index, into the flattened packed rows, of each completion's tokens, int64; any value after its end."
    mask_U1TS: Tensor
    "Mask: True where a token of a completion may look in its row of one completion."
    places_RL: Tensor
    "Index of each token in the flattened prompts [R, W] followed by the flattened completions [U, T]; 0 where padded."


def split_rows(rows: PackedRows) -> SplitRows:
    """Take prompts and completions apart."""
    (num_rows, length), num_tokens, num_seen = rows.segments_RL.shape, rows.mask_BT.shape[1], rows.copies_US.shape[1]
    is_prompt_RL = rows.segments_RL == PROMPT
    prompts_R = is_prompt_RL.sum(1)
    width = int(prompts_R.max())
    starts_U = prompts_R[rows.copies_US[:, 0] // length]
    columns_UT = starts_U[:, None] + _arange(num_tokens, rows)
    copy_RL, column_RL = rows.places_RL // num_seen, rows.places_RL % num_seen
    in_prompts_RL = _arange(num_rows, rows)[:, None] * width + _arange(length, rows)
    in_completions_RL = num_rows * width + copy_RL * num_tokens + column_RL - starts_U[copy_RL]
    places_RL = torch.where(is_prompt_RL, in_prompts_RL, in_completions_RL)
    return SplitRows(
        num_prompt_tokens=width,
        queries_UT=rows.copies_US.gather(1, columns_UT.clamp_max(num_seen - 1)),
        mask_U1TS=(_arange(num_seen, rows) <= columns_UT[:, :, None])[:, None],
        places_RL=places_RL.masked_fill(rows.segments_RL == PADDING, 0),
    )


def _arange(end: int, rows: PackedRows) -> Tensor:
    return torch.arange(end, device=rows.segments_RL.device)


def use_shared_prompt_attention(model: "PreTrainedModel") -> bool:
    """Switch a model over if its attention is causal over the whole sequence and can be replaced; whether it was."""
    is_plain = attention_kinds(model.config) == {FULL} and model.config._attn_implementation == "sdpa"
    can_switch = is_plain and model._can_set_attn_implementation()
    if can_switch:
        model.set_attn_implementation(NAME)
    return can_switch


def shared_prompt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    copies_US: Tensor | None = None,
    places_RL: Tensor | None = None,
    split: SplitRows | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend causally from each completion to its prompt and itself; see `packing.PackedRows`.

    With `split` prompts attend once per packed row, not once per completion. Without `copies_US` or `places_RL` this is
    `sdpa`.

    Queries, keys and values are [R, heads, L, size]; the result is [R, L, heads, size].
    """
    if copies_US is None or places_RL is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    attend = partial(
        F.scaled_dot_product_attention, dropout_p=dropout, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    keys, values = (_rows(tensor, copies_US).transpose(1, 2) for tensor in (key, value))
    if split is None:
        attended = attend(_rows(query, copies_US).transpose(1, 2), keys, values, is_causal=True)
        return _rows(attended, places_RL), None
    width = split.num_prompt_tokens
    queries = _rows(query, split.queries_UT).transpose(1, 2)
    prompts = attend(query[:, :, :width], key[:, :, :width], value[:, :, :width], is_causal=True)
    blocks = []
    for start in range(0, queries.shape[2], BLOCK_TOKENS):
        stop = start + BLOCK_TOKENS
        block = queries[:, :, start:stop], keys[:, :, : width + stop], values[:, :, : width + stop]
        blocks.append(attend(*block, attn_mask=split.mask_U1TS[:, :, start:stop, : width + stop]))
    tokens = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in (prompts, torch.cat(blocks, dim=2))])
    return tokens.index_select(0, split.places_RL.flatten()).view(*split.places_RL.shape, *tokens.shape[1:]), None


def _rows(tensor: Tensor, indices: Tensor) -> Tensor:
    """Gather tokens from [rows, heads, tokens, size] into [rows, tokens, heads, size]."""
    tokens = tensor.transpose(1, 2).flatten(2).flatten(0, 1)
    return tokens.index_select(0, indices.flatten()).view(*indices.shape, tensor.shape[1], tensor.shape[3])


AttentionInterface.register(NAME, shared_prompt_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
