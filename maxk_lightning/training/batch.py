"""Groups as tensors.

Legend: P prompts, N completions per prompt, B = P*N completions, T completion tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from maxk_lightning.objectives import GroupFacts
from maxk_lightning.policy.packing import PackedRows, pack, to_device
from maxk_lightning.rollouts.rollout import Group, facts_of, rewards_of
from maxk_lightning.types import Completion

NO_COMPLETION = Completion(token_ids=(), logprobs=(), entropies=None, text="", finish_reason="stop")
"Fills a group with fewer completions than the largest of its batch."


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Whole groups as tensors; the rows of a group follow each other."""

    rows: PackedRows
    "Prompts and completions for the policy."
    behaviour_logprobs_BT: Tensor
    "Log-prob that the engine reported of every completion token, float32, nats; 0 where masked."
    rewards_PN: Tensor
    "Rewards, float64; NaN where a sample could not be scored. No rows where credits are given."
    facts: GroupFacts
    "What objectives may need to know of the same groups."
    credits_B: Tensor | None = None
    "Credits, float64, of parts of groups: they depend on completions that are not here; None: whole groups."
    completions: Sequence[Completion] = ()
    "Completions that the B rows were made of."

    @property
    def mask_BT(self) -> Tensor:
        """True on completion tokens."""
        return self.rows.mask_BT

    def to(self, device: torch.device) -> "Batch":
        """Move the batch to a device."""
        return replace(
            self,
            rows=self.rows.to(device),
            behaviour_logprobs_BT=to_device(self.behaviour_logprobs_BT, device),
            rewards_PN=to_device(self.rewards_PN, device),
            facts=self.facts.moved(partial(to_device, device=device)),
            credits_B=None if self.credits_B is None else to_device(self.credits_B, device),
        )


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches that are packed as they are iterated: a GPU still works on one while the next is packed."""

    pack: Sequence[Callable[[], Batch]]
    "Functions that make them, one each."

    def __len__(self) -> int:
        return len(self.pack)

    def __iter__(self) -> Iterator[Batch]:
        return (pack() for pack in self.pack)


def to_batch(
    groups: Sequence[Group],
    max_row_tokens: int | None = None,
    num_completions: int = 0,
    credits_B: Tensor | None = None,
) -> Batch:
    """Lay groups out as tensors; see `packing.pack`.

    Args:
        groups: Whole groups, or parts of groups if credits are given.
        max_row_tokens: Most tokens of a packed row; None: one row per prompt.
        num_completions: The N of a batch without whole groups.
        credits_B: Credits of the completions; None: not known yet.
    """
    sampled = [group.completions for group in groups]
    if credits_B is None:  # the smaller groups get rows without tokens
        size = max([0, *map(len, sampled)])
        sampled = [[*group, *[NO_COMPLETION] * (size - len(group))] for group in sampled]
    rows = pack(
        [group.prompt.token_ids for group in groups],
        [[completion.token_ids for completion in group] for group in sampled],
        max_row_tokens,
    )
    completions = [completion for group in sampled for completion in group]
    logprobs = [logprob for completion in completions for logprob in completion.logprobs]
    behaviour_logprobs_BT = torch.zeros(rows.mask_BT.shape)
    behaviour_logprobs_BT[rows.mask_BT] = torch.tensor(logprobs, dtype=torch.float32)
    whole = groups if credits_B is None else []
    return Batch(
        rows=rows,
        behaviour_logprobs_BT=behaviour_logprobs_BT,
        rewards_PN=rewards_of(whole, 0 if whole else num_completions),
        facts=facts_of(whole, 0 if whole else num_completions),
        credits_B=credits_B,
        completions=completions,
    )
