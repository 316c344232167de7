"""From completions to scores: which part of a completion is its answer, and how the reward scores it."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

from maxk_lightning.rewards import Reward, StreamingReward
from maxk_lightning.rewards.futures import done
from maxk_lightning.rewards.outcome import score_with
from maxk_lightning.types import Completion, Problem, Prompt, Score

UNFINISHED = Score(reward=0.0, verdicts=("unfinished_reasoning",))
"Score of a completion that ended before its answer began; no reward is asked."


def answer_in(completion: Completion, prompt: Prompt) -> str | None:
    """Return what a reward reads of a completion: all, or what follows the last end of its reasoning; None: nothing.

    >>> prompt = Prompt(problem_id="a", token_ids=(1,), seed=0, answer_after="</think>")
    >>> thought = "<think>2+2</think> 4"
    >>> completion = Completion(token_ids=(1,), logprobs=(0.0,), entropies=None, text=thought, finish_reason="stop")
    >>> answer_in(completion, prompt)
    ' 4'
    """
    return answer_in_text(completion.text, prompt)


def answer_in_text(text: str, prompt: Prompt) -> str | None:
    """Return what a reward reads of the text of a completion; see `answer_in`."""
    if prompt.answer_after is None:
        return text
    _, marker, answer = text.rpartition(prompt.answer_after)
    return answer if marker else None


def score_groups(
    reward: Reward,
    problems: Sequence[Problem],
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    step: int = 0,
) -> list[list[Score]]:
    """Score the completions of each problem.

    Args:
        reward: Judges answers.
        problems: What was asked.
        prompts: What the policy read, one per problem.
        completions: One list per problem.
        step: Optimizer step of the weights that sampled.

    Raises:
        RewardError: the reward failed, or did not give one score per completion.
    """
    answered = [
        [
            replace(completion, text=answer)
            for completion in group
            if (answer := answer_in(completion, prompt)) is not None
        ]
        for group, prompt in zip(completions, prompts, strict=True)
    ]
    given = [iter(scores) for scores in score_with(reward, problems, answered, step)]
    return [
        [UNFINISHED if answer_in(completion, prompt) is None else next(scores) for completion in group]
        for group, prompt, scores in zip(completions, prompts, given, strict=True)
    ]


def submit(reward: StreamingReward, problem: Problem, prompt: Prompt, completion: Completion) -> "Future[Score]":
    """Start scoring one completion; returns at once."""
    answer = answer_in(completion, prompt)
    return done(UNFINISHED) if answer is None else reward.submit(problem, answer)
