"""Inputs whose outputs nobody knows: the public ones, changed a little.

Mutations keep what an input looks like (as many lines, numbers where numbers were), so that a program cannot
distinguish them from hidden tests. Some break rules of the statement all the same; programs then fail or disagree,
which costs nothing but an input.
"""

import ast
import json
import random
import re
from collections.abc import Callable
from typing import Any

from maxk_lightning.seeds import derive_seed
from maxk_lightning.types import Problem

NUMBER = re.compile(r"-?\d+")
MAX_DIGITS = 18
"Longer numbers are left as they are."
TRIES_PER_INPUT = 8
MAX_INPUT_CHARACTERS = 1 << 16
"Longer public inputs are run, and not mutated."


def more_inputs(problem: Problem, count: int, seed: int = 0) -> list[str]:
    """Make at most `count` different inputs: the public ones, then mutations of them; none where none is public.

    They depend on the problem and the seed only.
    """
    public = list(dict.fromkeys(test.input for test in problem.tests if test.is_public))[:count]
    seeds = [text for text in public if len(text) <= MAX_INPUT_CHARACTERS]
    if not seeds:
        return public
    generator = random.Random(derive_seed(seed, "inputs", problem.id))
    mutate = _mutate_arguments(problem) if problem.function is not None else _mutate_text
    found = dict.fromkeys(public)
    for _ in range(TRIES_PER_INPUT * count):
        if len(found) >= count:
            break
        mutated = mutate(generator.choice(seeds), generator)
        if mutated not in found:
            found[mutated] = None
            seeds.append(mutated)  # to be changed once more
    return list(found)


def _mutate_text(text: str, generator: random.Random) -> str:
    """Change some numbers of a standard input; where it has none, some letters of a word."""
    places = [match for match in NUMBER.finditer(text) if len(match[0]) <= MAX_DIGITS]
    if not places:
        return _mutate_words(text, generator)
    has_negative = any(match[0].startswith("-") for match in places)
    chosen = generator.sample(places, min(len(places), generator.choice((1, 1, 2, 3))))
    for match in sorted(chosen, key=lambda match: match.start(), reverse=True):
        number = _another_number(int(match[0]), generator, has_negative=has_negative)
        text = text[: match.start()] + str(number) + text[match.end() :]
    return text


def _mutate_words(text: str, generator: random.Random) -> str:
    words = list(re.finditer(r"\S+", text))
    if not words:
        return text
    match = generator.choice(words)
    return text[: match.start()] + _another_text(match[0], generator) + text[match.end() :]


def _mutate_arguments(problem: Problem) -> Callable[[str, random.Random], str]:
    """Change one argument of a call: JSON or Python literals, one per line."""
    read: Callable[[str], Any] = ast.literal_eval if problem.values == "python" else json.loads
    write: Callable[[Any], str] = repr if problem.values == "python" else json.dumps

    def mutate(text: str, generator: random.Random) -> str:
        lines = text.split("\n")
        filled = [place for place, line in enumerate(lines) if line.strip()]
        if not filled:
            return text
        place = generator.choice(filled)
        try:
            lines[place] = write(_another(read(lines[place]), generator))
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):  # Counter({...}), sets of lists
            return text
        return "\n".join(lines)

    return mutate


def _another(value: Any, generator: random.Random) -> Any:
    """A value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return _another_number(value, generator, has_negative=value < 0)
    if isinstance(value, float):
        return round(value + generator.choice((-1.5, -0.5, 0.5, 1.0, value)), 6)
    if isinstance(value, str):
        return _another_text(value, generator)
    if isinstance(value, list | tuple):
        return type(value)(_another_sequence(list(value), generator))
    if isinstance(value, set | frozenset):
        return type(value)(_another_sequence(sorted(value, key=repr), generator))
    if isinstance(value, dict) and value:
        key = generator.choice(list(value))
        return {**value, key: _another(value[key], generator)}
    return value


def _another_number(number: int, generator: random.Random, *, has_negative: bool) -> int:
    size = abs(number)
    other = generator.choice((number + 1, number - 1, generator.randint(0, 2 * size + 3), size // 2, 0, 1))
    return other if has_negative or other >= 0 else -other


def _another_sequence(items: list[Any], generator: random.Random) -> list[Any]:
    how = generator.choice(("change", "change", "drop", "double", "swap", "shuffle"))
    if not items:
        return items
    place = generator.randrange(len(items))
    if how == "change":
        return [*items[:place], _another(items[place], generator), *items[place + 1 :]]
    if how == "drop" and len(items) > 1:
        return items[:place] + items[place + 1 :]
    if how == "double":
        return [*items[:place], items[place], *items[place:]]
    if how == "swap":
        other = generator.randrange(len(items))
        items[place], items[other] = items[other], items[place]
        return items
    return generator.sample(items, len(items))


def _another_text(text: str, generator: random.Random) -> str:
    return "".join(_another_sequence(list(text), generator)) if len(text) > 1 else text + generator.choice("ab01")
