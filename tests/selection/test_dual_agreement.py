"""CodeT's score, the inputs that candidates propose, and candidates that propose inputs in order to be chosen."""

import math
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxk_lightning.rewards import UnitTestReward
from maxk_lightning.selection import Candidate, DualAgreement, Then, choose
from maxk_lightning.selection.dual_agreement import ConsensusSets
from maxk_lightning.selection.proposed import MAX_TEXT_CHARACTERS, proposed_inputs
from maxk_lightning.types import Problem, TestCase

SORT = Problem(
    id="sort", prompt="", function="f", tests=(TestCase(input="[3, 1]\n", output="[1, 3]", is_public=True),)
)  # fmt: skip
PYTHON = Problem(
    id="python", prompt="", function="f", values="python",
    tests=(TestCase(input="(1, 2)\n{3}\n", output="0", is_public=True),),
)  # fmt: skip
FREE = Problem(id="free", prompt="", function="f")


def test_scores_of_three_sets_by_hand() -> None:
    """Two pass both tests, three pass one, one fails on half of the inputs."""
    known = [(b"a", b"x")] * 2 + [(b"b", b"x")] * 3 + [(b"a", None)]
    sets = ConsensusSets(known, [()] * 6, [2.0, 2.0, 1.0, 1.0, 1.0, 2.0])
    assert sets.scores(range(6)) == pytest.approx([2 * 2**0.5] * 2 + [3**0.5] * 3 + [2 * 0.5**0.5])
    assert sets.scores([0, 2, 3, 5]) == pytest.approx([2, 2**0.5, 2**0.5, 2 * 0.5**0.5])
    assert [sets.confidence(index) for index in (0, 2, 5)] == pytest.approx([2 / 6, 3 / 6, 1 / 6])


def test_nobody_passes() -> None:
    sets = ConsensusSets([(b"a",), (b"b",), (b"b",), (None,), (None,), (None,)], [()] * 6, [0.0] * 6)
    assert sets.scores(range(6)) == pytest.approx([1, 2**0.5, 2**0.5, 0, 0, 0])


def test_proposed_inputs_tell_apart_what_is_equal_elsewhere() -> None:
    known = [(b"a",)] * 4 + [(b"b",)] * 3
    proposed: list[tuple[bytes | None, ...]] = [(b"x",), (b"y",), (b"y",), (None,), (b"z",), (b"z",), (b"z",)]
    sets = ConsensusSets(known, proposed, [1.0] * 7)
    expected = [4 + 1 / 7, 4 + 2 / 7, 4 + 2 / 7, 4, 3 + 3 / 7, 3 + 3 / 7, 3 + 3 / 7]
    assert sets.scores(range(7)) == pytest.approx([math.sqrt(size) for size in expected])


keys = st.sampled_from([None, b"a", b"b"])
rows = st.lists(
    st.tuples(st.tuples(keys, keys), st.tuples(keys, keys, keys), st.integers(0, 2)), min_size=1, max_size=8
)


@given(rows, st.data())
def test_scores_of_a_subset_are_those_of_a_group_without_the_others(
    rows: list[tuple[tuple[bytes | None, ...], tuple[bytes | None, ...], int]], data: st.DataObject
) -> None:
    """An independent count, pair by pair, over the candidates of the subset alone."""
    chosen = data.draw(st.permutations(range(len(rows))))[: data.draw(st.integers(1, len(rows)))]
    sets = ConsensusSets([r[0] for r in rows], [r[1] for r in rows], [float(r[2]) for r in rows])
    group = [rows[index] for index in chosen]
    somebody_passes = any(passed for _, _, passed in group)
    for (known, proposed, passed), score in zip(group, sets.scores(chosen), strict=True):
        same = [other for other in group if other[0] == known]
        size = len(same) * sum(key is not None for key in known) / 2
        for place, key in enumerate(proposed):
            size += sum(key is not None and other[1][place] == key for other in group) / (3 * len(group))
        assert score == pytest.approx(math.sqrt(size) * (passed if somebody_passes else 1), abs=1e-12)


@pytest.mark.parametrize(
    ("problem", "text", "expected"),
    [
        (SORT, "assert f([5, 4]) == [4, 5]", ["[5, 4]\n"]),
        (SORT, 'def f(a):\n    """Sort.\n\n    >>> f([2, 1])\n    [1, 2]\n    """\n    return f(a[1:])', ["[2, 1]\n"]),
        (SORT, "# such as f( [7] ), f([])\nif __name__ == '__main__':\n    print(f([8]))", ["[7]\n", "[]\n"]),
        (SORT, "print(Solution().f([True, None]))", ["[true, null]\n"]),
        (SORT, "f([3,1]), f([ 3, 1 ]), f((3, 1))", []),  # the public input
        (SORT, "f([1], [2]); f(5); f(); f(a=[1]); f(*[[1]]); g([2]); off([3]); f([x]); f([2**9]); f([1j])", []),
        (FREE, "f(')', \"[\")\nf(-1, 2.5)", ['")"\n"["\n', "-1\n2.5\n"]),
        (FREE, "f([1e999]); f('it's'); f([1); f(", []),
        (PYTHON, "f((3, 4), {5}); f([3, 4], {5}); f((), set())", ["(3, 4)\n{5}\n", "()\nset()\n"]),
        (Problem(id="stdin", prompt="", tests=SORT.tests), "f([5])", []),
    ],
)
def test_calls_that_propose(problem: Problem, text: str, expected: list[str]) -> None:
    known = [test.input for test in problem.tests]
    assert proposed_inputs(problem, [text], known, 8) == expected


