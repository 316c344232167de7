"""Text about the data of a run, for people."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

from maxk_lightning.commands.trainer import PartsCLI
from maxk_lightning.data import PromptStream
from maxk_lightning.datamodule import LONGEST_TOLD_K, STAGES, PromptDataModule
from maxk_lightning.types import Problem

MAX_SHOWN = 400
"Characters of a test's input or output that are shown."


def show_data(args: Sequence[str], split: str, num_prompts: int, num_tests: int) -> None:
    """Print reports and prompts; `args` are those of `fit`."""
    parts = PartsCLI(list(args)).config_init
    datamodule: PromptDataModule = parts["data"]
    names = [name for name, stage in STAGES.items() if split in ("all", name) and datamodule.sources[stage] is not None]
    if not names:
        raise ValueError(f"data.{split} is null in the YAML")
    for name in names:
        with _without_info():  # the report is printed here
            datamodule.setup(STAGES[name])
        print(f"=== {name}: {datamodule.reports[STAGES[name]].text()}")
        for problem in islice(_in_order(datamodule, STAGES[name]), num_prompts):
            print(describe(problem, datamodule, num_tests, parts["rollout"].reward))


@contextmanager
def _without_info() -> Iterator[None]:
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _in_order(datamodule: PromptDataModule, stage: str) -> Iterator[Problem]:
    """Problems as they come: training in its seeded order, the others as they stand."""
    problems = datamodule.problems[stage]
    stream = PromptStream(num_problems=len(problems), seed=datamodule.seed)
    return (problems[stream.index(place) if stage == "fit" else place] for place in range(len(problems)))


def describe(problem: Problem, datamodule: PromptDataModule, num_tests: int, reward: object = None) -> str:
    """A problem's prompt with the chat template's tokens, how it is judged, and its first tests."""
    prompt = datamodule.render([problem], [0], datamodule.told_k or LONGEST_TOLD_K)[0]
    limits = ", ".join(
        f"{getattr(problem, key) or getattr(reward, key, 'default')} {unit}"
        for key, unit in (("time_limit_s", "s"), ("memory_limit_mb", "MiB"))
    )
    lines = [f"--- {problem.id} ({len(prompt.token_ids)} tokens)", datamodule.tokenizer.decode(prompt.token_ids)]
    if problem.answer is not None or not problem.tests:
        answer = "none" if problem.answer is None else _shortened(problem.answer)
        lines.append(f"--- answer: {answer}; columns: {', '.join(problem.columns) or 'none'}")
    if problem.tests:
        lines.append(f"--- {len(problem.tests)} tests, judged {_how_judged(problem)}; limits: {limits}")
    for test in problem.tests[:num_tests]:
        lines += [f"input:    {_shortened(test.input)}", f"expected: {_shortened(test.output)}"]
    return "\n".join(lines)


def _how_judged(problem: Problem) -> str:
    rule = "as Python values" if problem.values == "python" else f"by `{problem.compare}`"
    if problem.checker:
        rule = "by its checker"
    if problem.function is None:
        return rule
    return f"by calling {problem.function}" + (", then by its checker" if problem.checker else "")


def _shortened(text: str) -> str:
    rest = f" ... ({len(text)} characters)" if len(text) > MAX_SHOWN else ""
    return repr(text[:MAX_SHOWN]) + rest
