"""What programs look like: those that never read their arguments, and answer every call with the same.

Where a test expects one of few values, such a program passes a share of the tests, and earns a share of the reward.
"""

import ast
from collections import Counter
from collections.abc import Mapping, Sequence

from study_controls import Row
from study_results import Result, markdown_table

from maxk_lightning.evaluation.estimates import CORRECT_AT, per_problem
from maxk_lightning.evaluation.samples import Sample
from maxk_lightning.rewards.extraction import extract_code


def is_blind(code: str) -> bool:
    """Whether the last function of a program returns something, but never reads its arguments.

    >>> is_blind("def f(a, b):\\n    return True"), is_blind("def f(a):\\n    return a > 0")
    (True, False)
    """
    try:
        functions = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    if not functions:
        return False
    arguments = functions[-1].args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    names = {parameter.arg for parameter in parameters if parameter is not None}
    nodes = list(ast.walk(functions[-1]))
    returns = any(isinstance(node, ast.Return) and node.value is not None for node in nodes)
    return bool(names) and returns and not any(isinstance(node, ast.Name) and node.id in names for node in nodes)


def blind_counts(groups: Mapping[str, Sequence[Sample]]) -> dict[str, dict[str, int]]:
    """Count the rewards of samples whose program is blind, by problem."""
    blind = {}
    for problem, group in groups.items():
        codes = ((sample.reward, extract_code(sample.completion)) for sample in group)
        counts = Counter(f"{reward:.17g}" for reward, code in codes if reward is not None and code and is_blind(code))
        blind[problem] = dict(sorted(counts.items()))
    return blind


def correct_programs(groups: Mapping[str, Sequence[Sample]]) -> dict[str, list[int]]:
    """Count the fully correct samples of each program, by problem, the most frequent first."""
    counts = {}
    for problem, group in groups.items():
        correct = (sample for sample in group if sample.reward is not None and sample.reward >= CORRECT_AT)
        codes = (extract_code(sample.completion) for sample in correct)
        counts[problem] = sorted(Counter(layout_free(code) for code in codes if code).values(), reverse=True)
    return counts


def layout_free(code: str) -> str:
    """A program without its layout and comments.

    >>> layout_free("x = 1  # one\\n\\ny = (x)") == layout_free("x=1\\ny = x")
    True
    """
    try:
        return ast.unparse(ast.parse(code))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return code


def without_blind(result: Result) -> dict[str, list[float]]:
    """Rewards by problem, of blind programs 0."""
    rewards = {}
    for problem, counts in result.rewards.items():
        blind = result.blind.get(problem, {})
        kept = [float(text) for text, count in counts.items() for _ in range(count - blind.get(text, 0))]
        rewards[problem] = kept + [0.0] * sum(blind.values())
    return rewards


def blind_table(rows: Sequence[Row]) -> str:
    """Share of blind programs, the mean reward they get, and max@k where they get none."""
    ks = rows[0].results[0].ks
    lines = []
    for row in rows:
        counts: Counter[float] = Counter()
        for result in row.results:
            for blind in result.blind.values():
                counts.update({float(text): count for text, count in blind.items()})
        num_samples = sum(sum(each.values()) for result in row.results for each in result.rewards.values())
        num_blind = sum(counts.values())
        earned = sum(reward * count for reward, count in counts.items()) / num_blind if num_blind else 0.0
        values = [per_problem(without_blind(result), "max_at_k", ks).mean(0) for result in row.results]
        means = [sum(column) / len(values) for column in zip(*values, strict=True)]
        lines.append([row.name, f"{num_blind / num_samples:.1%}", f"{earned:.3f}", *(f"{mean:.3f}" for mean in means)])
    return markdown_table(["method", "blind", "their reward", *(f"max@{k}" for k in ks)], lines)
