"""Mixtures and solve rates."""

import json
from collections import Counter
from pathlib import Path

import pytest

from maxk_lightning.data import Builtin, JsonLines, Mixture, SolveRate
from maxk_lightning.rewards import UnitTestReward, check_problems

A, B = Builtin("train", limit=6), Builtin("validation", limit=10)


def _evaluation(path: Path, solved: dict[str, int], num_samples: int = 4) -> str:
    path.mkdir()
    problems = [
        {"id": id_, "num_samples": num_samples, "num_solved": count, "mean_reward": (count + 1) / 8}
        for id_, count in solved.items()
    ]
    (path / "summary.json").write_text(json.dumps({"problems": problems}))
    return str(path)


@pytest.mark.parametrize(("weights", "lengths"), [((1, 1), (10, 10)), ((3, 1), (30, 10)), ((1, 5), (6, 30))])
def test_a_pass_has_the_shares_and_leaves_nothing_out(weights: tuple[int, int], lengths: tuple[int, int]) -> None:
    problems = Mixture({"a": A, "b": B}, {"a": weights[0], "b": weights[1]}).load()
    counts = {name: Counter(p.id for p in problems if p.id.startswith(f"{name}/")) for name in "ab"}
    assert tuple(counts[name].total() for name in "ab") == lengths
    for name, size in (("a", 6), ("b", 10)):
        assert len(counts[name]) == size
        assert max(counts[name].values()) - min(counts[name].values()) <= 1
    again = Mixture({"a": A, "b": B}, {"a": weights[0], "b": weights[1]}).load()
    assert [p.id for p in again] == [p.id for p in problems]


def test_without_weights_every_problem_stands_once_and_reports_are_joined() -> None:
    mixture = Mixture({"a": A, "b": B})
    for _ in range(2):  # loading again does not count twice
        assert len({problem.id for problem in mixture.load()}) == 16
        assert mixture.report is not None
        assert mixture.report.num_rows == 16
    assert Counter(facts.source for facts in mixture.report.kept) == {"a": 6, "b": 10}


def test_bad_mixtures_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights names \['a'\], sources has \['a', 'b'\]"):
        Mixture({"a": A, "b": B}, {"a": 1.0})
    with pytest.raises(ValueError, match=r"weights: a has 0\.0"):
        Mixture({"a": A}, {"a": 0.0})
    with pytest.raises(ValueError, match="sources is empty"):
        Mixture({})
    with pytest.raises(ValueError, match="sources is a list, must map names of your choice to sources"):
        Mixture([A, B])


def test_a_source_that_the_reward_cannot_judge_is_named(tmp_path: Path) -> None:
    (tmp_path / "qa.jsonl").write_text('{"prompt": "What is 1 + 1?", "answer": "2"}\n')
    mixture = Mixture({"code": A, "qa": JsonLines(str(tmp_path / "qa.jsonl"))})
    with pytest.raises(ValueError, match="problem 'qa/1' has no `tests`, which UnitTestReward runs"):
        check_problems(UnitTestReward(), mixture.load())


def test_what_is_always_or_never_solved_is_left_out(tmp_path: Path) -> None:
    ids = [problem.id for problem in A.load()]
    evaluation = _evaluation(tmp_path / "e", dict(zip(ids, [0, 4, 1, 3, 2, 0], strict=True)))
    source = SolveRate(A, evaluation)
    assert [problem.id for problem in source.load()] == ids[2:5]
    assert source.report is not None
    assert {reason: [f.id for f in rows] for reason, rows in source.report.left_out.items()} == {
        "solved at most 0.0": [ids[0], ids[5]],
        "solved at least 1.0": [ids[1]],
    }
    assert [p.id for p in SolveRate(A, evaluation, above=0.5, below=None).load()] == [ids[1], ids[3]]
    by_reward = SolveRate(A, evaluation, above=0.3, below=None, measure="mean_reward")  # (solved + 1) / 8
    assert [p.id for p in by_reward.load()] == [ids[1], ids[3], ids[4]]


def test_prompts_near_one_half_stand_more_often(tmp_path: Path) -> None:
    ids = [problem.id for problem in A.load()]
    evaluation = _evaluation(tmp_path / "e", dict(zip(ids, [0, 4, 1, 3, 2, 0], strict=True)))
    copies = Counter(p.id for p in SolveRate(A, evaluation, above=None, below=None, max_copies=5).load())
    assert [copies[id_] for id_ in ids] == [1, 1, 4, 4, 5, 1]  # 1 + 4 * 4p(1-p) at p = 0, 1, 1/4, 3/4, 1/2, 0


def test_problems_that_were_not_measured(tmp_path: Path) -> None:
    ids = [problem.id for problem in A.load()]
    evaluation = _evaluation(tmp_path / "e", {ids[0]: 2})
    with pytest.raises(ValueError, match=f"did not measure 5 of 6 problems, such as '{ids[1]}'"):
        SolveRate(A, evaluation).load()
    assert len(SolveRate(A, evaluation, unknown="keep").load()) == 6
    assert len(SolveRate(A, evaluation, unknown="leave_out").load()) == 1
    with pytest.raises(ValueError, match=r"summary.json: no such file; give the output directory of `evaluate`"):
        SolveRate(A, str(tmp_path)).load()
    with pytest.raises(ValueError, match="above"):
        SolveRate(A, evaluation, above=0.5, below=0.5)
