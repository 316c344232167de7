"""What is logged about a rollout as a whole; `metrics.md` explains every tag."""

from collections.abc import Sequence

from maxk_lightning.objectives import Objective
from maxk_lightning.rollouts.ages import Ages
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.refill import has_credit
from maxk_lightning.rollouts.rollout import Rollout


def rollout_values(
    rollout: Rollout, objective: Objective, ages: Ages, replayed_ages: Sequence[int], ranks: Ranks
) -> dict[str, float]:
    """Compute the values by tag; all ranks must call this together.

    Args:
        rollout: What this rank sampled.
        objective: Objective in force while it is trained on.
        ages: Ages of its tokens when training on it began, in optimizer steps.
        replayed_ages: Ages of the groups that are mixed into it.
        ranks: All ranks.
    """
    groups = rollout.samples.groups
    credited = has_credit(objective, groups)
    num_prompts, num_credited = ranks.total([len(credited), sum(credited)])
    sizes = [len(group.completions) for group in groups] or [rollout.samples.sampling.num_completions]
    smallest, largest = ranks.largest([-min(sizes), max(sizes)])
    return {
        "rollout/num_prompts": num_prompts,
        "rollout/credit_fraction": num_credited / num_prompts,
        "rollout/age": ages.mean,
        "rollout/age_max": float(ages.largest),
        "rollout/completions_min": -smallest,
        "rollout/completions_max": largest,
        "rollout/replayed": float(len(replayed_ages)),
        "rollout/replayed_age": sum(replayed_ages) / max(1, len(replayed_ages)),
        "rollout/logprob_gap": rollout.logprob_gap,
        "rollout/sequence_gap": rollout.sequence_gap,
        "time/sync_s": rollout.sync_s,
        "time/generate_s": rollout.generate_s,
        "time/score_s": rollout.score_s,
        "time/generated_tokens_per_s": rollout.samples.num_tokens / rollout.generate_s,
    }
