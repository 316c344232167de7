"""What a selector realises of max@k on validation and test problems, in the log."""

import math

import torch

from maxk_lightning.metrics import RealisedMaxAtK, powers_of_two
from maxk_lightning.module import ONCE, PolicyModule
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.rollout import Group, Samples
from maxk_lightning.rollouts.scoring import answer_in
from maxk_lightning.selection import Candidate, Realisable, Then, realised_values


def log_realised(module: PolicyModule, prefix: str, selector: Then, samples: Samples, seed: int, ranks: Ranks) -> None:
    """Log realised best-of-k for k = 1, 2, 4, ...; all ranks must call this together, with what each sampled.

    Raises:
        RankError: running programs failed on one of several ranks.
    """
    metric = RealisedMaxAtK(powers_of_two(samples.sampling.num_completions)).to(ranks.device)
    groups = [each for group in samples.groups if (each := realisable(group)).rewards]
    rows = ranks.together(lambda: realised_values([selector], groups, metric.ks, seed)[0])
    metric.update(torch.tensor(rows, dtype=torch.float64).reshape(len(groups), len(metric.ks)))
    for tag, value in metric.compute().items():
        if "stderr" not in tag and not math.isnan(value):
            module.log(f"{prefix}/{tag}", value.float(), sync_dist=True, **ONCE)


def realisable(group: Group) -> Realisable:
    """Collect the candidates of a group that have a reward."""
    judged = [
        (Candidate(text=answer_in(completion, group.prompt) or "", mean_logprob=completion.mean_logprob), score.reward)
        for completion, score in zip(group.completions, group.scores, strict=True)
        if score.reward is not None
    ]
    return Realisable(
        problem=group.problem,
        candidates=[candidate for candidate, _ in judged],
        rewards=[reward for _, reward in judged],
    )
