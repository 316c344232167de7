"""The imperfect programmer whose solutions the tiny policy is pre-trained on.

Mistakes are habits, not noise: whether a phrase is misread, and as what, depends on the kind of step before it, and in
a bad context the right reading keeps a small probability. So the policy knows every operation, yet its most likely
program is often wrong while the right one can be sampled. The programmer never looks at the example in the statement,
so vague phrases are read by how usual a reading is. Standard library only; pure.
"""

import random
from dataclasses import dataclass
from functools import cache

from maxk_lightning.data.pipelines import OPERATIONS, Phrase, Pipeline, Step, Variant

HABITS_SEED = "h2"
BAD_CONTEXT_SHARE = 0.25  # of (previous family, phrase) pairs
GOOD_CONTEXT_RIGHT = 0.97
FORGOTTEN_STEP_SHARE = 0.01  # of all solutions leave out one step
SWAPPED_STEPS_SHARE = 0.02  # of all solutions swap two neighbouring steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Habit:
    """How a phrase is read after a family of operations."""

    right: float
    "Probability of the right step."
    wrong_operation: str
    "What it is misread as: an operation of the same family, or the right one with the parameter off by `shift`."
    shift: int
    "Added to the parameter of the misread step; 0 where the operation has none."


@cache
def habit(previous_family: str, phrase: Phrase, variant: Variant) -> Habit:
    """The habit in one context, a pure function of the context."""
    rng = random.Random(f"{HABITS_SEED}/{previous_family}/{phrase.text}")
    operation = OPERATIONS[phrase.meaning]
    is_bad = rng.random() < BAD_CONTEXT_SHARE
    right = rng.uniform(*variant.bad_context_right) if is_bad else GOOD_CONTEXT_RIGHT
    confused = [
        other.name
        for other in OPERATIONS.values()
        if other.family == operation.family and other.name not in (phrase.meaning, phrase.rare_meaning)
    ]
    if operation.parameters and (not confused or rng.random() < 0.3):
        return Habit(right=right, wrong_operation=operation.name, shift=rng.choice((-1, 1)))
    return Habit(right=right, wrong_operation=rng.choice(confused or ["reverse"]), shift=0)


def attempt(rng: random.Random, pipeline: Pipeline, variant: Variant) -> tuple[Step, ...]:
    """Draw the steps of one imperfect solution."""
    steps = []
    previous_family = "start"
    for step, phrase in zip(pipeline.steps, pipeline.phrases, strict=True):
        context = habit(previous_family, phrase, variant)
        steps.append(_read(rng, step, phrase, context, variant.taught_rare_share))
        previous_family = OPERATIONS[phrase.meaning].family
    return _slip(rng, steps)


def _read(rng: random.Random, step: Step, phrase: Phrase, context: Habit, rare_share: float) -> Step:
    if rng.random() >= context.right:
        has_parameter = bool(OPERATIONS[context.wrong_operation].parameters)
        return Step(context.wrong_operation, (step.parameter or 0) + context.shift if has_parameter else None)
    if phrase.rare_meaning is None or rng.random() < 1.0 - rare_share:
        return Step(phrase.meaning, step.parameter)
    return Step(phrase.rare_meaning, step.parameter)


def _slip(rng: random.Random, steps: list[Step]) -> tuple[Step, ...]:
    u = rng.random()
    if len(steps) > 1 and u < FORGOTTEN_STEP_SHARE:
        del steps[rng.randrange(len(steps))]
    elif len(steps) > 1 and u < FORGOTTEN_STEP_SHARE + SWAPPED_STEPS_SHARE:
        i = rng.randrange(len(steps) - 1)
        steps[i], steps[i + 1] = steps[i + 1], steps[i]
    return tuple(steps)
