"""What `evaluate` is asked for, and the outputs that come of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from maxk_lightning.commands.evaluate.shards import Shard
from maxk_lightning.commands.evaluate.told import TOLD
from maxk_lightning.data import ProblemSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One set of samples of a benchmark: how the policy is asked, and where they go."""

    directory: Path
    "Directory of samples.jsonl, summary.json and curves.png."
    title: str
    "What tables call it."
    temperature: float | None
    "Of sampling; None: that of the YAML."
    told_k: int | None
    "Number of tries that prompts tell; None: that of the YAML."


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments of the command, parsed."""

    config: str
    "YAML of a run."
    policy: str
    "Policy directory, hub name, `builtin`, or a checkpoint."
    out: Path
    "Directory of the output, or of all outputs."
    num_samples: int
    "Samples per problem."
    name: str
    "What tables call the policy."
    benchmarks: Mapping[str, ProblemSource] | None
    "Name -> source of problems; None: those of `split`."
    split: Literal["train", "validation", "test"]
    "Problems of the YAML."
    problems_per_chunk: int
    "Problems sampled together."
    shard: Shard | None
    "Share of the problems; None: all of them."
    temperatures: Sequence[float]
    "An output each; none: that of the YAML."
    told_ks: Sequence[int]
    "Numbers of tries that prompts tell, an output each; none: that of the YAML."
    select: str | None
    "Selectors, as the command takes them; None: none."
    predict_up_to: int
    "Largest k that is predicted; 0: none."
    until_width: float | None
    "Width of the interval to stop at; None: draw all samples."
    overrides: Sequence[str]
    "Keys laid over the YAML."

    def home(self, benchmark: str) -> Path:
        """Directory of all outputs of a benchmark."""
        return self.out / benchmark if self.benchmarks else self.out

    def outputs(self, benchmark: str) -> Iterator[Output]:
        """The outputs of a benchmark: one, or one per temperature or told k."""
        for temperature, told_k in product(self.temperatures or (None,), self.told_ks or (None,)):
            place, title = "", self.name
            if temperature is not None:
                place, title = f"temperature-{temperature:g}", f"{self.name} T={temperature:g}"
            elif told_k is not None:
                place, title = f"{TOLD}{told_k}", f"{self.name} told {told_k}"
            directory = self.out / place / benchmark if self.benchmarks else self.out / place
            yield Output(directory=directory, title=title, temperature=temperature, told_k=told_k)
