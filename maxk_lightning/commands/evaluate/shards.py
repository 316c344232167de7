"""One evaluation on several GPUs: every process takes a share of the problems, and the last one joins the shares."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from json import dumps
from pathlib import Path

from maxk_lightning.commands.evaluate.collect_samples import Task, read_seconds
from maxk_lightning.evaluation.samples import Sample, append_samples, read_samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Share `index` of `count`; processes need a common file system and nothing else."""

    index: int
    "Number of this share, from 0."
    count: int
    "Number of shares."

    def share(self, task: Task) -> Task:
        """The problems of this shard: every count-th, so that easy and hard ones are spread evenly."""
        every = slice(self.index, None, self.count)
        return replace(task, problems=task.problems[every], prompts=task.prompts[every])

    def directory(self, out: Path) -> Path:
        """Where this shard's samples lie."""
        return out / "shards" / f"{self.index}-of-{self.count}"

    def siblings(self) -> list["Shard"]:
        """All shards, this one included."""
        return [replace(self, index=index) for index in range(self.count)]


def parse_shard(text: str) -> Shard:
    """Parse "1/4".

    >>> parse_shard("1/4")
    Shard(index=1, count=4)

    Raises:
        ValueError: it is not INDEX/COUNT with 0 <= INDEX < COUNT.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"--shard is {text!r}, must be INDEX/COUNT with INDEX from 0 to COUNT - 1, such as 0/4")
    return Shard(index=int(index), count=int(count))


def join_shards(task: Task, shard: Shard, out: Path) -> list[Sample] | None:
    """Join all shards of a task under `out`, in the order of its problems; None while samples are missing.

    Two processes that finish together both join: they write the same files, each of them at once.
    """
    directories = [each.directory(out) for each in shard.siblings()]
    if not all((directory / "samples.jsonl").is_file() for directory in directories):
        return None
    samples = [sample for directory in directories for sample in read_samples(directory / "samples.jsonl")]
    if len(samples) < len(task.problems) * task.sampling.num_completions:
        return None
    place_of = {problem.id: place for place, problem in enumerate(task.problems)}
    samples.sort(key=lambda sample: (place_of[sample.id], sample.sample))
    _write(samples, out / "samples.jsonl", shard)
    part = out / f"times.{shard.index}.part"
    part.write_text("".join(dumps(asdict(read_seconds(directory))) + "\n" for directory in directories))
    part.replace(out / "times.jsonl")
    return samples


def _write(samples: Sequence[Sample], path: Path, shard: Shard) -> None:
    part = path.with_name(f"{path.name}.{shard.index}.part")
    with part.open("w", encoding="utf-8") as file:
        append_samples(file, samples)
    part.replace(path)
