"""When a rollout is refilled, with how much, and which groups it is trained on."""

import itertools
import random
from dataclasses import replace

import pytest

from maxk_lightning.objectives import MaxAtK
from maxk_lightning.rollouts.ranks import Ranks, interleave
from maxk_lightning.rollouts.refill import Draw, Refill, choose, has_credit
from maxk_lightning.rollouts.rollout import Group, Order, Rollout, Samples
from maxk_lightning.rollouts.shares import exchange
from maxk_lightning.types import Problem, Prompt, Sampling, Score

SAMPLING = Sampling(num_completions=3)
NUM_WANTED = 4


def _group(place: int, *rewards: float | None) -> Group:
    return Group(
        problem=Problem(id=str(place), prompt="p", tests=()),
        prompt=Prompt(problem_id=str(place), token_ids=(1,), seed=place),
        completions=[],
        scores=[Score(reward=reward, verdicts=()) for reward in rewards],
    )


def _rollout(groups: list[Group]) -> Rollout:
    return Rollout(samples=Samples(groups=groups, sampling=SAMPLING), generate_s=1.0, score_s=0.5, version=3)


def _draw(credits_: list[bool], max_batches: int) -> tuple[Rollout, list[range]]:
    """The rollout of one rank whose group at each place has credit or not, and the places of every batch."""
    batches: list[range] = []

    def order(places: range) -> Order:
        batches.append(places)
        return Order(index=0, problems=[], prompts=[], sampling=SAMPLING)

    refill = Refill(
        max_batches=max_batches,
        num_wanted=NUM_WANTED,
        num_places=len(credits_),
        objective=MaxAtK(k=2),
        orders=order,
    )
    draw = Draw(order(range(NUM_WANTED)), refill)
    while draw.due is not None:
        draw.add(_rollout([_group(place, 0.5, 0.5, 1.0 if credits_[place] else 0.5) for place in batches[-1]]), Ranks())
    assert draw.rollout is not None
    return draw.rollout, batches


def test_batches_are_bounded_and_end_as_soon_as_enough_groups_have_credit() -> None:
    for seed, max_batches in itertools.product(range(200), (1, 2, 3)):
        chance = random.Random(seed)
        share = chance.random()
        credits_ = [chance.random() < share for _ in range(chance.randint(NUM_WANTED + 1, 20))]
        refill = Refill(
            max_batches=max_batches, num_wanted=NUM_WANTED, num_places=len(credits_), objective=MaxAtK(k=2),
            orders=lambda _: None,  # type: ignore[arg-type,return-value]
        )  # fmt: skip
        drawn = NUM_WANTED
        for number in range(max_batches + 1):
            places = refill.next_places(credits_[:drawn], number)
            credited = sum(credits_[:drawn])
            if credited >= NUM_WANTED or number == max_batches or drawn == len(credits_):
                assert not places
                break
            assert places.start == drawn
            assert 1 <= len(places) <= NUM_WANTED
            expected = NUM_WANTED - credited  # with the share so far, as many as are missing, and not a prompt fewer
            if len(places) < NUM_WANTED and places.stop < len(credits_):
                assert len(places) * credited / drawn >= expected > (len(places) - 1) * credited / drawn
            drawn = places.stop


def test_groups_are_the_first_with_credit_by_brute_force() -> None:
    for flags in itertools.product([False, True], repeat=7):
        for number in (1, 3, 7):
            chosen = choose(flags, number)
            # Among all sets of this size in order: most credit first, then the earliest places of either kind.
            best = min(
                itertools.combinations(range(7), number),
                key=lambda places: (
                    -sum(flags[place] for place in places),
                    [place for place in places if flags[place]],
                    [place for place in places if not flags[place]],
                ),
            )
            assert tuple(chosen) == best


def test_a_draw_joins_its_batches() -> None:
    rollout, batches = _draw([True] * 4, max_batches=2)
    assert batches == [range(4)]
    assert rollout.chosen == [0, 1, 2, 3]
    assert (rollout.generate_s, rollout.score_s, rollout.version) == (1.0, 0.5, 3)


def test_an_engine_that_fails_on_any_batch_leaves_no_rollout() -> None:
    order = Order(index=0, problems=[], prompts=[], sampling=SAMPLING)
    refill = Refill(max_batches=2, num_wanted=2, num_places=9, objective=MaxAtK(k=2), orders=lambda _: order)
    draw = Draw(order, refill)
    draw.add(_rollout([_group(0, 0.5, 0.5, 0.5), _group(1, 0.5, 0.5, 0.5)]), Ranks())
    assert draw.due is order
    draw.add(None, Ranks())
    assert draw.due is draw.rollout is None


def test_groups_count_by_their_credit_also_with_lost_samples() -> None:
    groups = [
        _group(0, 0.5, 0.5, 0.5), _group(1, 0.5, None, 0.25), _group(2, None, None, None), _group(3, None, None, 1.0),
        _group(4, 0.0, 0.0, 1.0),
    ]  # fmt: skip
    assert has_credit(MaxAtK(k=1), groups) == [False, True, False, False, True]
    assert has_credit(MaxAtK(k=1), []) == []
    for group, credited in zip(groups, has_credit(MaxAtK(k=1), groups), strict=True):
        assert has_credit(MaxAtK(k=1), [group]) == [credited]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_batches_are_dealt_so_that_all_groups_together_keep_their_order(world_size: int) -> None:
    shares: list[list[int]] = [[] for _ in range(world_size)]
    for places in (range(4), range(4, 7), range(7, 8), range(8, 12)):
        for rank, share in enumerate(shares):
            share += Ranks(rank, world_size).own(places, first=places.start)
    assert interleave(shares) == list(range(12))


class _Gathering(Ranks):
    """One of several ranks, which is told what the others send."""

    sent: "list[dict[int, Group]]" = []  # noqa: RUF012

    def gather_each(self, thing: object) -> list[object]:  # type: ignore[override]
        return list(self.sent)


def test_ranks_exchange_the_chosen_groups_alone() -> None:
    groups = [replace(_group(place, 0.0, 1.0, 0.0)) for place in range(9)]
    chosen = [1, 2, 5, 8]
    sent: list[dict[int, Group]] = []

    class Sending(Ranks):
        def gather_each(self, thing: object) -> list[object]:  # type: ignore[override]
            sent.append(thing)  # type: ignore[arg-type]
            return [thing, {}]

    for rank in range(2):
        exchange(Ranks(rank, 2).own(groups), 2, Sending(rank, 2), chosen=chosen)
    assert [sorted(share) for share in sent] == [[2, 8], [1, 5]]
    _Gathering.sent = sent
    steps = [exchange(Ranks(rank, 2).own(groups), 2, _Gathering(rank, 2), chosen=chosen) for rank in range(2)]
    together = [sorted(group.problem.id for rank in steps for group in rank[step]) for step in range(2)]
    assert together == [["1", "2"], ["5", "8"]]
