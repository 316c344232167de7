"""Attention over packed rows without a mask: each completion attends in a row of its own.

All other layers see the packed rows, in which the completions of a group share one copy of their prompt. Attention is
where sharing would cost: every token would be compared with every other of its row, and most pairs masked. So queries,
keys and values are copied into rows of one completion each, for which the causal kernel is enough, and the results are
put back. Shapes: R packed rows, L tokens of a row, H heads, U rows of one completion, S tokens of such a row.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "shared_prompt"
NO_MASK_1111 = torch.ones(1, 1, 1, 1, dtype=torch.bool)
"Not looked at; transformers leaves a mask of four dimensions alone, and would make one of its own for None."


def use_shared_prompt_attention(model: "PreTrainedModel") -> bool:
    """Switch a model over, unless its attention is something else than causal over the whole sequence."""
    default = ["full_attention" if getattr(model.config, "sliding_window", None) is None else "sliding_attention"]
    kinds = set(getattr(model.config, "layer_types", None) or default)
    is_plain = kinds == {"full_attention"} and model.config._attn_implementation == "sdpa"
    if is_plain:
        model.set_attn_implementation(NAME)
    return is_plain


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
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each completion over its prompt and itself; see `packing.PackedRows`. Without these: `sdpa`.

    Queries, keys and values are [R, heads, L, size]; the result is [R, L, heads, size].
    """
    if copies_US is None or places_RL is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    attended = F.scaled_dot_product_attention(
        _rows(query, copies_US).transpose(1, 2),
        _rows(key, copies_US).transpose(1, 2),
        _rows(value, copies_US).transpose(1, 2),
        dropout_p=dropout,
        is_causal=True,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return _rows(attended, places_RL), None


def _rows(tensor: Tensor, indices: Tensor) -> Tensor:
    """Gather tokens from [rows, heads, tokens, size] into [rows, tokens, heads, size]."""
    tokens = tensor.transpose(1, 2).flatten(2).flatten(0, 1)
    return tokens.index_select(0, indices.flatten()).view(*indices.shape, tensor.shape[1], tensor.shape[3])


AttentionInterface.register(NAME, shared_prompt_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
