"""Rollouts as plain lists and tensors, for checkpoints."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.rollout import Group, Order, Rollout, Samples
from maxk_lightning.types import Completion, Sampling, Score, Segment

Record = dict[str, Any]
FACTS = ("version", "generate_s", "score_s", "sync_s", "logprob_gap", "sequence_gap", "chosen")
"Fields of a `Rollout` that are the same on all ranks, or those of the first."
SCORE_KEYS = ("rewards", "verdicts", "missing_causes", "behaviours", "parts")
"Keys of a group's record that its scores are made of; each holds a list with an entry per completion."


def to_state(rollout: Rollout, ranks: Ranks) -> Record:
    """Turn a whole rollout into plain lists and tensors; all ranks must call this together, with what each sampled."""
    return {
        "sampling": asdict(rollout.samples.sampling),
        "groups": ranks.gather([as_record(group) for group in rollout.samples.groups]),
        **{name: getattr(rollout, name) for name in FACTS},
    }


def from_state(state: Record, order: Order, ranks: Ranks) -> Rollout:
    """Return this rank's groups of a stored rollout, for the present number of ranks.

    Raises:
        ValueError: the rollout belongs to other prompts than those of the order.
    """
    groups = []
    for record, problem, prompt in zip(ranks.own(state["groups"]), order.problems, order.prompts, strict=True):
        if record["problem"] != problem.id or record["prompt"].tolist() != list(prompt.token_ids):
            raise ValueError(
                "data: the checkpoint was saved within a rollout, whose prompts are not those of this configuration "
                f"({record['problem']} there, {problem.id} here)"
            )
        completions, scores = completions_of(record), scores_of(record)
        groups.append(Group(problem=problem, prompt=prompt, completions=completions, scores=scores))
    samples = Samples(groups=groups, sampling=Sampling(**state["sampling"]))
    return Rollout(samples=samples, **{name: state[name] for name in FACTS})


def as_record(group: Group) -> Record:
    """Turn a group into plain lists and tensors; of its problem only the id is kept."""
    completions = group.completions
    entropies = [completion.entropies for completion in completions]
    return {
        "problem": group.problem.id,
        "prompt": torch.tensor(group.prompt.token_ids),
        "lengths": [len(completion.token_ids) for completion in completions],
        "token_ids": torch.tensor([token for completion in completions for token in completion.token_ids]),
        "logprobs": _floats([completion.logprobs for completion in completions]),
        "entropies": None if None in entropies else _floats([values for values in entropies if values is not None]),
        "texts": [completion.text for completion in completions],
        "finish_reasons": [completion.finish_reason for completion in completions],
        "segments": [[list(segment) for segment in completion.segments] for completion in completions],
        "rewards": [score.reward for score in group.scores],
        "verdicts": [list(score.verdicts) for score in group.scores],
        "missing_causes": [score.missing_cause for score in group.scores],
        "behaviours": [score.behaviour for score in group.scores],
        "parts": [dict(score.parts) for score in group.scores],
    }


def _floats(values: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([value for row in values for value in row], dtype=torch.float64)


def completions_of(record: Record) -> list[Completion]:
    """Read the completions of a group's record."""
    lengths = record["lengths"]
    entropies = record["entropies"]
    entropy_rows = [None] * len(lengths) if entropies is None else entropies.split(lengths)
    return [
        Completion(
            token_ids=tuple(tokens.tolist()),
            logprobs=tuple(logprobs.tolist()),
            entropies=None if row is None else tuple(row.tolist()),
            text=text,
            finish_reason=finish_reason,
            segments=tuple(Segment(*segment) for segment in segments),
        )
        for tokens, logprobs, row, text, finish_reason, segments in zip(
            record["token_ids"].split(lengths),
            record["logprobs"].split(lengths),
            entropy_rows,
            record["texts"],
            record["finish_reasons"],
            record["segments"],
            strict=True,
        )
    ]


def scores_of(record: Record) -> list[Score]:
    """Read the scores of a group's record."""
    return [
        Score(reward=reward, verdicts=tuple(verdicts), missing_cause=cause, behaviour=behaviour, parts=parts)
        for reward, verdicts, cause, behaviour, parts in zip(*(record[key] for key in SCORE_KEYS), strict=True)
    ]
