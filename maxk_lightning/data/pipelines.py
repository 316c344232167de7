"""The built-in benchmark: pipelines of list operations in English, answered by a program on stdin and stdout.

A *phrase* names one operation. Clear phrases have one reading; vague ones ("sort") have two, as in real statements, and
the example at the end of the statement settles which one the tests want. There are two variants of the benchmark,
each with a policy pre-trained for it. Standard library only; everything is a pure function of the variant.
"""

import argparse
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import CodeType

from maxk_lightning.records import problem_to_record
from maxk_lightning.types import Problem, TestCase

SPLIT_SIZES = {"test": 100, "validation": 100, "train": 600}
DEPTHS = (3, 4, 5, 6)
NUM_TESTS = 8
MAX_EMPTY_OUTPUTS = 2  # of NUM_TESTS: an empty answer is easily right by accident
MIN_TESTS_PER_STEP = 4  # leaving a step out must fail at least so many tests, so no step is idle
MIN_TESTS_PER_READING = 2  # so many tests must fail under another reading of a vague phrase
PARAMETERS = (1, 2, 3, 4, 5, 6, 7, 8, 9)
SMALL_PARAMETERS = (1, 2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What makes one of the built-in benchmarks: how vague its statements are, and how well its policy was taught."""

    directory: str
    "Folder of its problems and its policy, in this package's data."
    seed: int
    "Seed of its problems."
    vague_share: float
    "Share of steps that a vague phrase describes."
    rare_reading_share: float
    "Share of vague steps that mean the less usual reading."
    taught_rare_share: float
    "Share of vague steps that the programmer who taught the policy reads in the less usual way."
    bad_context_right: tuple[float, float]
    "Range of that programmer's probability of the right step where a habit misleads him (`mistakes`)."

    @property
    def name(self) -> str:
        """Its name on the command line, which is also that of its policy."""
        return self.directory.replace("_", "-")


VARIANTS = {
    "standard": Variant(
        directory="builtin",
        seed=20251023,
        vague_share=0.25,
        rare_reading_share=0.2,
        taught_rare_share=0.15,
        bad_context_right=(0.05, 0.15),
    ),
    "vague": Variant(
        directory="builtin_vague",
        seed=20251024,
        vague_share=0.5,
        rare_reading_share=0.25,
        taught_rare_share=0.25,
        bad_context_right=(0.25, 0.45),
    ),
}
STANDARD = VARIANTS["standard"]
"""Benchmark whose policy solves .3 of the problems at once and leaves many for hundreds of samples, where habits
mislead it several times in a row."""
VAGUE = VARIANTS["vague"]
"Benchmark whose policy can write almost every right program, but cannot know which of several readings is meant."


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One list operation."""

    name: str
    family: str
    "Operations of a family are easily confused."
    expression: str
    "Python expression in the list `x`; `{n}` is the parameter."
    parameters: tuple[int, ...] = ()
    "Values the parameter may take; empty: no parameter."


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrase:
    """One way to name an operation."""

    text: str
    "English, imperative; `{n}` is the parameter."
    meaning: str
    "Name of the operation it usually means."
    rare_meaning: str | None = None
    "Name of the operation it sometimes means; None: the phrase is clear."


@dataclass(frozen=True, slots=True, order=True)
class Step:
    """An operation with its parameter."""

    operation: str
    parameter: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Steps and the phrases that name them."""

    steps: tuple[Step, ...]
    phrases: tuple[Phrase, ...]
    "One per step."


def _operations() -> Iterator[Operation]:
    for name, family, expression, parameters in (
        ("sort_up", "order", "sorted(x)", ()),
        ("sort_down", "order", "sorted(x)[::-1]", ()),
        ("reverse", "order", "x[::-1]", ()),
        ("drop_first", "ends", "x[{n}:]", SMALL_PARAMETERS),
        ("drop_last", "ends", "x[:-{n}]", SMALL_PARAMETERS),
        ("take_first", "ends", "x[:{n}]", PARAMETERS[2:6]),
        ("take_last", "ends", "x[-{n}:]", PARAMETERS[2:6]),
        ("evens", "parity", "[v for v in x if v%2==0]", ()),
        ("odds", "parity", "[v for v in x if v%2==1]", ()),
        ("above", "bound", "[v for v in x if v>{n}]", PARAMETERS),
        ("at_least", "bound", "[v for v in x if v>={n}]", PARAMETERS),
        ("below", "bound", "[v for v in x if v<{n}]", PARAMETERS),
        ("at_most", "bound", "[v for v in x if v<={n}]", PARAMETERS),
        ("add", "arithmetic", "[v+{n} for v in x]", PARAMETERS),
        ("subtract", "arithmetic", "[v-{n} for v in x]", PARAMETERS),
        ("multiply", "arithmetic", "[v*{n} for v in x]", PARAMETERS[1:]),
        ("negate", "sign", "[-v for v in x]", ()),
        ("absolute", "sign", "[abs(v) for v in x]", ()),
        ("odd_places", "places", "x[::2]", ()),
        ("even_places", "places", "x[1::2]", ()),
        ("rotate_left", "rotation", "x[1:]+x[:1]", ()),
        ("rotate_right", "rotation", "x[-1:]+x[:-1]", ()),
        ("differences", "chain", "[b-a for a,b in zip(x,x[1:])]", ()),
        ("sums", "chain", "[a+b for a,b in zip(x,x[1:])]", ()),
    ):
        yield Operation(name=name, family=family, expression=expression, parameters=parameters)


OPERATIONS = {operation.name: operation for operation in _operations()}

CLEAR_PHRASES = tuple(
    Phrase(text=text, meaning=meaning)
    for meaning, texts in {
        "sort_up": ("sort ascending", "put in increasing order", "order from small to large"),
        "sort_down": ("sort descending", "put in decreasing order", "order from large to small"),
        "reverse": ("reverse", "flip the order", "read backwards"),
        "drop_first": ("drop the first {n}", "skip {n} at the front"),
        "drop_last": ("drop the last {n}", "skip {n} at the end"),
        "take_first": ("take the first {n}", "keep {n} at the front"),
        "take_last": ("take the last {n}", "keep {n} at the end"),
        "evens": ("keep even numbers", "remove odd numbers"),
        "odds": ("keep odd numbers", "remove even numbers"),
        "above": ("keep numbers above {n}", "keep all greater than {n}"),
        "at_least": ("keep numbers of at least {n}", "remove numbers below {n}"),
        "below": ("keep numbers below {n}", "keep all less than {n}"),
        "at_most": ("keep numbers of at most {n}", "remove numbers above {n}"),
        "add": ("add {n} to each", "increase all by {n}"),
        "subtract": ("subtract {n} from each", "decrease all by {n}"),
        "multiply": ("multiply each by {n}", "make all {n} times larger"),
        "negate": ("negate each", "change every sign"),
        "absolute": ("take absolute values", "make all positive"),
        "odd_places": ("keep every other one from the first", "keep odd places"),
        "even_places": ("keep every other one from the second", "keep even places"),
        "rotate_left": ("rotate left", "move the first to the end"),
        "rotate_right": ("rotate right", "move the last to the front"),
        "differences": ("take differences of neighbours", "subtract each from the next"),
        "sums": ("take sums of neighbours", "add each to the next"),
    }.items()
    for text in texts
)

VAGUE_PHRASES = tuple(
    Phrase(text=text, meaning=meaning, rare_meaning=rare_meaning)
    for text, meaning, rare_meaning in (
        ("sort", "sort_up", "sort_down"),
        ("drop {n}", "drop_first", "drop_last"),
        ("take {n}", "take_first", "take_last"),
        ("keep numbers from {n}", "at_least", "above"),
        ("keep numbers up to {n}", "at_most", "below"),
        ("shift by {n}", "add", "subtract"),
        ("keep every other one", "odd_places", "even_places"),
        ("rotate", "rotate_left", "rotate_right"),
    )
)

PHRASES_OF = {name: tuple(phrase for phrase in CLEAR_PHRASES if phrase.meaning == name) for name in OPERATIONS}


@cache
def expression_of(step: Step) -> str:
    """The Python expression of a step.

    >>> expression_of(Step("drop_first", 2))
    'x[2:]'
    """
    return OPERATIONS[step.operation].expression.replace("{n}", str(step.parameter))


@cache
def _compiled(step: Step) -> CodeType:
    return compile(expression_of(step), step.operation, "eval")


def run_steps(steps: Iterable[Step], numbers: Sequence[int]) -> list[int]:
    """What the steps make of a list.

    >>> run_steps([Step("sort_up", None), Step("drop_first", 1)], [3, 1, 2])
    [2, 3]
    """
    x = list(numbers)
    for step in steps:
        x = eval(_compiled(step), {"x": x})  # only expressions of the table above
    return x


def program_of(steps: Iterable[Step]) -> str:
    """The program that answers a pipeline."""
    body = "".join(f"x={expression_of(step)}\n" for step in steps)
    return f"x=list(map(int,input().split()))\n{body}print(*x)"


def fenced(program: str) -> str:
    """A program as a completion carries it."""
    return f"```python\n{program}\n```"


def draw_pipeline(rng: random.Random, depth: int, variant: Variant) -> Pipeline:
    """Draw phrases, and for each the operation it means."""
    phrases = tuple(_draw_phrase(rng, variant) for _ in range(depth))
    return Pipeline(steps=tuple(_draw_step(rng, phrase, variant) for phrase in phrases), phrases=phrases)


def _draw_phrase(rng: random.Random, variant: Variant) -> Phrase:
    if rng.random() < variant.vague_share:
        return rng.choice(VAGUE_PHRASES)
    return rng.choice(PHRASES_OF[rng.choice(tuple(OPERATIONS))])


def _draw_step(rng: random.Random, phrase: Phrase, variant: Variant) -> Step:
    is_rare = phrase.rare_meaning is not None and rng.random() < variant.rare_reading_share
    operation = OPERATIONS[phrase.rare_meaning if is_rare and phrase.rare_meaning else phrase.meaning]
    return Step(operation.name, rng.choice(operation.parameters) if operation.parameters else None)


def other_readings(pipeline: Pipeline) -> list[tuple[Step, ...]]:
    """The steps under every other reading of one vague phrase."""
    readings = []
    for index, (step, phrase) in enumerate(zip(pipeline.steps, pipeline.phrases, strict=True)):
        if phrase.rare_meaning is not None:
            other = phrase.meaning if step.operation == phrase.rare_meaning else phrase.rare_meaning
            readings.append((*pipeline.steps[:index], Step(other, step.parameter), *pipeline.steps[index + 1 :]))
    return readings


def without_one_step(steps: Sequence[Step]) -> list[tuple[Step, ...]]:
    """The steps with each left out in turn."""
    return [(*steps[:index], *steps[index + 1 :]) for index in range(len(steps))]


def draw_numbers(rng: random.Random, min_length: int, max_length: int) -> list[int]:
    """Draw an input list; values are small, so that bounds are hit exactly now and then."""
    return [rng.randint(-9, 15) for _ in range(rng.randint(min_length, max_length))]


def statement_of(rng: random.Random, pipeline: Pipeline, num_tries: int = 40) -> str | None:
    """Tell a pipeline, with an example that no other reading satisfies; None when no short example is found."""
    readings = other_readings(pipeline)
    told = [
        phrase.text.replace("{n}", str(s.parameter)) for phrase, s in zip(pipeline.phrases, pipeline.steps, strict=True)
    ]
    for _ in range(num_tries):
        numbers = draw_numbers(rng, 4, 6)
        answer = run_steps(pipeline.steps, numbers)
        if answer and all(run_steps(steps, numbers) != answer for steps in readings):
            example = f"For {_joined(numbers)} print {_joined(answer)}."
            return f"{', then '.join(told).capitalize()}. {example}"
    return None


def _joined(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))


def draw_tests(rng: random.Random, pipeline: Pipeline) -> tuple[TestCase, ...] | None:
    """Draw tests, the first a tiny list; None when answers are empty too often or a wrong program passes too many."""
    inputs = [draw_numbers(rng, 1, 3)] + [draw_numbers(rng, 5, 12) for _ in range(NUM_TESTS - 1)]
    outputs = [run_steps(pipeline.steps, numbers) for numbers in inputs]
    if outputs.count([]) > MAX_EMPTY_OUTPUTS:
        return None

    def num_failed(steps: Sequence[Step]) -> int:
        return sum(run_steps(steps, x) != y for x, y in zip(inputs, outputs, strict=True))

    if any(num_failed(steps) < MIN_TESTS_PER_STEP for steps in without_one_step(pipeline.steps)):
        return None
    if any(num_failed(steps) < MIN_TESTS_PER_READING for steps in other_readings(pipeline)):
        return None
    return tuple(
        TestCase(input=_joined(numbers) + "\n", output=_joined(answer) + "\n")
        for numbers, answer in zip(inputs, outputs, strict=True)
    )


def fingerprint(steps: Iterable[Step]) -> tuple[tuple[int, ...], ...]:
    """Answers on fixed lists: two pipelines with the same fingerprint are taken for the same problem."""
    steps = tuple(steps)
    return tuple(tuple(run_steps(steps, numbers)) for numbers in _probes())


@lru_cache(maxsize=1)
def _probes() -> tuple[list[int], ...]:
    rng = random.Random("probes")
    return tuple(draw_numbers(rng, 8, 14) for _ in range(32))


@cache
def make_splits(variant: Variant) -> dict[str, list[tuple[Problem, Pipeline]]]:
    """The benchmark's splits; no pipeline, statement or fingerprint occurs twice, within a split or across splits."""
    rng = random.Random(variant.seed)
    seen: set[object] = set()
    splits: dict[str, list[tuple[Problem, Pipeline]]] = {}
    for split, size in SPLIT_SIZES.items():
        splits[split] = [
            _draw_problem(rng, f"{split}-{index:03d}", DEPTHS[index % len(DEPTHS)], variant, seen)
            for index in range(size)
        ]
    return splits


def _draw_problem(
    rng: random.Random, problem_id: str, depth: int, variant: Variant, seen: set[object]
) -> tuple[Problem, Pipeline]:
    while True:
        pipeline = draw_pipeline(rng, depth, variant)
        tests = draw_tests(rng, pipeline)
        statement = statement_of(rng, pipeline)
        if tests is None or statement is None:
            continue
        keys = {pipeline.steps, statement, fingerprint(pipeline.steps)}
        if keys & seen:
            continue
        seen |= keys
        return Problem(id=problem_id, prompt=statement, tests=tests, metadata={"level": depth}), pipeline


def write_splits(directory: Path, variant: Variant) -> None:
    """Write `train.jsonl`, `validation.jsonl` and `test.jsonl`."""
    directory.mkdir(parents=True, exist_ok=True)
    for split, problems in make_splits(variant).items():
        lines = [json.dumps(problem_to_record(problem)) + "\n" for problem, _ in problems]
        (directory / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Command line: `python -m maxk_lightning.data.pipelines --out DIR`."""
    parser = argparse.ArgumentParser(description="Write a built-in benchmark's problem files", allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="directory for the three .jsonl files")
    parser.add_argument("--variant", choices=VARIANTS, default="standard")
    arguments = parser.parse_args()
    write_splits(arguments.out, VARIANTS[arguments.variant])


if __name__ == "__main__":
    main()
