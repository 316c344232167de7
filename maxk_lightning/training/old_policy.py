"""pi_old: the policy when training on a rollout began, and what the engine sampled differently from it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from maxk_lightning.losses import EngineCorrection, TruncatedWeights
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.rollout import Group, Rollout, Samples
from maxk_lightning.training.batch import Batch
from maxk_lightning.training.recall import Recall, State
from maxk_lightning.types import Completion

AGREEMENT = 1e-3
"Largest gap in nats per token, right after a push, at which engine and trainer count as computing alike."


class OldPolicy:
    """Log-probs of the current rollout under the policy that training on it began with.

    The first optimizer step notes those of its own samples, in the pass that it makes anyway: its ratios are exactly 1.
    Those of the other steps take one pass without gradient before it.
    """

    def __init__(self, engine_correction: EngineCorrection | Literal["auto"] | None = "auto") -> None:
        """Choose the weights for what the engine samples differently; see `PolicyModule`."""
        self.correction: EngineCorrection | None = None
        "The engine correction of the current rollout."
        self._choice = engine_correction
        self._recall = Recall()

    def begin(self, rollout: Rollout, age: int) -> None:
        """Choose the correction of a rollout whose weights were `age` optimizer steps old when training on it began."""
        is_needed = age > 0 or rollout.logprob_gap > AGREEMENT
        automatic = TruncatedWeights() if is_needed else None
        self.correction = automatic if self._choice == "auto" else self._choice

    def knows(self, completions: Iterable[Completion]) -> bool:
        """Whether the log-probs of all of them have been noted."""
        return self._recall.knows(completions)

    def note(self, batch: Batch, logprobs_BT: Tensor) -> None:
        """Note the log-probs of a batch."""
        self._recall.keep(batch, logprobs_BT)

    def logprobs(self, batch: Batch) -> Tensor:
        """Return logprobs_BT of a batch that has been noted."""
        return self._recall.recall(batch)

    def forget(self) -> None:
        """Drop everything, at the end of a rollout."""
        self._recall.forget()

    def state(self, steps: Sequence[Samples], ranks: Ranks) -> State:
        """Return the log-probs of a rollout, of all ranks, for a checkpoint: no later run could compute them."""
        states = ranks.gather_each(self._recall.state(_groups(steps)))
        return {seed: logprobs for state in states for seed, logprobs in state.items()}

    def load_state(self, steps: Sequence[Samples], state: State, device: torch.device) -> None:
        """Restore the log-probs of this rank's samples of a stored rollout."""
        self._recall.load_state(_groups(steps), state, device)


def _groups(steps: Sequence[Samples]) -> Iterator[Group]:
    return (group for samples in steps for group in samples.groups)
