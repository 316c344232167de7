"""Find the program in a completion."""

import re

LANGUAGES = ("", "python", "py", "python3")
"Info strings of a fence that holds Python; compared in lower case."
_FENCE = re.compile(r"^ {0,3}(`{3,})([^`\n]*)$", re.MULTILINE)


def extract_code(text: str, *, allow_unclosed: bool = False) -> str | None:
    r"""The last complete fenced Python block (```python, ```py or bare), or None.

    A fence closes with at least as many backticks and nothing after them. Prose is never taken for a program: without a
    fence there is none. With `allow_unclosed`, a last fence that the end of the completion cut off counts as complete.

    >>> extract_code("Try this:\n```python\nprint(1)\n```\nDone.")
    'print(1)\n'
    >>> extract_code("print(1)") is None
    True
    """
    text = text.replace("\r\n", "\n")
    code: str | None = None
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        label = fence[2].strip()
        if opening is None:
            opening = fence
        elif not label and len(fence[1]) >= len(opening[1]):
            code = _body(text, opening, fence.start(), code)
            opening = None
    if allow_unclosed and opening is not None:
        code = _body(text, opening, len(text), code)
    return code


def _body(text: str, opening: re.Match[str], end: int, otherwise: str | None) -> str | None:
    language = opening[2].split()[0].lower() if opening[2].split() else ""
    return text[opening.end() + 1 : end] if language in LANGUAGES else otherwise
