"""The reference policy of the KL penalty: frozen, so it is asked once per rollout, however many PPO iterations follow.

Legend: B completions, T completion tokens.
"""

from collections.abc import Iterable
from contextlib import nullcontext

import torch
from torch import Tensor

from maxk_lightning.policy import Policy, TokenStats
from maxk_lightning.policy.lora import without_adapters
from maxk_lightning.training.batch import Batch
from maxk_lightning.types import Completion


class Reference:
    """The policy as it was before training, and what it said of the completions of the current rollout.

    Answers are kept by completion (the object: a prompt may come twice), so they outlive any micro-batch. They stand in
    no checkpoint: a run that is resumed amid a rollout asks again, in the same micro-batches and so to the same bits.
    """

    def __init__(self, policy: Policy, *, has_adapters: bool) -> None:
        """Take a frozen copy, or the policy being trained, which is the reference without its adapters."""
        self.policy = policy
        self._has_adapters = has_adapters
        self._answers: dict[int, tuple[Completion, Tensor]] = {}  # an id is no other object's while it is held

    def knows(self, completions: Iterable[Completion]) -> bool:
        """Whether all of them have been asked about."""
        return all(id(completion) in self._answers for completion in completions)

    def logprobs(self, batch: Batch, temperature: float, *, is_known: bool) -> Tensor:
        """Log-probs_BT of a batch: recalled, or computed and kept. Ranks that share the weights must agree on which."""
        return self._recall(batch) if is_known else self._ask(batch, temperature)

    def forget(self) -> None:
        """Drop all answers: the rollout is done with."""
        self._answers.clear()

    @torch.no_grad()
    def _ask(self, batch: Batch, temperature: float) -> Tensor:
        with without_adapters(self.policy.model) if self._has_adapters else nullcontext():
            stats: TokenStats = self.policy.to(batch.mask_BT.device)(batch.rows, temperature)
        for completion, logprobs_T in zip(batch.completions, stats.logprobs_BT, strict=True):
            self._answers[id(completion)] = completion, logprobs_T[: len(completion.token_ids)]
        return stats.logprobs_BT

    def _recall(self, batch: Batch) -> Tensor:
        logprobs_BT = torch.zeros_like(batch.behaviour_logprobs_BT)
        for row, completion in enumerate(batch.completions):
            logprobs_BT[row, : len(completion.token_ids)] = self._answers[id(completion)][1]
        return logprobs_BT
