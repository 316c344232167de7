"""How old tokens are, counted one by one."""

from random import Random

from maxk_lightning.rollouts.ages import Ages, ages_of, oldest_version
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.rollout import Rollout, Samples
from maxk_lightning.types import Completion, Sampling, Segment
from tests.support.groups import make_group


def _completion(versions: list[int], *, has_segments: bool) -> Completion:
    """One whose tokens were drawn by these versions."""
    starts = [place for place, version in enumerate(versions) if not place or version != versions[place - 1]]
    return Completion(
        token_ids=(7,) * len(versions),
        logprobs=(0.0,) * len(versions),
        entropies=None,
        text="",
        finish_reason="stop",
        segments=tuple(Segment(place, versions[place]) for place in starts) if has_segments else (),
    )


def _rollout(completions: list[Completion], version: int) -> Rollout:
    group = make_group("g", 1, [])
    group.completions.extend(completions)
    samples = Samples(groups=[group], sampling=Sampling())
    return Rollout(samples=samples, generate_s=0.0, score_s=0.0, version=version)


def test_every_token_counts_once() -> None:
    random = Random(3)
    for _ in range(50):
        drawn = [sorted(random.choices(range(4, 9), k=random.randrange(6))) for _ in range(5)]
        plain = [[4] * random.randrange(1, 4) for _ in range(2)]
        completions = [_completion(each, has_segments=True) for each in drawn if each]
        completions += [_completion(each, has_segments=False) for each in plain]
        versions = [version for each in [*drawn, *plain] for version in each]
        ages = ages_of(_rollout(completions, 4), 9, Ranks())
        assert ages == Ages(sum(9 - version for version in versions) / len(versions), 9 - min(versions))
        assert oldest_version(completions, 4) == min(versions)


def test_without_a_token_a_rollout_is_as_old_as_the_weights_it_was_begun_with() -> None:
    empty = _completion([], has_segments=False)
    assert ages_of(_rollout([empty], 4), 6, Ranks()) == ages_of(_rollout([], 4), 6, Ranks()) == Ages(2.0, 2)
    assert oldest_version([empty], 4) == oldest_version([], 4) == 4
