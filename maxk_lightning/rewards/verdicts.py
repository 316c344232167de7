"""From how a run ended and what it printed to a verdict."""

import hashlib
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from maxk_lightning.rewards.sandbox.protocol import MEMORY_EXIT_STATUS, Outcome
from maxk_lightning.types import MissingCause, Verdict

RULES_VERSION = 4
"Raise it with every change of what is kept of a program: what lies in files under another number is void."

BEHAVIOUR_LENGTH = 16
"Hexadecimal digits: two of a million behaviours of a problem are taken for one with a probability of 3e-8."


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What came of one program."""

    verdicts: tuple[Verdict, ...]
    "One per test."
    missing_cause: MissingCause | None = None
    "Why the sandbox gave no verdict on some test."
    behaviour: str | None = None
    "What it said on all tests; see `behaviour_on`."
    is_constant: bool = False
    "Whether it said the same on every test, rightly on some and wrongly on others; see `is_constant_on`."


def failure_of(outcome: Outcome, num_output_bytes: int, max_output_bytes: int) -> Verdict | None:
    """The verdict of a run that did not end well, or None when its output decides."""
    if outcome.kind == "internal":
        return "infra_error"
    if outcome.kind in ("cpu_limit", "wall_limit"):
        return "time_limit"
    if outcome.kind == "output_limit" or num_output_bytes > max_output_bytes:
        return "output_limit"
    if outcome.kind == "signalled":
        return "memory_limit" if outcome.status == signal.SIGKILL else "runtime_error"
    if outcome.status == MEMORY_EXIT_STATUS:
        return "memory_limit"
    return "runtime_error" if outcome.status else None


def behaviour_on(said: Mapping[int, bytes], verdicts: tuple[Verdict, ...]) -> str | None:
    """A short text, equal for programs that said the same on every test; None when the sandbox failed.

    Args:
        said: By index of the test, a digest of the output of a run that ended well; a test without is one that the
            program failed on, however.
        verdicts: Of all tests.
    """
    if "infra_error" in verdicts:
        return None
    digest = hashlib.sha256()
    for index in range(len(verdicts)):
        output = said.get(index)
        digest.update(b"-" if output is None else b"+" + hashlib.sha256(output).digest())
    return digest.hexdigest()[:BEHAVIOUR_LENGTH]


def is_constant_on(said: Mapping[int, bytes], verdicts: tuple[Verdict, ...]) -> bool:
    """Whether a program said the same wherever it ended well, and was right on one test and wrong on another.

    Args: as for `behaviour_on`.
    """
    return len(set(said.values())) == 1 and "passed" in verdicts and "wrong_answer" in verdicts


def reward_of(judgement: Judgement, *, is_binary: bool = False, allow_constant: bool = True) -> float | None:
    """Fraction of all selected tests passed, or 1.0 only for all of them; None when the sandbox failed.

    Args:
        judgement: What came of a program.
        is_binary: Nothing for a part of the tests.
        allow_constant: Without it, a program that said the same on every test gets nothing for a part of them.

    >>> half = Judgement(verdicts=("passed", "wrong_answer"), is_constant=True)
    >>> reward_of(half), reward_of(half, is_binary=True), reward_of(half, allow_constant=False)
    (0.5, 0.0, 0.0)
    """
    verdicts = judgement.verdicts
    if "infra_error" in verdicts:
        return None
    if judgement.is_constant and not allow_constant:
        return 0.0
    fraction = verdicts.count("passed") / len(verdicts)
    return float(fraction == 1.0) if is_binary else fraction
