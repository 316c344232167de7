"""Several sources as one, and prompts chosen by how often a policy solved them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Literal

from maxk_lightning.data.report import Facts, LoadReport, report_of
from maxk_lightning.data.sources import ProblemSource
from maxk_lightning.records import take
from maxk_lightning.seeds import derive_seed
from maxk_lightning.types import Problem


class Mixture:
    """Several sources, each with a share of every pass over the data.

    Nothing is left out: one pass is as long as the source that its weight stretches most needs, and the others repeat
    problems until their share is right. Ids become `name/id`. For training; an evaluation wants each problem once.
    """

    def __init__(
        self,
        sources: dict[str, ProblemSource] | list[ProblemSource],
        weights: dict[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        """Choose sources.

        Args:
            sources: Name -> source. A list is refused, with a sentence.
            weights: Name -> share of the prompts, up to a common factor; None: every problem once.
            seed: Of the choice which problems are repeated.

        Raises:
            ValueError: no source, a list of sources, or weights that do not name each source with a positive number.
        """
        if isinstance(sources, list):
            raise ValueError(
                "sources is a list, must map names of your choice to sources (`sources: {code: {class_path: ...}, "
                "maths: {class_path: ...}}`): ids and weights go by them"
            )
        if not sources:
            raise ValueError("sources is empty")
        if weights is not None and weights.keys() != sources.keys():
            raise ValueError(f"weights names {sorted(weights)}, sources has {sorted(sources)}")
        for name, weight in (weights or {}).items():
            if not 0.0 < weight < math.inf:
                raise ValueError(
                    f"weights: {name} has {weight}, must be a positive number; leave the source out instead"
                )
        self.sources = sources
        self.weights = weights
        self.seed = seed
        self.report: LoadReport | None = None

    def load(self) -> Sequence[Problem]:
        """Problems of one pass, source after source."""
        parts = {name: self._load(name) for name in self.sources}
        weights = self.weights or {name: float(len(problems)) for name, problems in parts.items()}
        pass_length = max(len(problems) / weights[name] for name, problems in parts.items())
        counts = {name: round(weights[name] * pass_length) for name in parts}
        return [
            problem
            for name, problems in parts.items()
            for problem in repeated(problems, counts[name], derive_seed(self.seed, "mixture", name))
        ]

    def _load(self, name: str) -> list[Problem]:
        problems = self.sources[name].load()
        if not problems:
            raise ValueError(f"sources: {name} has no problem")
        part = report_of(self.sources[name], problems, name)
        part.rename(lambda facts: _named(facts, name))
        if self.report is None or next(iter(self.sources)) == name:
            self.report = LoadReport(name=" + ".join(self.sources))
        self.report.extend(part)
        return [replace(problem, id=f"{name}/{problem.id}") for problem in problems]


def _named(facts: Facts, name: str) -> Facts:
    source = name if facts.source == "-" else f"{name}: {facts.source}"
    return replace(facts, id=f"{name}/{facts.id}", source=source)


def repeated(problems: Sequence[Problem], count: int, seed: int) -> list[Problem]:
    """`count` problems, each as often as any other or once more; which ones more is drawn."""
    times, rest = divmod(count, len(problems))
    extra = set(Random(seed).sample(range(len(problems)), rest))
    return [problem for index, problem in enumerate(problems) for _ in range(times + (index in extra))]


class SolveRate:
    """Problems of a source whose measured solve rate lies strictly between two bounds.

    By default what was always or never solved is left out: such a group teaches nothing to a group-relative objective.
    The rate comes from an `evaluate` output on the same source (ids must agree).
    """

    def __init__(
        self,
        source: ProblemSource,
        evaluation: str,
        above: float | None = 0.0,
        below: float | None = 1.0,
        measure: Literal["solved", "mean_reward"] = "solved",
        unknown: Literal["keep", "leave_out", "refuse"] = "refuse",
        max_copies: int = 1,
    ) -> None:
        """Choose problems.

        Args:
            source: Where the problems come from.
            evaluation: Output directory of `evaluate` on them.
            above: Keep rates greater than this; None: no lower bound.
            below: Keep rates less than this; None: no upper bound.
            measure: `solved`: share of fully correct samples; `mean_reward`: mean reward.
            unknown: What to do with problems that were not measured.
            max_copies: A problem of rate p appears 1 + (max_copies - 1) * 4p(1 - p) times, rounded, in a pass: those
                that are solved half of the time most often.

        Raises:
            ValueError: bounds that nothing can meet, or fewer than one copy.
        """
        if above is not None and below is not None and above >= below:
            raise ValueError(f"above ({above}) must be less than below ({below})")
        if max_copies < 1:
            raise ValueError(f"max_copies is {max_copies}, must be at least 1")
        self.source = source
        self.evaluation = evaluation
        self.above = -math.inf if above is None else above
        self.below = math.inf if below is None else below
        self.measure = measure
        self.unknown = unknown
        self.max_copies = max_copies
        self.report: LoadReport | None = None

    def load(self) -> Sequence[Problem]:
        """Problems in the order of the source, copies side by side."""
        problems = self.source.load()
        rates = read_rates(Path(self.evaluation) / "summary.json", self.measure)
        self.report = report_of(self.source, problems, type(self.source).__name__)
        reasons = {problem.id: self._why_left_out(rates.get(problem.id)) for problem in problems}
        for reason in dict.fromkeys(filter(None, reasons.values())):
            self.report.drop([id_ for id_, other in reasons.items() if other == reason], reason)
        if self.unknown == "refuse" and any(id_ not in rates for id_ in reasons):
            missing = [id_ for id_ in reasons if id_ not in rates]
            raise ValueError(
                f"{self.evaluation} did not measure {len(missing)} of {len(reasons)} problems, such as {missing[0]!r}; "
                "evaluate on this source, or set `unknown` to keep or leave_out"
            )
        kept = [problem for problem in problems if reasons[problem.id] is None]
        return [problem for problem in kept for _ in range(self._num_copies(rates.get(problem.id)))]

    def _why_left_out(self, rate: float | None) -> str | None:
        if rate is None:
            return f"not measured in {self.evaluation}" if self.unknown == "leave_out" else None
        if not self.above < rate:
            return f"{self.measure} at most {self.above}"
        return None if rate < self.below else f"{self.measure} at least {self.below}"

    def _num_copies(self, rate: float | None) -> int:
        return 1 if rate is None else 1 + round((self.max_copies - 1) * 4 * rate * (1 - rate))


def read_rates(path: Path, measure: Literal["solved", "mean_reward"]) -> Mapping[str, float]:
    """Rate of every problem with a scored sample, from the summary of an `evaluate` output.

    Raises:
        ValueError: there is no such file, or it is no summary.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the output directory of `evaluate`")
    try:
        problems: list[dict[str, Any]] = take(json.loads(path.read_text(encoding="utf-8")), "problems", list)
        return {problem["id"]: _rate(problem, measure) for problem in problems if problem["num_samples"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a summary of `evaluate`: {error}") from error


def _rate(problem: dict[str, Any], measure: Literal["solved", "mean_reward"]) -> float:
    if measure == "solved":
        return float(problem["num_solved"]) / float(problem["num_samples"])
    return float(problem["mean_reward"])
