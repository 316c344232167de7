"""summary.json: numbers worked out by hand, uneven groups said, and nothing lost on disk."""

import json
from itertools import combinations
from pathlib import Path
from statistics import fmean

import pytest

from maxk_lightning.evaluation.summary import Seconds, read_summary, summarise, write_summary
from tests.support.builders import make_sample, make_samples

SAMPLES = [
    make_sample("a", 0, 1.0, "print(1)"),
    make_sample("a", 1, 1.0, "print(1)   "),  # the same program: trailing blanks say nothing
    make_sample("a", 2, 0.5, "print(2)", finish_reason="length", num_tokens=30, mean_entropy=0.1),
    make_sample("a", 3, 0.0, completion="no idea", verdicts=("no_code",)),
    make_sample("b", 0, None),
    make_sample("b", 1, 0.0),
]


def test_the_numbers_of_a_small_evaluation() -> None:
    summary = summarise(SAMPLES, name="run", benchmark="bench", seconds=Seconds(generating=2.0, scoring=1.0))
    assert (summary.num_problems, summary.num_samples, summary.num_missing) == (2, 4, 1)
    assert summary.max_at_k[0].value == pytest.approx((2.5 / 4 + 0.0) / 2)
    assert summary.pass_at_k[0].value == pytest.approx((2 / 4 + 0.0) / 2)
    assert summary.max_at_k[-1].value == 1.0
    assert summary.truncation_rate == pytest.approx(1 / 6)
    assert summary.no_code_rate == pytest.approx(1 / 6)
    assert summary.mean_tokens == pytest.approx(80 / 6)
    assert summary.mean_entropy == pytest.approx((5 * 10 * 0.5 + 30 * 0.1) / 80)  # per token, not per sample
    assert summary.distinct_rate == pytest.approx((2 / 4 + 2 / 2) / 2)
    a, b = summary.problems
    assert (a.num_samples, a.num_missing, a.num_solved, a.num_distinct, a.solve_rate) == (4, 0, 2, 2, 0.5)
    assert (b.num_samples, b.num_missing, b.best_reward, b.mean_reward) == (1, 1, 0.0, 0.0)


def test_uneven_groups_are_said() -> None:
    notes = summarise(SAMPLES, name="run", benchmark="bench").notes
    assert notes[0].startswith("1 samples could not be scored")
    assert "k = 2: 1, k = 4: 1" in notes[1]
    assert summarise(make_samples({"a": [0.0, 1.0]}), name="run", benchmark="bench").notes == []


def test_rewards_that_run_no_tests_compare_whole_answers() -> None:
    samples = [make_sample("a", i, 0.5, completion=text, verdicts=()) for i, text in enumerate(["x", "x\n", "y"])]
    assert summarise(samples, name="run", benchmark="bench").problems[0].num_distinct == 2


def test_different_correct_behaviours_of_k_samples_are_the_mean_over_all_subsets() -> None:
    """Right and wrong ones, unknown ones, missing ones; a problem without any known behaviour is left out."""
    told: dict[str, list[tuple[float | None, str | int | None]]] = {
        "a": [(1.0, "x"), (1.0, "y"), (0.5, "z"), (1.0, "x"), (1.0, None), (None, None)],
        "b": [(0.0, 0), (1.0, 1), (0.25, 0)],
        "c": [(1.0, None), (1.0, None)],
        "d": [(0.0, "u"), (0.0, "v"), (0.0, "u"), (0.0, "w"), (0.5, "u")],
    }
    samples = [
        make_sample(id_, i, reward, behaviour=behaviour)
        for id_, group in told.items()
        for i, (reward, behaviour) in enumerate(group)
    ]
    curve = summarise(samples, name="run", benchmark="bench").distinct_at_k
    assert [(point.k, point.num_problems) for point in curve] == [(1, 3), (2, 3), (4, 2), (5, 2)]
    for point in curve:
        means = []
        for group in (told["a"], told["b"], told["d"]):
            scored = [(reward, behaviour) for reward, behaviour in group if reward is not None]
            subsets = list(combinations(scored, point.k))
            found = [len({b for reward, b in subset if reward == 1.0 and b is not None}) for subset in subsets]
            means += [fmean(found)] if subsets else []
        assert point.value == pytest.approx(fmean(means), rel=1e-12)
    summary = summarise(samples, name="run", benchmark="bench")
    assert ([problem.num_ways for problem in summary.problems], summary.has_ways) == ([2, 1, 0, 0], True)
    alone = summarise(SAMPLES, name="run", benchmark="bench")
    assert (alone.distinct_at_k, alone.has_ways) == ((), False)


def test_a_problem_without_any_score_is_no_number() -> None:
    summary = summarise(make_samples({"a": [None], "b": [1.0]}), name="run", benchmark="bench")
    assert summary.problems[0].mean_reward is None
    assert summary.max_at_k[0].num_problems == 1


def test_the_file_holds_the_summary(tmp_path: Path) -> None:
    samples = [*SAMPLES, make_sample("c", 0, None, mean_entropy=None), make_sample("d", 0, 1.0, behaviour="said")]
    summary = summarise(samples, name="run", benchmark="bench", seconds=Seconds(generating=2.0))
    write_summary(summary, tmp_path / "summary.json")
    assert read_summary(tmp_path / "summary.json") == summary
    record = json.loads((tmp_path / "summary.json").read_text())
    assert record["problems"][0]["solve_rate"] == 0.5
    assert record["problems"][2]["solve_rate"] is None
    assert record["notes"] == summary.notes


def test_predictions_are_kept_noted_and_absent_from_older_files(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    summary = summarise(SAMPLES, name="run", benchmark="bench", predict_up_to=12)
    assert [point.k for point in summary.predicted_max_at_k] == [8, 12]
    assert [point.k for point in summary.predicted_pass_at_k] == [8, 12]
    assert "above k = 4 are predicted" in summary.notes[-1]
    write_summary(summary, path)
    assert read_summary(path) == summary
    record = json.loads(path.read_text())
    del record["predicted_max_at_k"], record["predicted_pass_at_k"]
    path.write_text(json.dumps(record))
    assert read_summary(path).predicted_max_at_k == ()


def test_another_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    for text in ("{", "[]", '{"notes": []}', json.dumps({"notes": [], "problems": [], "max_at_k": [{"k": 1}]})):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"summary\.json: not a summary"):
            read_summary(path)
    with pytest.raises(ValueError, match="No such file"):
        read_summary(tmp_path / "none.json")


def test_nothing_cannot_be_summarised() -> None:
    with pytest.raises(ValueError, match="no sample"):
        summarise([], name="run", benchmark="bench")
