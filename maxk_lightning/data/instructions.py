"""What is asked of the policy beside the statement: the one place for the wording of all sources.

The paper (arXiv:2510.23393) publishes neither its prompt nor its system message, so these words are ours: they ask for
one fenced Python block, which is what the reward looks for, and say how input arrives. Each source takes another
`instruction` in YAML; the system message is `data.template.system` (None: the chat template's own, which for
Qwen2.5-Coder is its identity sentence; LiveCodeBench's own runner replaces it by `LIVECODEBENCH_SYSTEM`).
"""

import re
from dataclasses import dataclass

LIVECODEBENCH_SYSTEM = "You are a helpful assistant."
"Neutral system line, in the spirit of LiveCodeBench's runner for Qwen2.5-Coder."


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """User message around a statement; `{statement}`, `{function}` and `{starter}` are filled in.

    >>> Instruction(stdin="Solve: {statement}").for_stdin("Add {x}.")
    'Solve: Add {x}.'
    """

    stdin: str = (
        "{statement}\n\n"
        "Write a Python 3 program that solves this problem. It reads from standard input and writes to standard "
        "output, nothing but what is asked for. Put the whole program into one ```python code block."
    )
    "For programs that read standard input."
    function: str = (
        "{statement}\n\n"
        "Write `{function}` in Python 3, starting from this code:\n```python\n{starter}\n```\n"
        "Put the whole code into one ```python code block. It is imported and called, so do not read input."
    )
    "For functions that are called."

    def __post_init__(self) -> None:
        for key in ("stdin", "function"):
            if "{statement}" not in getattr(self, key):
                raise ValueError(f"instruction.{key} must contain {{statement}}")

    def for_stdin(self, statement: str) -> str:
        """Prompt of a problem on standard input and output."""
        return _fill(self.stdin, {"statement": statement.strip()})

    def for_function(self, statement: str, function: str, starter: str) -> str:
        """Prompt of a problem whose function is called."""
        words = {"statement": statement.strip(), "function": function, "starter": starter.rstrip()}
        return _fill(self.function, words)


def _fill(text: str, words: dict[str, str]) -> str:
    """Replace each `{word}` once; braces inside what is filled in stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda match: words.get(match[1], match[0]), text)
