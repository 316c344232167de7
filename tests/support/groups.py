"""Groups made by hand, for tests of what becomes of them."""

from random import Random

from maxk_lightning.rollouts.rollout import Group
from maxk_lightning.types import Completion, Problem, Prompt, Score


def make_group(name: str, prompt_tokens: int, lengths: list[int]) -> Group:
    """A group with completions of these lengths; sample i has reward i."""
    completions = [
        Completion(
            token_ids=(7,) * length, logprobs=(0.0,) * length, text=f"{name} {i}", finish_reason="stop", entropies=None
        )
        for i, length in enumerate(lengths)
    ]
    return Group(
        problem=Problem(id=name, prompt="p", tests=()),
        prompt=Prompt(problem_id=name, token_ids=(1,) * prompt_tokens, seed=0),
        completions=completions,
        scores=[Score(reward=float(i), verdicts=()) for i in range(len(lengths))],
    )


def make_groups(seed: int, num_groups: int) -> list[Group]:
    """Groups of six completions of random lengths, empty ones among them."""
    random = Random(seed)
    return [
        make_group(f"g{i}", random.randint(1, 20), [random.randint(0, 30) for _ in range(6)]) for i in range(num_groups)
    ]
