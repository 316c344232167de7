"""The reference of the KL penalty: frozen, so it runs once per rollout, however many PPO iterations follow.

Legend: B completions, T completion tokens.
"""

from collections.abc import Iterable
from contextlib import nullcontext

import torch
from torch import Tensor

from maxk_lightning.policy import Policy, TokenStats
from maxk_lightning.policy.lora import without_adapters
from maxk_lightning.training.batch import Batch
from maxk_lightning.training.recall import Recall
from maxk_lightning.types import Completion


class Reference:
    """The policy as it was before training, and its log-probs of the completions of the current rollout.

    Checkpoints do not hold these: a run that is resumed within a rollout computes them again, in the same micro-batches
    and so to the same bits.
    """

    def __init__(self, policy: Policy, *, has_adapters: bool) -> None:
        """Take a frozen copy, or the policy being trained, which is the reference without its adapters."""
        self.policy = policy
        self._has_adapters = has_adapters
        self._answers = Recall()

    def knows(self, completions: Iterable[Completion]) -> bool:
        """Whether log-probs of all of them are known."""
        return self._answers.knows(completions)

    def forget(self) -> None:
        """Drop all log-probs, at the end of a rollout."""
        self._answers.forget()

    def logprobs(self, batch: Batch, temperature: float, *, is_known: bool) -> Tensor:
        """Return logprobs_BT of a batch: recalled, or computed and kept. Ranks that share the weights must agree."""
        if is_known:
            return self._answers.recall(batch)
        with torch.no_grad(), without_adapters(self.policy.model) if self._has_adapters else nullcontext():
            stats: TokenStats = self.policy.to(batch.mask_BT.device)(batch.rows, temperature)
        self._answers.keep(batch, stats.logprobs_BT)
        return stats.logprobs_BT