@pytest.mark.parametrize(
    "text",
    [
        "f(" * MAX_TEXT_CHARACTERS,
        "f(" + "[" * 2 * MAX_TEXT_CHARACTERS,
        "f(" + "[" * 400 + "]" * 400 + ")",
        "f('" + "\\'" * MAX_TEXT_CHARACTERS,
        "f(\0)\0f('\0')",
        "f(" + "-" * 900 + "1)",
        "f(" + "1+" * 400 + "1)",
        f"f({'9' * 900}{'9' * 90})",
        f"f({'9' * 5000})",
        f"f(0x{'f' * 5000})",
        "f('\ud800', b'\\xff')",
        "f({[]: 1}, {{}}, '\\x')",
        "f(range(10**9), range(1000000000000), object(), iter([1]))",
    ],
)
@pytest.mark.parametrize("problem", [SORT, FREE, PYTHON])
def test_hostile_texts_propose_little_and_raise_nothing(problem: Problem, text: str) -> None:
    assert len(proposed_inputs(problem, [text] * 3, [text], 8)) <= 2


def test_proposals_are_taken_by_turns() -> None:
    flood = "\n".join(f"f([{number}])" for number in range(1000))
    modest = [f"f([{number}, 0])" for number in range(4)]
    proposed = proposed_inputs(SORT, [flood, *modest], [], 5)
    assert len(proposed) == 5 == len(set(proposed))
    assert sum(", 0]" in text for text in proposed) == 4
    assert set(proposed_inputs(SORT, [*modest, flood], [], 9)) == {*proposed, "[1]\n"}
    assert proposed == proposed_inputs(SORT, [*modest, flood, flood], [], 5)
    assert len({tuple(proposed_inputs(SORT, modest, [], 2, seed)) for seed in range(20)}) > 1


@pytest.fixture(scope="module")
def reward() -> Iterator[UnitTestReward]:
    with UnitTestReward(time_limit_s=2.0, output_limit_bytes=1 << 16) as reward:
        yield reward


def _chosen(reward: UnitTestReward, programs: Sequence[str], problem: Problem = SORT) -> str:
    candidates = [Candidate(text=f"```python\n{program}\n```") for program in programs]
    (seen,) = Then([DualAgreement(reward, num_inputs=16)]).observe([problem], [candidates])
    return programs[choose(seen).index]


RIGHT = [
    "def f(a):\n    return sorted(a)",
    "def f(a):\n    return sorted(list(a))",
    "def f(a):\n    a.sort()\n    return a",
    "def f(a):\n    return sorted(a, reverse=True)[::-1]",
]
OWN = 'def f(a):\n    """f(["x", 1]), f([[], {}])"""\n    '
ATTACKS = {
    "inputs on which only copies agree": OWN + 'return "mine" if a and type(a[0]) is not int else [1, 3]',
    "prints what the majority prints, but on its own inputs": OWN
    + 'return "mine" if a and type(a[0]) is not int else (a[:1] if a == [3] else [1, 3] if len(a) == 2 else [])',
    "detects generated inputs": "def f(a):\n    assert a == [3, 1]\n    return [1, 3]",
    "floods": "def f(a):\n    return [1, 3]\n" + "\n".join(f"# f(['{number}', 1])" for number in range(500)),
    "slow inputs": "def f(a):\n    while a != [3, 1]: pass\n    return [1, 3]\n# f(['x']), f(['y'])",
}


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_input_of_ones_own_beats_a_right_majority(attack: str, reward: UnitTestReward) -> None:
    """Three copies that differ in a comment, all of which propose, against four; all pass the public test."""
    copies = [f"{ATTACKS[attack]}\n# {number}" for number in range(3)]
    assert _chosen(reward, [*copies, *RIGHT]) in RIGHT


def test_candidates_propose_where_no_test_is_public(reward: UnitTestReward) -> None:
    wrong = "def f(a):\n    return a"
    proposing = f"{RIGHT[0]}\n\nassert f([2, 1]) == [1, 2]"
    assert _chosen(reward, [wrong, proposing, RIGHT[1]], FREE) in (proposing, RIGHT[1])
    assert _chosen(reward, [wrong, *RIGHT[:2]], FREE) == wrong  # nobody proposes: the first sampled


def test_a_proposed_input_decides_between_those_that_pass_and_agree(reward: UnitTestReward) -> None:
    """The public input has two numbers, and mutations rarely hold this one."""
    wrong = "def f(a):\n    return sorted(a) if a != [77, -5, 12345] else a"
    proposing = f"{RIGHT[2]}\n\nassert f([77, -5, 12345]) == [-5, 77, 12345]"
    assert _chosen(reward, [wrong, proposing, RIGHT[0]]) == proposing
