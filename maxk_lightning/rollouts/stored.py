"""Rollouts as plain lists and tensors, for checkpoints that are saved amid the PPO iterations of one."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from maxk_lightning.rollouts.rollout import Group, Rollout
from maxk_lightning.types import Completion, Problem, Prompt, Sampling, Score

Record = dict[str, Any]


def to_state(rollout: Rollout) -> Record:
    """A rollout as plain lists and tensors, gathered on rank 0 from all ranks, which must come here together."""
    return {
        "sampling": asdict(rollout.sampling),
        "version": rollout.version,
        "generate_s": rollout.generate_s,
        "score_s": rollout.score_s,
        "groups": gather_records(rollout.groups),
    }


def from_state(
    state: Record, problems: Sequence[Problem], prompts: Sequence[Prompt], rank: int, world_size: int
) -> Rollout:
    """A rank's share of a stored rollout, of which it holds every `world_size`-th group.

    Raises:
        ValueError: it belongs to other problems than those given.
    """
    return Rollout(
        groups=groups_of(state["groups"][rank::world_size], problems, prompts),
        sampling=Sampling(**state["sampling"]),
        version=state["version"],
        generate_s=state["generate_s"],
        score_s=state["score_s"],
    )


def gather_records(groups: Sequence[Group]) -> list[Record] | None:
    """Records of all ranks in the order of the prompt stream, of which ranks hold every n-th; None but on rank 0."""
    records = [_as_record(group) for group in groups]
    if not dist.is_initialized():
        return records
    is_first = dist.get_rank() == 0
    gathered: list[list[Record]] = [[] for _ in range(dist.get_world_size())]
    dist.gather_object(records, gathered if is_first else None)
    if not is_first:
        return None
    num_groups = sum(map(len, gathered))
    return [gathered[position % len(gathered)][position // len(gathered)] for position in range(num_groups)]


def groups_of(records: Sequence[Record], problems: Sequence[Problem], prompts: Sequence[Prompt]) -> list[Group]:
    """The groups that were stored.

    Raises:
        ValueError: they belong to other problems than those given.
    """
    groups = []
    for record, problem, prompt in zip(records, problems, prompts, strict=True):
        if record["problem"] != problem.id or record["prompt"].tolist() != list(prompt.token_ids):
            raise ValueError(
                "data: the checkpoint was saved amid a rollout, whose prompts are not those of this configuration "
                f"({record['problem']} there, {problem.id} here)"
            )
        completions, scores = _completions(record), _scores(record)
        groups.append(Group(problem=problem, prompt=prompt, completions=completions, scores=scores))
    return groups


def _as_record(group: Group) -> Record:
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
        "rewards": [score.reward for score in group.scores],
        "verdicts": [list(score.verdicts) for score in group.scores],
    }


def _floats(values: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([value for row in values for value in row], dtype=torch.float64)


def _completions(record: Record) -> list[Completion]:
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
        )
        for tokens, logprobs, row, text, finish_reason in zip(
            record["token_ids"].split(lengths),
            record["logprobs"].split(lengths),
            entropy_rows,
            record["texts"],
            record["finish_reasons"],
            strict=True,
        )
    ]


def _scores(record: Record) -> list[Score]:
    return [
        Score(reward=reward, verdicts=tuple(verdicts))
        for reward, verdicts in zip(record["rewards"], record["verdicts"], strict=True)
    ]
