"""A key/value cache that appends in place."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

ROOM_TOKENS = 64
"Tokens reserved ahead: large enough that growing is rare, small enough not to waste memory on short completions."


class ReservedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A `DynamicLayer` with room ahead, so that appending a token does not copy the whole cache.

    `keys` and `values` are views of the first tokens of two larger buffers. Operations of the base class that change
    the batch (`batch_select_indices`, `batch_repeat_interleave`) replace the views; the next update reserves new
    buffers.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._key_buffer: Tensor | None = None
        self._value_buffer: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append key and value states `[rows, heads, tokens, size]` and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        assert self.keys is not None
        assert self.values is not None
        start, end = self.get_seq_length(), self.get_seq_length() + key_states.shape[-2]
        self._key_buffer = _with_room(self._key_buffer, self.keys, end)
        self._value_buffer = _with_room(self._value_buffer, self.values, end)
        self._key_buffer[:, :, start:end] = key_states
        self._value_buffer[:, :, start:end] = value_states
        self.keys, self.values = self._key_buffer[:, :, :end], self._value_buffer[:, :, :end]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.keys.shape[-2] if self.keys is not None else 0


def _with_room(buffer: Tensor | None, held: Tensor, num_tokens: int) -> Tensor:
    """The buffer that `held` is a view of; a larger copy if it is no such view, or if `num_tokens` do not fit."""
    if buffer is not None and buffer.shape[-2] >= num_tokens and buffer.data_ptr() == held.data_ptr():
        return buffer
    rows, heads, length, size = held.shape
    larger = torch.empty(rows, heads, num_tokens + ROOM_TOKENS, size, dtype=held.dtype, device=held.device)
    larger[:, :, :length] = held
    return larger
