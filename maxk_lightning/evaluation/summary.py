"""The summary of one evaluation: its curves, its problems and its completions."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maxk_lightning.evaluation.estimates import (
    CORRECT_AT,
    METRICS,
    Estimate,
    correct_counts,
    distinct_estimates,
    estimates,
    rewards_of,
)
from maxk_lightning.evaluation.origin import Origin, origin_from
from maxk_lightning.evaluation.prediction import predicted_curves
from maxk_lightning.evaluation.samples import Sample, by_problem
from maxk_lightning.rewards.extraction import extract_code

LATER_CURVES = ("predicted_max_at_k", "predicted_pass_at_k", "distinct_at_k")
"Older files have none."


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemSummary:
    """The samples of one problem."""

    id: str
    "Id of the problem."
    num_samples: int
    "Number of scored samples."
    num_missing: int
    "Number of samples that could not be scored."
    num_solved: int
    "Number of fully correct samples."
    mean_reward: float | None
    "Mean over scored samples; None without any."
    best_reward: float | None
    "Largest of scored samples; None without any."
    num_distinct: int
    "Number of different programs in the group."
    num_ways: int = 0
    "Number of different behaviours among fully correct samples; 0 where the reward gives none, and in older files."

    @property
    def solve_rate(self) -> float:
        """Share of scored samples that are fully correct; NaN without any."""
        return self.num_solved / self.num_samples if self.num_samples else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Wall-clock times of the parts of an evaluation."""

    generating: float = 0.0
    "Seconds of sampling completions."
    scoring: float = 0.0
    "Seconds of judging them; runs beside generating."
    waiting: float = 0.0
    "Seconds of scoring that generating had to wait for."
    analysing: float = 0.0
    "Seconds of computing this summary."


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The content of summary.json."""

    name: str
    "Name of the run, as tables show it."
    benchmark: str
    "Name of the set of problems; runs on the same benchmark are compared problem by problem."
    num_problems: int
    "Number of problems P."
    num_samples: int
    "Size n of the largest group."
    num_missing: int
    "Number of samples that could not be scored; they are left out of their groups."
    max_at_k: tuple[Estimate, ...]
    "Curve for k = 1, 2, 4, ..., n."
    pass_at_k: tuple[Estimate, ...]
    "Curve for k = 1, 2, 4, ..., n."
    truncation_rate: float
    "Share of completions cut at the token limit."
    no_code_rate: float
    "Share of completions without a program."
    mean_tokens: float
    "Mean length of a completion."
    mean_entropy: float | None
    "Mean entropy of a token, in nats; None where the engine does not report it."
    distinct_rate: float
    "Rate of different programs per sample, averaged over problems."
    seconds: Seconds
    "Wall-clock times."
    problems: tuple[ProblemSummary, ...]
    "Problems, one by one."
    origin: Origin | None = None
    "Policy, training and seeds; None: not known."
    predicted_max_at_k: tuple[Estimate, ...] = ()
    "Beyond n, as a model predicts it; none where it was not asked for."
    predicted_pass_at_k: tuple[Estimate, ...] = ()
    "The same for pass@k."
    distinct_at_k: tuple[Estimate, ...] = ()
    "Different behaviours among the fully correct of k samples; none where the reward gives no behaviours."

    @property
    def has_ways(self) -> bool:
        """Whether some problem was solved in more than one way; if none was, distinct@k is pass@k."""
        return any(problem.num_ways > 1 for problem in self.problems)

    @property
    def notes(self) -> list[str]:
        """List what a reader must know before trusting the numbers; nothing when there is nothing."""
        notes = []
        if self.num_missing:
            notes.append(f"{self.num_missing} samples could not be scored and were left out of their groups.")
        short = [point for point in self.max_at_k if (point.num_problems or 0) < self.num_problems]
        if short:
            parts = ", ".join(f"k = {point.k}: {point.num_problems}" for point in short)
            notes.append(
                f"Groups are uneven: a problem with fewer than k samples does not count at k. "
                f"Problems counted, of {self.num_problems}: {parts}."
            )
        if self.predicted_max_at_k:
            notes.append(
                f"Values above k = {self.num_samples} are predicted from how problems differ, not measured "
                "(docs/prediction.md)."
            )
        return notes


def summarise(
    samples: Sequence[Sample],
    *,
    name: str,
    benchmark: str,
    seconds: Seconds = Seconds(),
    origin: Origin | None = None,
    predict_up_to: int = 0,
) -> Summary:
    """Summarise scored samples; values above n are predicted up to k = `predict_up_to`.

    Raises:
        ValueError: there is no sample.
    """
    groups = by_problem(samples)
    if not groups:
        raise ValueError(f"{name}: no sample to summarise")
    num_tokens = sum(sample.num_tokens for sample in samples)
    scored = [sample for sample in samples if sample.reward is not None]
    problems = tuple(_summarise_problem(id_, group) for id_, group in groups.items())
    rewards = rewards_of(groups)
    curves = {metric: estimates(rewards, metric) for metric in METRICS}
    predicted = predicted_curves(rewards, predict_up_to)
    return Summary(
        name=name,
        benchmark=benchmark,
        num_problems=len(groups),
        num_samples=max(len(group) for group in groups.values()),
        num_missing=len(samples) - len(scored),
        max_at_k=curves["max_at_k"],
        pass_at_k=curves["pass_at_k"],
        truncation_rate=_mean([sample.finish_reason == "length" for sample in samples]),
        no_code_rate=_mean(["no_code" in sample.verdicts for sample in samples]),
        mean_tokens=num_tokens / len(samples),
        mean_entropy=_mean_entropy(samples),
        distinct_rate=_mean([problem.num_distinct / len(groups[problem.id]) for problem in problems]),
        seconds=seconds,
        problems=problems,
        origin=origin,
        predicted_max_at_k=predicted["max_at_k"],
        predicted_pass_at_k=predicted["pass_at_k"],
        distinct_at_k=distinct_estimates(groups),
    )


def write_summary(summary: Summary, path: Path) -> None:
    """Write summary.json; the solve rates, which follow from the counts, are written too."""
    record = asdict(summary)
    for problem, problem_record in zip(summary.problems, record["problems"], strict=True):
        problem_record["solve_rate"] = _finite(problem.solve_rate)
    record["notes"] = summary.notes
    path.write_text(json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def read_summary(path: Path) -> Summary:
    """Read summary.json.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return _from_record(record)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a summary that `evaluate` wrote ({error!r})") from error


