"""Inputs that candidates propose: calls of the function with literal arguments, anywhere in what they wrote.

Asserts, examples in comments and docstrings, a `__main__` block, prose: all are found the same way.
Texts are hostile: nothing is executed, and what is read of each is bounded. Programs on standard input propose nothing,
for no rule separates an input from other text.
"""

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from maxk_lightning.rewards.literals import read_literal
from maxk_lightning.seeds import derive_seed
from maxk_lightning.types import Problem

PER_CANDIDATE = 2
"Inputs of one text, so that no candidate gains by proposing many."
MAX_TEXT_CHARACTERS = 1 << 16
"Of a longer text only the end is read, where the program is."
MAX_CALL_CHARACTERS = 1000
"A longer call proposes nothing."
MAX_CALLS = 64
"Calls of a text that are looked at."
_PIECE = re.compile(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|[\[({]|[\])}]|[^'"\[\](){}]+|.""", re.DOTALL)
Form = tuple[str, tuple[str, ...]]
"An input's values as one text, and the type of each; all numbers but booleans are of one."


def proposed_inputs(
    problem: Problem, texts: Sequence[str], known: Sequence[str], count: int, seed: int = 0
) -> list[str]:
    """List at most `count` different new inputs, at most `PER_CANDIDATE` of a text; none without a function.

    First one of each text, in a seeded order, then the second of each. The order of the texts and copies do not matter.

    Args:
        problem: Where it has public tests, a proposal must have as many arguments as one of them, of the same types.
        texts: What the candidates wrote.
        known: Inputs that are left out; spaces between values do not matter.
        count: Largest number of inputs.
        seed: Seed of the order.
    """
    if problem.function is None or count < 1:
        return []
    taken = {form[0] for text in known if (form := _form(problem, text))}
    shapes = {form[1] for test in problem.tests if test.is_public and (form := _form(problem, test.input))}
    different = sorted(set(texts))
    random.Random(derive_seed(seed, "proposed", problem.id)).shuffle(different)
    of_text = [_proposals(problem, text, taken, shapes) for text in different]
    in_turn = (proposals[place] for place in range(PER_CANDIDATE) for proposals in of_text if place < len(proposals))
    return list(islice(dict.fromkeys(in_turn), count))


def _proposals(problem: Problem, text: str, taken: set[str], shapes: set[tuple[str, ...]]) -> list[str]:
    """The first calls of a text that can be inputs."""
    found: dict[str, None] = {}
    for arguments in _calls(problem.function or "", text[-MAX_TEXT_CHARACTERS:]):
        written = _written(problem, arguments)
        form = _form(problem, written or "")
        if not written or form is None or form[0] in taken or (shapes and form[1] not in shapes):
            continue
        found[written] = None
        if len(found) == PER_CANDIDATE:
            break
    return list(found)


def _calls(function: str, text: str) -> Iterator[str]:
    """The text between the brackets of each call."""
    opened = re.finditer(rf"(?<!\w)(?<!def ){re.escape(function)}\(", text)
    for match in islice(opened, MAX_CALLS):
        depth, place = 1, match.end()
        for piece in _PIECE.finditer(text, place, place + MAX_CALL_CHARACTERS):
            depth += (piece[0] in "[({") - (piece[0] in "])}")
            if depth == 0:
                yield text[place : piece.start()]
            if depth == 0 or piece[0] in "'\"":  # a quote without an end is in no literal
                break


def _written(problem: Problem, arguments: str) -> str | None:
    """The arguments of a call as tests write them, one per line; None: they are no literals, or cannot be written."""
    try:
        values = read_literal(f"[{arguments}]")
        lines = [repr(value) if problem.values == "python" else json.dumps(value, allow_nan=False) for value in values]
    except (ValueError, TypeError, RecursionError):
        return None
    return "".join(f"{line}\n" for line in lines)


def _form(problem: Problem, text: str) -> Form | None:
    """The form of an input; None: it cannot be read."""
    read: Callable[[str], Any] = read_literal if problem.values == "python" else json.loads
    try:
        values = [read(line) for line in text.split("\n") if line.strip()]
        return repr(values), tuple("number" if type(v) in (int, float) else type(v).__name__ for v in values)
    except (ValueError, RecursionError):  # an integer of thousands of digits, too
        return None
