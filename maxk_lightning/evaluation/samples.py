"""samples.jsonl: one line per (problem, sample), appended as evaluation goes, readable after a kill at any byte."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import IO, Any, get_args

from maxk_lightning.records import check_keys, read_records, take
from maxk_lightning.types import Completion, FinishReason, Score, Verdict

ENTROPY_BIN = 0.05
"Width in nats of the bins that token entropies are counted in."


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One scored completion, as a line of samples.jsonl; the fields are the keys."""

    id: str
    "Id of the problem."
    sample: int
    "Index in its group, from 0."
    completion: str
    "Text of the completion."
    reward: float | None
    "Reward; None: could not be scored, left out of its group."
    verdicts: tuple[Verdict, ...]
    "Verdicts, one per test; empty for rewards that run no tests."
    finish_reason: FinishReason
    "`length`: truncated."
    num_tokens: int
    "Number of sampled tokens, the stop token included."
    mean_entropy: float | None
    "Mean over tokens of the sampling distribution's entropy, in nats; None where the engine does not report it."
    entropy_counts: Mapping[int, int]
    "Counts: bin number (entropy / ENTROPY_BIN, rounded down) -> tokens; empty where the engine does not report them."
    mean_logprob: float | None = None
    "Mean over tokens of their log-prob under the tempered policy, in nats; None in files from before it was kept."
    behaviour: int | str | None = None
    "Its outputs on all tests (`Score.behaviour`), equal for completions with the same outputs; None: not known."


SAMPLE_KEYS = tuple(field.name for field in fields(Sample))
REQUIRED_KEYS = tuple(field.name for field in fields(Sample) if field.default is MISSING)


def to_sample(problem_id: str, index: int, completion: Completion, score: Score) -> Sample:
    """Join what the engine and the reward say of one completion."""
    entropies = completion.entropies or ()
    return Sample(
        id=problem_id,
        sample=index,
        completion=completion.text,
        reward=score.reward,
        verdicts=score.verdicts,
        finish_reason=completion.finish_reason,
        num_tokens=len(completion.token_ids),
        mean_entropy=sum(entropies) / len(entropies) if entropies else None,
        entropy_counts=dict(sorted(Counter(int(entropy / ENTROPY_BIN) for entropy in entropies).items())),
        mean_logprob=completion.mean_logprob,
        behaviour=score.behaviour,
    )


def append_samples(file: IO[str], samples: Iterable[Sample]) -> None:
    """Write lines and hand them to the operating system: a killed process loses at most a part of its last write."""
    for sample in samples:
        record = {name: getattr(sample, name) for name in SAMPLE_KEYS}
        file.write(json.dumps(record) + "\n")
    file.flush()


def read_samples(path: Path) -> list[Sample]:
    """Read a samples file.

    Raises:
        ValueError: naming file, line and reason, also when a sample occurs twice.
    """
    samples: list[Sample] = []
    line_of: dict[tuple[str, int], int] = {}
    for line_number, sample in read_records(path, sample_from_record):
        key = (sample.id, sample.sample)
        if key in line_of:
            raise ValueError(f"{path}:{line_number}: sample {key} was already on line {line_of[key]}")
        line_of[key] = line_number
        samples.append(sample)
    return samples


def drop_half_line(path: Path) -> None:
    """Cut what a killed process left after the last line end; a missing file is fine."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)


def sample_from_record(record: dict[str, Any]) -> Sample:
    """Turn one JSON object into a `Sample`; ValueError says which field is wrong and why."""
    check_keys(record, required=REQUIRED_KEYS, allowed=SAMPLE_KEYS)
    finish_reason = record["finish_reason"]
    if finish_reason not in get_args(FinishReason):
        raise ValueError(f"`finish_reason` is {finish_reason!r}, must be one of {', '.join(get_args(FinishReason))}")
    unknown = set(take(record, "verdicts", list)) - set(get_args(Verdict))
    if unknown:
        raise ValueError(f"`verdicts` holds {min(map(str, unknown))!r}, known are {', '.join(get_args(Verdict))}")
    return Sample(
        id=take(record, "id", str),
        sample=take(record, "sample", int),
        completion=take(record, "completion", str),
        reward=_optional_number(record, "reward"),
        verdicts=tuple(record["verdicts"]),
        finish_reason=finish_reason,
        num_tokens=take(record, "num_tokens", int),
        mean_entropy=_optional_number(record, "mean_entropy"),
        entropy_counts={int(bin_): int(count) for bin_, count in take(record, "entropy_counts", dict).items()},
        mean_logprob=_optional_number({"mean_logprob": None} | record, "mean_logprob"),
        behaviour=_behaviour(record.get("behaviour")),
    )


def by_problem(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Group the samples by problem, in the order of the file; groups may be incomplete, and samples unscored."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.id, []).append(sample)
    return groups


def _behaviour(value: Any) -> int | str | None:
    if isinstance(value, bool) or not isinstance(value, int | str | None):
        raise ValueError(f"`behaviour` must be a whole number, a text or null, not {value!r}")
    return value


def _optional_number(record: dict[str, Any], key: str) -> float | None:
    value = record[key]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"`{key}` must be a number or null, not {value!r}")
    return float(value)
