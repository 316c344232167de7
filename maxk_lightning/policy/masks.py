"""Attention masks of packed rows, one per kind of attention layer, as transformers builds them for a single sequence.

Legend: R rows, L tokens of a row.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from maxk_lightning.policy.packing import PROMPT, PackedRows

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FULL = "full_attention"
"Layers that see all of the past."
SLIDING = "sliding_attention"
"Layers that see the last `sliding_window` tokens, their own included."

Mask = Tensor | BlockMask | None
Masks = Mask | dict[str, Mask]

FLEX = "flex_attention"
"Attention of torch that skips what a rule hides, block by block, and never holds a mask of L x L."


def attention_kinds(config: "PreTrainedConfig") -> set[str]:
    """Return the kinds of attention layers; with `layer_types` a model takes one mask for each, else one for all.

    This is how transformers itself decides when it prepares masks ahead of a forward pass
    (`masking_utils.create_masks_for_generate`).
    """
    text = config.get_text_config()
    if getattr(text, "layer_types", None) is not None:
        return set(text.layer_types)
    if getattr(text, "sliding_window", None) is not None:
        return {SLIDING}
    return {"chunked_attention" if getattr(text, "attention_chunk_size", None) is not None else FULL}


def layer_masks(rows: PackedRows, config: "PreTrainedConfig", implementation: str, dtype: torch.dtype) -> Masks:
    """Make the masks of a model's layers, in the form in which its forward pass takes them.

    A token sees the prompt and its own completion up to itself. A window counts positions, which restart after the
    prompt, so a completion sees what it would see alone after its prompt.

    Args:
        rows: Packed rows.
        config: Configuration of the model, whose attention is of the kinds `FULL` and `SLIDING`.
        implementation: `eager` takes masks that are added to the scores; `sdpa` takes True where a token may look, and
            no mask at all where the causal kernel is enough; `FLEX` takes the rule itself.
        dtype: Type of masks that are added.
    """
    text = config.get_text_config()
    masks: dict[str, Mask] = {}
    for kind in attention_kinds(config):
        window = text.sliding_window if kind == SLIDING else None
        if implementation == FLEX:
            masks[kind] = block_mask(rows, window)
        elif implementation == "eager":
            masks[kind] = _added(visible(rows, window), dtype)
        else:
            masks[kind] = None if _is_causal(rows, window) else visible(rows, window)
    if getattr(text, "layer_types", None) is not None:
        return masks
    (mask,) = masks.values()
    return mask


def visible(rows: PackedRows, window: int | None = None) -> Tensor:
    """Make a mask that is True where a token (third axis) may look (fourth axis), [R, 1, L, L]."""
    asking_RL1, seen_R1L = rows.segments_RL[:, :, None], rows.segments_RL[:, None, :]
    is_visible_RLL = ((seen_R1L == PROMPT) | (seen_R1L == asking_RL1)).tril()
    if window is not None:
        distances_RLL = rows.positions_RL[:, :, None] - rows.positions_RL[:, None, :]
        is_visible_RLL &= distances_RLL < window
    return is_visible_RLL[:, None]


def block_mask(rows: PackedRows, window: int | None = None) -> BlockMask:
    """Make the mask of `visible` for `FLEX`: blocks of tokens of which all, some or none are visible, [R, 1, L, L]."""
    segments_RL, positions_RL = rows.segments_RL, rows.positions_RL

    def sees(row: Tensor, head: Tensor, asking: Tensor, seen: Tensor) -> Tensor:
        seen_segment = segments_RL[row, seen]
        is_visible = (seen_segment == PROMPT) | (seen_segment == segments_RL[row, asking])
        if window is not None:
            is_visible &= positions_RL[row, asking] - positions_RL[row, seen] < window
        return is_visible & (seen <= asking)

    num_rows, length = segments_RL.shape
    make = torch.compile(create_block_mask) if segments_RL.is_cuda else create_block_mask  # else it holds L x L once
    return make(sees, num_rows, None, length, length, segments_RL.device)


def _is_causal(rows: PackedRows, window: int | None) -> bool:
    """Whether the causal mask is enough; right padding comes after everything that counts."""
    return int(rows.segments_RL.max()) <= 1 and (window is None or int(rows.positions_RL.max()) < window)


def _added(is_seen_R1LL: Tensor, dtype: torch.dtype) -> Tensor:
    zeros_R1LL = torch.zeros(is_seen_R1LL.shape, dtype=dtype, device=is_seen_R1LL.device)
    return zeros_R1LL.masked_fill(~is_seen_R1LL, torch.finfo(dtype).min)
