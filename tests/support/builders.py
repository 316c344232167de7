"""Samples and runs for the tests of this directory."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from maxk_lightning.evaluation.runs import Run, load
from maxk_lightning.evaluation.samples import Sample, append_samples
from maxk_lightning.evaluation.summary import summarise, write_summary
from maxk_lightning.types import Verdict


def make_sample(
    id_: str = "p", index: int = 0, reward: float | None = 1.0, program: str | None = None, **changes: object
) -> Sample:
    verdict: Verdict = "infra_error" if reward is None else "passed" if reward >= 1.0 else "wrong_answer"
    fields: dict[str, object] = {
        "id": id_,
        "sample": index,
        "completion": f"```python\n{program if program is not None else f'print({index})'}\n```",
        "reward": reward,
        "verdicts": (verdict,),
        "finish_reason": "stop",
        "num_tokens": 10,
        "mean_entropy": 0.5,
        "entropy_counts": {0: 4, 10: 6},
    }
    return Sample(**{**fields, **changes})  # type: ignore[arg-type]


def make_samples(rewards: Mapping[str, Sequence[float | None]]) -> list[Sample]:
    return [make_sample(id_, i, reward) for id_, group in rewards.items() for i, reward in enumerate(group)]


def make_run(directory: Path, samples: Sequence[Sample], benchmark: str = "bench", predict_up_to: int = 0) -> Run:
    """Write what `evaluate` writes and load it; the name is the directory's."""
    directory.mkdir(parents=True)
    with (directory / "samples.jsonl").open("w") as file:
        append_samples(file, samples)
    summary = summarise(samples, name=directory.name, benchmark=benchmark, predict_up_to=predict_up_to)
    write_summary(summary, directory / "summary.json")
    return load(directory)[0]
