"""samples.jsonl: what is written is read, a cut at any byte loses one line, and bad lines are named."""

import json
from pathlib import Path

import pytest

from maxk_lightning.evaluation.samples import append_samples, drop_half_line, read_samples, to_sample
from maxk_lightning.types import Completion, Score
from tests.support.builders import make_sample

AWKWARD = 'tab\t, newline\n, quote ", \u2028 separator, \U0001f600, lone \ud800 surrogate, nul \x00'


def completion(text: str = "x", entropies: tuple[float, ...] | None = (0.0, 0.26)) -> Completion:
    return Completion(token_ids=(1, 2), logprobs=(-0.5, -0.5), entropies=entropies, text=text, finish_reason="length")


def write(path: Path, *samples) -> bytes:  # type: ignore[no-untyped-def]
    with path.open("a", encoding="utf-8") as file:
        append_samples(file, samples)
    return path.read_bytes()


def test_samples_survive_the_file(tmp_path: Path) -> None:
    samples = [
        make_sample("a", 0, 0.3),
        make_sample("a", 1, None, mean_entropy=None, entropy_counts={}),
        make_sample("ü", 0, completion=AWKWARD, behaviour="c0ffee"),
        make_sample("ü", 1, behaviour=7),
    ]
    write(tmp_path / "s.jsonl", *samples)
    assert read_samples(tmp_path / "s.jsonl") == samples


def test_a_sample_joins_completion_and_score() -> None:
    sample = to_sample("p", 3, completion(), Score(reward=0.5, verdicts=("passed", "wrong_answer"), behaviour="x"))
    assert (sample.id, sample.sample, sample.reward, sample.num_tokens, sample.behaviour) == ("p", 3, 0.5, 2, "x")
    assert sample.mean_entropy == pytest.approx(0.13)
    assert sample.entropy_counts == {0: 1, 5: 1}  # 0.26 nats lie in [0.25, 0.30)
    silent = to_sample("p", 3, completion(entropies=None), Score(reward=None, verdicts=("infra_error",)))
    assert silent.mean_entropy is None
    assert silent.entropy_counts == {}


def test_a_cut_at_any_byte_loses_at_most_the_last_line(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    first, second = make_sample("ü", 0), make_sample("ü", 1)
    whole = write(path, first, second)
    one = len(whole.splitlines(keepends=True)[0])
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        drop_half_line(path)
        kept = [] if length < one else [first] if length < len(whole) else [first, second]
        assert read_samples(path) == kept


def test_a_missing_file_needs_no_repair(tmp_path: Path) -> None:
    drop_half_line(tmp_path / "none.jsonl")


BAD = {
    "sample twice": ({}, "already on line 1"),
    "reason": ({"sample": 1, "finish_reason": "eos"}, "`finish_reason` is 'eos'"),
    "verdict": ({"sample": 1, "verdicts": ["nice"]}, "`verdicts` holds 'nice'"),
    "reward": ({"sample": 1, "reward": "high"}, "`reward` must be a number or null"),
    "behaviour": ({"sample": 1, "behaviour": 0.5}, "`behaviour` must be a whole number, a text or null, not 0.5"),
    "key": ({"sample": 1, "extra": 0}, "unknown key `extra`"),
}


@pytest.mark.parametrize(("changes", "reason"), BAD.values(), ids=BAD)
def test_bad_lines_are_named_with_file_line_and_reason(tmp_path: Path, changes: dict, reason: str) -> None:  # type: ignore[type-arg]
    path = tmp_path / "s.jsonl"
    write(path, make_sample("a", 0))
    record = json.loads(path.read_text()) | changes
    path.write_text(path.read_text() + json.dumps(record) + "\n")
    with pytest.raises(ValueError, match=rf"s\.jsonl:2: .*{reason}"):
        read_samples(path)
