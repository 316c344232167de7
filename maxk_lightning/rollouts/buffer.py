"""The current rollout as the training loop reads it: one item per optimizer step."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random

from torch.utils.data import Dataset

from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.rollout import Group, Rollout, Samples
from maxk_lightning.rollouts.shares import dealt, exchange
from maxk_lightning.seeds import derive_seed


class RolloutBuffer(Dataset[Samples]):
    """This rank's samples of every optimizer step of a rollout, once for every PPO iteration.

    Each iteration visits the steps in an order of its own. A step always has the same groups, neighbours in the prompt
    stream and its part of those that are replayed, and the order is the same on all ranks: an optimizer step sees the
    same groups however many ranks share it. All ranks have the same number of steps; a rank's share of one may be
    empty. The length is known before the buffer is filled, so that a DataLoader can be built on it once.
    """

    def __init__(
        self,
        num_groups: int,
        groups_per_step: int,
        num_iterations: int = 1,
        *,
        ranks: Ranks = Ranks(),  # noqa: B008  (frozen)
        seed: int | None = None,
    ) -> None:
        """Prepare for rollouts of `num_groups` groups over all ranks.

        Args:
            num_groups: Groups of a rollout that are trained on.
            groups_per_step: Groups of an optimizer step.
            num_iterations: PPO iterations.
            ranks: Those that share the rollout.
            seed: Seed of the run, for training: steps are shuffled, and ranks exchange groups so that each has about as
                many tokens of every step. None, for evaluation: steps come in order, with what this rank sampled.
        """
        super().__init__()
        self.groups_per_step = groups_per_step
        self.num_iterations = num_iterations
        self.ranks = ranks
        self.seed = seed
        bounds = [ranks.num_own(start) for start in (*range(0, num_groups, groups_per_step), num_groups)]
        self._steps = [slice(start, end) for start, end in pairwise(bounds)]
        self._shares: list[Samples] = []
        self._order: list[int] = []
        self.steps: list[Samples] = []
        "This rank's samples of every optimizer step, in the order of the first PPO iteration."

    def fill(
        self,
        rollout: Rollout,
        index: int = 0,
        num_done: int = 0,
        idle: Callable[[Sequence[Group]], Sequence[bool]] | None = None,
        replayed: Sequence[Group] = (),
    ) -> None:
        """Replace the rollout; all ranks must call this together.

        Args:
            rollout: What this rank sampled.
            index: Number of the rollout in the run.
            num_done: Steps already trained on before a resume (Lightning restarts the DataLoader at index 0).
            idle: Says which of some groups get no credit; None: no group is skipped.
            replayed: Groups of earlier rollouts, the same on all ranks, that are dealt to the steps.
        """
        sampling = rollout.samples.sampling
        self._shares = []
        for groups in self._share(rollout, idle, replayed):
            is_idle = idle(groups) if idle else [False] * len(groups)
            active = [group for group, skipped in zip(groups, is_idle, strict=True) if not skipped]
            resting = [group for group, skipped in zip(groups, is_idle, strict=True) if skipped]
            self._shares.append(Samples(groups=active, sampling=sampling, idle=resting))
        self._order = []
        for iteration in range(self.num_iterations):
            order = list(range(len(self._steps)))
            if self.seed is not None:
                Random(derive_seed(derive_seed(self.seed, "buffer", index), "iteration", iteration)).shuffle(order)
            self._order += order
        self.steps = [self._shares[step] for step in self._order[: len(self._steps)]]
        self._order = self._order[num_done:]

    def __len__(self) -> int:
        """Optimizer steps in all PPO iterations."""
        return len(self._steps) * self.num_iterations

    def __getitem__(self, index: int) -> Samples:
        """Return the samples of the step at this place in the order."""
        assert self._order, "the rollout callback has not filled this buffer"
        return self._shares[self._order[index]]

    def _share(
        self,
        rollout: Rollout,
        idle: Callable[[Sequence[Group]], Sequence[bool]] | None,
        replayed: Sequence[Group],
    ) -> Sequence[Sequence[Group]]:
        groups, chosen = rollout.samples.groups, rollout.chosen
        if self.seed is not None and self.ranks.world_size > 1:
            return exchange(groups, self.groups_per_step, self.ranks, idle, chosen, replayed)
        trained_on = groups if chosen is None else [groups[place] for place in chosen]
        further = dealt(replayed, len(self._steps))
        return [[*trained_on[step], *more] for step, more in zip(self._steps, further, strict=True)]
