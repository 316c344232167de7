"""Log-probs of the completions of a rollout, which are computed once and then recalled.

Legend: B completions, T completion tokens.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from maxk_lightning.rollouts.rollout import Group
from maxk_lightning.training.batch import Batch
from maxk_lightning.types import Completion

State = dict[int, list[Tensor]]
"Seed of a prompt -> log-probs_T of each of its completions."


class Recall:
    """Keeps the log-probs that one policy gives to completions.

    They are kept by completion (the object: a prompt may come twice), so they outlive any micro-batch.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Completion, Tensor]] = {}  # an id is no other object's while it is held

    def knows(self, completions: Iterable[Completion]) -> bool:
        """Whether log-probs of all of them are kept."""
        return all(id(completion) in self._kept for completion in completions)

    def keep(self, batch: Batch, logprobs_BT: Tensor) -> None:
        """Keep the log-probs of a batch."""
        for completion, logprobs_T in zip(batch.completions, logprobs_BT.detach(), strict=True):
            self._kept[id(completion)] = completion, logprobs_T[: len(completion.token_ids)].clone()

    def recall(self, batch: Batch) -> Tensor:
        """Return logprobs_BT of a batch, all of whose completions must be known; 0 where masked."""
        logprobs_BT = torch.zeros_like(batch.behaviour_logprobs_BT)
        for row, completion in enumerate(batch.completions):
            if completion.token_ids:
                logprobs_BT[row, : len(completion.token_ids)] = self._kept[id(completion)][1]
        return logprobs_BT

    def forget(self) -> None:
        """Drop everything, at the end of a rollout."""
        self._kept.clear()

    def state(self, groups: Iterable[Group]) -> State:
        """Return the log-probs of groups, for a checkpoint; no two groups of a run share a seed."""
        return {group.prompt.seed: [self._kept[id(c)][1].cpu() for c in group.completions] for group in groups}

    def load_state(self, groups: Iterable[Group], state: State, device: torch.device) -> None:
        """Keep the stored log-probs of groups.

        Raises:
            ValueError: those of a group are not stored, because it was idle.
        """
        for group in groups:
            if group.prompt.seed not in state:
                raise ValueError(
                    "the checkpoint was saved within a rollout, and a group had no part in its loss that has one now: "
                    "change model.kl_coef, model.entropy_coef and model.objective at the end of a rollout"
                )
            for completion, logprobs_T in zip(group.completions, state[group.prompt.seed], strict=True):
                self._kept[id(completion)] = completion, logprobs_T.to(device)
