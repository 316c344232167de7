"""The curriculum by solve rate: the chance of credit, and which problems are passed over."""

import itertools
import math
from collections import Counter

import pytest

from maxk_lightning.data.curriculum import Curriculum, CurriculumStream, chance_of_difference
from maxk_lightning.data.prompts import PromptStream

STREAM = PromptStream(num_problems=10, seed=3)


def _urn(parameters: list[float], draws: tuple[int, ...]) -> float:
    """Probability of a sequence of levels by Polya's urn, one draw after the other."""
    urn, probability = list(parameters), 1.0
    for level in draws:
        probability *= urn[level] / sum(urn)
        urn[level] += 1.0
    return probability


@pytest.mark.parametrize("num_completions", [1, 2, 5])
@pytest.mark.parametrize("counts", [{0.0: 16.0}, {0.0: 3.0, 1.0: 1.5}, {0.25: 1.0, 0.5: 2.0, 1.0: 4.0}])
def test_the_chance_of_a_difference_is_that_of_an_urn(counts: dict[float, float], num_completions: int) -> None:
    everything = Counter({0.0: 20.0, 0.25: 2.0, 0.5: 2.0, 1.0: 8.0})
    parameters = [counts.get(reward, 0.0) + count / 32.0 for reward, count in everything.items()]
    expected = sum(
        _urn(parameters, draws) for draws in itertools.product(range(4), repeat=num_completions) if len(set(draws)) > 1
    )
    assert chance_of_difference(counts, everything, num_completions) == pytest.approx(expected, abs=1e-12)


def test_every_problem_has_a_first_turn_and_then_those_without_hope_are_passed_over() -> None:
    stream = CurriculumStream(Curriculum(floor=0.05), STREAM)
    for index in range(2):
        assert stream.positions(index, 5, 8) == list(range(5 * index, 5 * index + 5))
        problems = [STREAM.index(position) for position in stream.positions(index, 5, 8)]
        stream.note(index, {problem: [0.0] * 8 if problem < 8 else [0.0, 1.0] * 4 for problem in problems})
    taken: Counter[int] = Counter()
    for index in range(2, 200):
        positions = stream.positions(index, 4, 8)
        problems = [STREAM.index(position) for position in positions]
        assert len(set(problems)) == 4
        assert positions == stream.positions(index, 4, 8)
        taken.update(problems)
    hopeful = min(taken[8], taken[9])
    hopeless = [taken[problem] for problem in range(8)]
    assert min(hopeless) > 0
    assert max(hopeless) < 0.6 * hopeful
    assert sum(stream.num_passed_over.values()) > 0


def test_with_a_floor_of_one_nothing_is_passed_over() -> None:
    stream = CurriculumStream(Curriculum(floor=1.0), STREAM)
    for index in range(8):
        assert stream.positions(index, 5, 4) == list(range(5 * index, 5 * index + 5))
        stream.note(index, dict.fromkeys(range(10), [0.0] * 4))
        assert stream.num_passed_over[index] == 0


def test_problems_repeat_only_where_they_are_too_few() -> None:
    stream = CurriculumStream(Curriculum(), PromptStream(num_problems=3, seed=0))
    problems = [PromptStream(num_problems=3, seed=0).index(position) for position in stream.positions(0, 7, 4)]
    assert len(problems) == 7
    assert set(problems[:3]) == {0, 1, 2}


def test_old_samples_fade_and_lost_ones_do_not_count() -> None:
    stream = CurriculumStream(Curriculum(memory=0.5), STREAM)
    stream.note(0, {4: [0.0, 0.0, 1.0, math.nan]})
    stream.note(1, {4: [1.0]})
    assert stream.state()["rewards"] == {4: {1.0: 1.5, 0.0: 1.0}}


def test_a_state_goes_on_exactly_and_without_one_the_stream_goes_on() -> None:
    whole = CurriculumStream(Curriculum(), STREAM)
    drawn = []
    for index in range(6):
        drawn.append(whole.positions(index, 4, 8))
        whole.note(index, {problem: [float(problem % 3 == 0), 0.0] for problem in range(index, 10)})
        if index == 3:
            whole.positions(4, 4, 8)  # begun ahead
            state = whole.state()
    again = CurriculumStream(Curriculum(), STREAM)
    again.load_state(state)
    for index in range(4, 6):
        assert again.positions(index, 4, 8) == drawn[index]
        again.note(index, {problem: [float(problem % 3 == 0), 0.0] for problem in range(index, 10)})
    assert again.state() == whole.state()
    assert CurriculumStream(Curriculum(), STREAM).positions(7, 2, 8) == [14, 15]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"floor": 0.0}, r"data\.curriculum\.floor is 0\.0"), ({"memory": 1.5}, r"data\.curriculum\.memory is 1\.5")],
)
def test_bounds_are_checked(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curriculum(**settings)