def _from_record(record: dict[str, Any]) -> Summary:
    del record["notes"]
    for problem in record["problems"]:
        del problem["solve_rate"]
    curves = {key: record.get(key, []) for key in LATER_CURVES}
    curves |= {metric: record[metric] for metric in METRICS}
    nested = {
        **{key: tuple(Estimate(**point) for point in points) for key, points in curves.items()},
        "seconds": Seconds(**record["seconds"]),
        "problems": tuple(ProblemSummary(**problem) for problem in record["problems"]),
        "origin": origin_from(record.get("origin")),
    }
    return Summary(**{**record, **nested})


def _summarise_problem(id_: str, group: Sequence[Sample]) -> ProblemSummary:
    rewards = [sample.reward for sample in group if sample.reward is not None]
    programs = {_program(sample) for sample in group} - {None}
    return ProblemSummary(
        id=id_,
        num_samples=len(rewards),
        num_missing=len(group) - len(rewards),
        num_solved=sum(reward >= CORRECT_AT for reward in rewards),
        mean_reward=_finite(_mean(rewards)),
        best_reward=max(rewards, default=None),
        num_distinct=len(programs),
        num_ways=len(correct_counts(group)),
    )


def _program(sample: Sample) -> str | None:
    """The program without trailing blanks, or the whole answer where the reward runs no programs."""
    if "no_code" in sample.verdicts:
        return None
    program = extract_code(sample.completion, allow_unclosed=True) if sample.verdicts else None
    text = sample.completion if program is None else program
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _mean_entropy(samples: Sequence[Sample]) -> float | None:
    told = [(sample.mean_entropy, sample.num_tokens) for sample in samples if sample.mean_entropy is not None]
    num_tokens = sum(tokens for _, tokens in told)
    return sum(entropy * tokens for entropy, tokens in told) / num_tokens if num_tokens else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
