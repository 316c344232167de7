"""Which groups share a forward and backward pass. Never changes the loss.

The size of a micro-batch is what its packed rows hold, padding included: the number of rows times the longest. Groups
stay whole; only a group that is larger than the limit by itself is split into parts, each in a micro-batch of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from maxk_lightning.policy.packing import row_lengths
from maxk_lightning.rollouts.rollout import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatches:
    """The micro-batches of one rank in one optimizer step."""

    whole: Sequence[Sequence[Group]]
    "Micro-batches of whole groups."
    split: list[Group]
    "Groups larger than the token budget."
    parts: list[Group]
    "Those groups cut into parts, in order; each part is a micro-batch."
    num_parts: list[int]
    "Number of parts of each split group."

    def __len__(self) -> int:
        """Number of micro-batches."""
        return len(self.whole) + len(self.parts)


def cut_by_prompts(groups: Sequence[Group], max_prompts: int | None) -> MicroBatches:
    """Cut into micro-batches of `max_prompts` groups; None: all groups at once."""
    size = max_prompts or max(1, len(groups))
    return MicroBatches(
        whole=[groups[start : start + size] for start in range(0, len(groups), size)], split=[], parts=[], num_parts=[]
    )


def cut_by_tokens(groups: Sequence[Group], max_tokens: int, max_row_tokens: int | None) -> MicroBatches:
    """Cut into micro-batches of at most `max_tokens`, unless a single completion with its prompt is longer.

    Groups with the longest rows come first, so that rows of similar length share a micro-batch, with little padding.
    """
    rows = [_row_lengths(group, max_row_tokens) for group in groups]
    order = sorted(range(len(groups)), key=lambda index: -max(rows[index]))
    whole: list[list[Group]] = []
    split: list[Group] = []
    parts: list[list[Group]] = []
    num_rows = longest = 0
    for index in order:
        if _size(rows[index]) > max_tokens:
            split.append(groups[index])
            parts.append(list(_parts(groups[index], max_tokens, max_row_tokens)))
        elif whole and (num_rows + len(rows[index])) * longest <= max_tokens:
            whole[-1].append(groups[index])
            num_rows += len(rows[index])
        else:
            whole.append([groups[index]])
            num_rows, longest = len(rows[index]), max(rows[index])
    flat = [part for of_a_group in parts for part in of_a_group]
    return MicroBatches(whole=whole, split=split, parts=flat, num_parts=[*map(len, parts)])


def _parts(group: Group, max_tokens: int, max_row_tokens: int | None) -> Iterator[Group]:
    start = 0
    for stop in range(1, len(group.completions) + 1):
        is_last = stop == len(group.completions)
        if is_last or _size(_row_lengths(_part(group, start, stop + 1), max_row_tokens)) > max_tokens:
            yield _part(group, start, stop)
            start = stop


def _part(group: Group, start: int, stop: int) -> Group:
    return replace(group, completions=group.completions[start:stop], scores=group.scores[start:stop])


def _row_lengths(group: Group, max_row_tokens: int | None) -> list[int]:
    return row_lengths(group.prompt.token_ids, [c.token_ids for c in group.completions], max_row_tokens)


def _size(rows: Sequence[int]) -> int:
    return len(rows) * max(rows)
