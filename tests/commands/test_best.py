"""`best`: one answer per problem, chosen without the hidden tests."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import maxk_lightning
from maxk_lightning.commands.arguments import call
from maxk_lightning.commands.best import best
from maxk_lightning.commands.best.answers import Search, Searcher
from maxk_lightning.data import Builtin
from maxk_lightning.records import problem_to_record
from maxk_lightning.types import Problem
from tests.commands.test_evaluate import save_checkpoint

PROBLEMS = Builtin("test", limit=3, num_public=2).load()
SHORT = ("--rollout.eval_sampling.max_new_tokens", "64")


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(problem_to_record(problem)) + "\n" for problem in PROBLEMS))
    return path


def _best(problems: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    call(
        best,
        ["--policy", "builtin", "--problems", str(problems), "--out", str(out), "--num_samples", "6", *SHORT, *more],
    )
    return [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]


def test_an_answer_per_problem_with_all_candidates_beside_it(problems: Path, tmp_path: Path) -> None:
    answers = _best(problems, tmp_path / "out", "--problems_per_chunk", "2")
    assert [answer["id"] for answer in answers] == [problem.id for problem in PROBLEMS]
    candidates = [json.loads(line) for line in (tmp_path / "out" / "candidates.jsonl").read_text().splitlines()]
    for answer, group in zip(answers, candidates, strict=True):
        assert group["id"] == answer["id"]
        assert len(group["candidates"]) == answer["num_candidates"] == 6
        assert group["candidates"][answer["index"]]["text"] == answer["completion"]
        assert answer["num_public"] == 2
        assert 0 <= answer["num_public_passed"] <= 2
        assert answer["how"] in ("public", "agreement", "mean_logprob", "first sampled")


def test_answers_that_are_there_are_kept_and_half_a_line_is_not(problems: Path, tmp_path: Path) -> None:
    expected = _best(problems, tmp_path / "out", "--problems_per_chunk", "1")
    path = tmp_path / "out" / "answers.jsonl"
    first, second, _ = path.read_text().splitlines(keepends=True)
    path.write_text(first + second[:20])
    assert _best(problems, tmp_path / "out", "--problems_per_chunk", "1") == expected
    with pytest.raises(ValueError, match=r"holds samples of other settings \(select was 'public\+agreement'"):
        _best(problems, tmp_path / "out", "--problems_per_chunk", "1", "--select", "likelihood")


def test_an_answer_to_another_problem_of_the_same_id_is_not_taken_for_this_one(problems: Path, tmp_path: Path) -> None:
    first, *others = [{**problem_to_record(problem), "id": "1"} for problem in PROBLEMS]
    problems.write_text(json.dumps(first) + "\n")
    _best(problems, tmp_path / "out")
    problems.write_text(json.dumps(others[0]) + "\n")
    with pytest.raises(ValueError, match=r"inputs\.json: id '1' was finished with other prompts or public tests"):
        _best(problems, tmp_path / "out")
    problems.write_text(json.dumps(first) + "\n" + json.dumps({**others[1], "id": "2"}) + "\n")
    assert [answer["id"] for answer in _best(problems, tmp_path / "out")] == ["1", "2"]


def test_from_python_and_hidden_tests_change_nothing(problems: Path, tmp_path: Path) -> None:
    answers = maxk_lightning.best_of_n("builtin", PROBLEMS, num_samples=6, overrides=SHORT)
    assert [answer.completion for answer in answers] == [a["completion"] for a in _best(problems, tmp_path / "out")]
    blind = Builtin("test", limit=3).load()  # no public test: what is hidden cannot help
    others = maxk_lightning.best_of_n("builtin", blind, num_samples=6, overrides=SHORT)
    assert all((answer.num_public, answer.confidence) == (0, None) for answer in others)
    assert {answer.how for answer in others} <= {"mean_logprob", "first sampled"}


@pytest.mark.parametrize("is_asked_from_python", [True, False])
def test_a_checkpoint_answers_as_its_policy_and_leaves_nothing_behind(
    is_asked_from_python: bool, random_policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    checkpoint = tmp_path / "last.ckpt"
    save_checkpoint(checkpoint, random_policy, 1.0)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    said = []
    for policy in (random_policy, str(checkpoint)):
        if is_asked_from_python:
            said.append(maxk_lightning.best_of_n(policy, PROBLEMS[:1], num_samples=2, overrides=SHORT))
        else:
            call(best, ["--policy", policy, "--prompt", "Sort.", "--num_samples", "2", *SHORT])
            said.append(capsys.readouterr().out.splitlines()[-1:])
    assert said[0] == said[1] != []
    assert not list(temporary.glob("maxk_best_*"))


def test_rounds_stop_where_it_is_sure() -> None:
    search = Search(
        policy="builtin", config=None, num_samples=40, select="public+agreement", stop_when_sure=0.05, overrides=SHORT
    )
    with Searcher(search) as searcher:
        found = searcher.find(searcher.read(Builtin("test", limit=6, num_public=2), "builtin"))
    assert {len(each.candidates) for each in found} <= {8, 16, 32, 40}
    for answer in (each.answer for each in found):
        is_sure = answer.num_public_passed == 2 and (answer.confidence or 0) >= 0.05
        assert is_sure or answer.num_candidates == 40
    assert any(each.answer.num_candidates < 40 for each in found)


def test_a_prompt_from_the_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    prompt = ["--prompt", "Sort the numbers.", "--test", "2 1 => 1 2"]
    call(best, ["--policy", "builtin", *prompt, "--num_samples", "4", "--out", str(tmp_path), *SHORT])
    answer, group = (json.loads((tmp_path / name).read_text()) for name in ("answers.jsonl", "candidates.jsonl"))
    assert group["candidates"][answer["index"]]["text"] == answer["completion"]
    printed = capsys.readouterr().out
    assert "among 4: passes " in printed
    assert "of 1 public tests" in printed


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "give either --problems or --prompt"),
        (["--prompt", "a", "--problems", "b"], "give either --problems or --prompt"),
        (["--problems", "b.jsonl"], "--problems needs --out"),
        (["--prompt", "a", "--test", "1 2 3"], "must be INPUT => OUTPUT"),
        (["--prompt", "a", "--num_samples", "0"], "--num_samples is 0, must be at least 1"),
        (["--prompt", "a", "--stop_when_sure", "1.5"], r"must be a share in \(0, 1\]"),
        (["--prompt", "a", "--select", "public,agreement"], r"must be one selector; \+ joins several"),
        (["--prompt", "a", "--config", "no.yaml"], "no.yaml is not a file"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(options: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call(best, ["--policy", "builtin", *options])


def test_the_package_itself_stays_light() -> None:
    program = "import sys, maxk_lightning; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
    with pytest.raises(AttributeError, match="has no attribute 'worst_of_n'"):
        maxk_lightning.worst_of_n  # noqa: B018


def test_one_candidate_is_chosen_as_the_only_one() -> None:
    (answer,) = maxk_lightning.best_of_n("builtin", [Problem(id="a", prompt="Sort.")], num_samples=1, overrides=SHORT)
    assert (answer.how, answer.index, answer.num_candidates) == ("only", 0, 1)
