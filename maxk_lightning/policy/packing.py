"""Rows that share a prompt: the completions of a group follow one copy of it.

Legend: R rows, L tokens of a row, P prompts, N completions per prompt, B = P*N completions, T completion tokens,
M completion tokens of all completions together, U rows of a single completion, S tokens of such a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

Tokens = Sequence[int]
PROMPT = 0
"Segment number of a row's prompt; its completions are numbered from 1."
PADDING = -1
"Segment number after the end of a row."


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRows:
    """Prompts and completions, ready for one forward pass.

    A row holds one prompt and one or more of its completions. Positions restart after the prompt for each completion,
    and a completion sees the prompt and itself only, so every log-prob is what it would be in a row of its own.
    """

    input_ids_RL: Tensor
    "Token ids, int64; 0 where padded."
    positions_RL: Tensor
    "Position of each token in its own prompt + completion, int64."
    segments_RL: Tensor
    "Segment of each token, int64: `PROMPT`, 1, 2, ... or `PADDING`."
    sources_M: Tensor
    "Index, into the flattened rows, of the token that predicts each completion token, int64."
    targets_M: Tensor
    "Completion tokens, completion by completion, int64."
    mask_BT: Tensor
    "Mask: True on completion tokens; the first of each completion is in column 0."
    copies_US: Tensor
    "Index, into the flattened rows, of the tokens of U rows that hold a single completion; 0 where padded, int64."
    places_RL: Tensor
    "Index, into the flattened U rows, of a copy of each token; 0 where padded, int64."

    def to(self, device: torch.device) -> "PackedRows":
        """Move the rows to a device."""
        return replace(self, **{field.name: to_device(getattr(self, field.name), device) for field in fields(self)})


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to a device; from page-locked memory, so that the host does not wait for pending work of a GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def pack(
    prompts: Sequence[Tokens], completions: Sequence[Sequence[Tokens]], max_row_tokens: int | None = None
) -> PackedRows:
    """Lay out groups; a row is closed before it would exceed `max_row_tokens` (None: one row per prompt).

    A prompt with a single completion may exceed the limit. A small enough limit gives one completion per row, which
    needs no attention mask. No prompts at all give one row of one token and no completion, with which a rank can join a
    forward pass of the others.
    """
    rows: list[tuple[Tokens, list[Tokens]]] = [
        (prompt, part)
        for prompt, group in zip(prompts, completions, strict=True)
        for part in _parts(len(prompt), group, max_row_tokens)
    ] or [((0,), [])]
    length = max(len(prompt) + sum(map(len, part)) for prompt, part in rows)
    input_ids_RL = torch.zeros(len(rows), length, dtype=torch.long)
    positions_RL = torch.zeros(len(rows), length, dtype=torch.long)
    segments_RL = torch.full((len(rows), length), PADDING)
    sources: list[int] = []
    copies: list[list[int]] = []
    for row, (prompt, part) in enumerate(rows):
        tokens, positions, segments = list(prompt), list(range(len(prompt))), [PROMPT] * len(prompt)
        prompt_indices = list(range(row * length, row * length + len(prompt)))
        for segment, completion in enumerate(part, start=1):
            start = row * length + len(tokens)
            copies.append([*prompt_indices, *range(start, start + len(completion))])
            if completion:
                sources += [row * length + len(prompt) - 1, *range(start, start + len(completion) - 1)]
            tokens += completion
            positions += range(len(prompt), len(prompt) + len(completion))
            segments += [segment] * len(completion)
        if not part:
            copies.append(prompt_indices)
        input_ids_RL[row, : len(tokens)] = torch.tensor(tokens)
        positions_RL[row, : len(tokens)] = torch.tensor(positions)
        segments_RL[row, : len(tokens)] = torch.tensor(segments)
    copies_US, places_RL = _unshared(copies, input_ids_RL.shape)
    lengths = [len(completion) for group in completions for completion in group]
    lengths_B = torch.tensor(lengths, dtype=torch.long)
    return PackedRows(
        input_ids_RL=input_ids_RL,
        positions_RL=positions_RL,
        segments_RL=segments_RL,
        sources_M=torch.tensor(sources, dtype=torch.long),
        targets_M=torch.tensor([token for group in completions for c in group for token in c], dtype=torch.long),
        mask_BT=torch.arange(max([1, *lengths])) < lengths_B[:, None],
        copies_US=copies_US,
        places_RL=places_RL,
    )


def _unshared(copies: Sequence[Sequence[int]], shape: torch.Size) -> tuple[Tensor, Tensor]:
    copies_US = torch.zeros(len(copies), max(map(len, copies)), dtype=torch.long)
    places = torch.zeros(shape.numel(), dtype=torch.long)
    for row, indices in enumerate(copies):
        copies_US[row, : len(indices)] = torch.tensor(indices)
        places[indices] = row * copies_US.shape[1] + torch.arange(len(indices))
    return copies_US, places.view(shape)


def row_lengths(prompt: Tokens, group: Sequence[Tokens], max_row_tokens: int | None = None) -> list[int]:
    """Count the tokens of each row that `pack` makes of a group."""
    return [len(prompt) + sum(map(len, part)) for part in _parts(len(prompt), group, max_row_tokens)]


def _parts(prompt_tokens: int, group: Sequence[Tokens], max_row_tokens: int | None) -> Iterator[list[Tokens]]:
    """Consecutive completions that share a row."""
    part: list[Tokens] = []
    num_tokens = prompt_tokens
    for completion in group:
        if part and max_row_tokens is not None and num_tokens + len(completion) > max_row_tokens:
            yield part
            part, num_tokens = [], prompt_tokens
        part.append(completion)
        num_tokens += len(completion)
    yield part
