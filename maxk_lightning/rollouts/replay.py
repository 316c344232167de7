"""Replay: groups of earlier rollouts that still teach are trained on again, beside fresh ones.

Every rank holds the same groups and takes the same decisions, so that nothing depends on how many ranks there are.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any

import torch

from maxk_lightning.objectives import Objective, credits_of
from maxk_lightning.rollouts.ages import oldest_version
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.refill import has_credit
from maxk_lightning.rollouts.rollout import Group, Rollout, facts_of, lean, rewards_of
from maxk_lightning.rollouts.stored import as_record, completions_of, scores_of
from maxk_lightning.seeds import derive_seed
from maxk_lightning.types import Problem, Prompt


@dataclass(frozen=True, kw_only=True)  # no slots: see `types.Sampling`
class Replay:
    """How many groups of earlier rollouts are mixed in, and which are kept for it."""

    share: float = 0.25
    "Replayed share of the groups that a rollout's steps are made of, once enough are kept; in (0, 1)."
    capacity: int = 64
    "Groups that are kept, over all ranks. Beyond that, those with the smallest credits are dropped."
    max_age: int = 32
    "Age of its oldest token, in optimizer steps, after which a group is dropped."
    max_uses: int = 2
    "Rollouts that a group is mixed into, beside its own, before it is dropped."

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise ValueError(f"rollout.replay.share is {self.share}, must be in (0, 1)")
        for name in ("capacity", "max_age", "max_uses"):
            if getattr(self, name) < 1:
                raise ValueError(f"rollout.replay.{name} is {getattr(self, name)}, must be at least 1")

    def num_groups(self, num_fresh: int) -> int:
        """Compute the number of groups to replay beside `num_fresh` fresh ones.

        Raises:
            ValueError: the share is less than half a group.
        """
        number = round(self.share / (1.0 - self.share) * num_fresh)
        if number < 1:
            raise ValueError(
                f"rollout.replay.share ({self.share:g}) of a rollout with data.prompts_per_rollout ({num_fresh}) "
                "fresh groups is no group"
            )
        return number


@dataclass(slots=True)
class Kept:
    """A group that may be replayed."""

    group: Group
    "Its samples, with their log-probs as they were drawn; without tests and columns."
    version: int
    "Optimizer step of the weights that sampled its oldest token."
    num_uses: int = 0
    "Rollouts that it has been mixed into."


class ReplayBuffer:
    """The groups that are kept, and those that are mixed into the current rollout."""

    def __init__(self, replay: Replay, num_fresh: int, seed: int) -> None:
        """Begin empty.

        Args:
            replay: What to keep and to draw.
            num_fresh: Groups that are sampled for a rollout and trained on, over all ranks.
            seed: Of the run.

        Raises:
            ValueError: the share is less than half a group.
        """
        self.replay = replay
        self._num_drawn = replay.num_groups(num_fresh)
        self.drawn: list[Kept] = []
        "Groups that are mixed into the current rollout."
        self._seed = seed
        self._kept: list[Kept] = []  # in the order in which they were sampled

    def keep(self, rollout: Rollout, objective: Objective, ranks: Ranks) -> None:
        """Keep the groups with credit of a rollout that has been trained on; all ranks must call this together."""
        groups = ranks.gather([lean(group) for group in rollout.samples.groups])
        credited = [group for group, has in zip(groups, has_credit(objective, groups), strict=True) if has]
        self._kept += [
            Kept(group=group, version=oldest_version(group.completions, rollout.version)) for group in credited
        ]
        if (excess := len(self._kept) - self.replay.capacity) > 0:
            credits_M = _mean_credits(objective, [kept.group for kept in self._kept])
            least = set(sorted(range(len(self._kept)), key=lambda place: credits_M[place])[:excess])  # stable
            self._kept = [kept for place, kept in enumerate(self._kept) if place not in least]

    def draw(self, index: int, step: int, objective: Objective) -> None:
        """Choose at random the groups that are mixed into a rollout; all of them, if there are too few.

        Args:
            index: Number of the rollout.
            step: Optimizer steps made so far.
            objective: Objective in force for this rollout: groups without credit by it are dropped.
        """
        young = [
            kept
            for kept in self._kept
            if step - kept.version <= self.replay.max_age and kept.num_uses < self.replay.max_uses
        ]
        credited = has_credit(objective, [kept.group for kept in young])
        self._kept = [kept for kept, has in zip(young, credited, strict=True) if has]
        number = min(self._num_drawn, len(self._kept))
        places = Random(derive_seed(self._seed, "replay", index)).sample(range(len(self._kept)), number)
        self.drawn = [self._kept[place] for place in sorted(places)]
        for kept in self.drawn:
            kept.num_uses += 1

    def state(self) -> dict[str, Any]:
        """Return what is kept, as plain lists and tensors for a checkpoint."""
        drawn = {id(kept) for kept in self.drawn}
        return {
            "kept": [
                {
                    **as_record(kept.group),
                    "prompt_fields": asdict(replace(kept.group.prompt, token_ids=())),
                    "version": kept.version,
                    "num_uses": kept.num_uses,
                    "is_drawn": id(kept) in drawn,
                }
                for kept in self._kept
            ]
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what a checkpoint kept; empty: the checkpoint of a run without replay."""
        records = state.get("kept", [])
        self._kept = [Kept(_group(record), record["version"], record["num_uses"]) for record in records]
        self.drawn = [kept for kept, record in zip(self._kept, records, strict=True) if record["is_drawn"]]


def _group(record: dict[str, Any]) -> Group:
    prompt = Prompt(**{**record["prompt_fields"], "token_ids": tuple(record["prompt"].tolist())})
    return Group(
        problem=Problem(id=record["problem"], prompt=""),  # all that training needs
        prompt=prompt,
        completions=completions_of(record),
        scores=scores_of(record),
    )


def _mean_credits(objective: Objective, groups: Sequence[Group]) -> list[float]:
    """Mean size of a group's credits at ratios of 1: how much it would teach the policy that sampled it."""
    rewards_MN = rewards_of(groups)
    credits_MN = credits_of(objective, rewards_MN, torch.zeros_like(rewards_MN), facts_of(groups))
    means_M: list[float] = credits_MN.abs().mean(1).tolist()
    return means_M
