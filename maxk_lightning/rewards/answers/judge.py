r"""Judge answers with math-verify. This file runs in the sandbox, as a program of its own; nothing here imports it.

Standard input is a JSON object. `{"golds": [...]}`: prints the places of those that cannot be read. `{"gold": ...,
"text": ..., "needs_latex": ...}`: prints a verdict; without `gold` what the text answers, as LaTeX or a number. Time,
memory and crashes are the sandbox's business: math-verify's own alarm would turn a hang into a wrong answer.
"""

import json
import logging
import re
import sys
from decimal import Decimal
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

BOXED = "\\boxed"
WARM_UP = (
    "72", "1/2", "2\\sqrt{3}", "x = 5", "x \\le 3", "\\{1, 2\\}", "[0, \\infty) \\cup (1, 2)", "(3, 4, 5)", "3 - 4i",
    "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\text{no}", "50\\%", "\\sin 2x", "\\log_2 8", "5!",
)  # fmt: skip
"One formula of each kind: sympy imports much of itself only when it meets the first."
SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d+)?[eE][-+]?\d{1,3}")
"math-verify would read the e of `1e-05` as Euler's number."
EMPHASIS = re.compile(r"(?<![^\s(\[:=|\"'])(\*{1,3}|_{2,3}|`)(?=\S)(.{1,200}?)(?<=\S)\1(?![\w*(\[])")
"Markdown's marks around a part of a line: math-verify would read `**18**` as the formula `18**`."


def gold_of(text: str) -> list[Any]:
    """The parsed right answer: expressions, then the text that was read; without an expression it is unreadable."""
    if SCIENTIFIC.fullmatch(text.strip()):
        text = format(Decimal(text.strip()), "f")
    latex = LatexExtractionConfig(boxed_match_priority=0)
    boxed = text if BOXED in text else f"{BOXED}{{{text}}}"
    return parse(boxed, extraction_config=[latex], extraction_mode="first_match", parsing_timeout=None)  # type: ignore[no-any-return]


def is_readable(text: str) -> bool:
    """Whether a right answer can be compared with."""
    return any(not isinstance(part, str) for part in gold_of(text))


def answer_in(text: str, needs_latex: bool) -> list[Any]:
    r"""What a completion answers: its last `\boxed{}`, else what it announces, else its last formula or number.

    With `needs_latex` it must be LaTeX, well written, in a box or announced: the rule of TRL's `accuracy_reward` (trl
    1.16). Else slips such as `\\frac12` are mended, as in right answers, and Markdown's emphasis is taken off.
    """
    if needs_latex:
        strict = NormalizationConfig(units=True)
        kinds: list[Any] = [
            LatexExtractionConfig(normalization_config=strict, boxed_match_priority=0, try_extract_without_anchor=False)
        ]
    else:
        kinds = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
        text = EMPHASIS.sub(r"\2", text)
    return parse(text, extraction_config=kinds, extraction_mode="first_match", parsing_timeout=None)  # type: ignore[no-any-return]


def verdict_on(gold: str, text: str, needs_latex: bool) -> str:
    """`passed`, `wrong_answer`, `no_answer`, or `infra_error` where comparing ended in an error."""
    right, answers = gold_of(gold), answer_in(text, needs_latex)
    if not answers:
        return "no_answer"
    has_failed = False
    for answer in answers:
        try:
            if verify(right, [answer], timeout_seconds=None, raise_on_error=True):
                return "passed"
        except Exception:  # noqa: BLE001 - sympy raises anything; whoever asked counts it
            has_failed = True
    return "infra_error" if has_failed else "wrong_answer"


def main() -> None:
    """Answer one request."""
    logging.disable()
    request = json.load(sys.stdin)
    if "golds" in request:
        result: Any = [place for place, gold in enumerate(request["golds"]) if not is_readable(gold)]
    elif "gold" not in request:
        result = next(
            (part for part in answer_in(request["text"], request["needs_latex"]) if isinstance(part, str)), None
        )
    else:
        result = verdict_on(request["gold"], request["text"], request["needs_latex"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
elif __name__ == "warm_up":  # the worker: whatever is imported late is in memory from here on
    logging.disable()
    for formula in WARM_UP:
        verdict_on(formula, f"It is $${formula}$$.", False)
    verdict_on("(x + \\frac{1}{2})^2", "It is 3 or \\boxed{x^2 + x + 0.25}.", False)
