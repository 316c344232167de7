"""Find the program in a completion."""

import re

LABELS = ("python", "py", "python3")
"Info strings of a fence that holds Python; compared in lower case."
_FENCE = re.compile(r"^( {0,3})(`{3,})([^`\n]*)$", re.MULTILINE)


def extract_code(text: str, *, allow_unclosed: bool = False) -> str | None:
    r"""The last complete fenced block labelled as Python; without one the last bare block; or None.

    A bare block after a labelled one is what models show as output. A fence closes with at least as many backticks and
    nothing after; a labelled fence inside an open block starts a new block. Lines lose the indentation of their fence,
    as in CommonMark. Prose is never taken for a program: without a fence there is none. With `allow_unclosed`, a last
    block labelled as Python that the end of the completion cut off counts as complete.

    >>> extract_code("Try this:\n```python\nprint(1)\n```\nDone.")
    'print(1)\n'
    >>> extract_code("print(1)") is None
    True
    """
    text = _normal(text)
    labelled: str | None = None
    bare: str | None = None
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opening is None or fence[3].strip():
            opening = fence
        elif len(fence[2]) >= len(opening[2]):
            if _language(opening) in LABELS:
                labelled = _content(text, opening, fence.start())
            elif not _language(opening):
                bare = _content(text, opening, fence.start())
            opening = None
    if allow_unclosed and opening is not None and _language(opening) in LABELS:
        rest = _content(text, opening, len(text))
        labelled = rest if rest.strip() else labelled
    return bare if labelled is None else labelled


def _content(text: str, opening: re.Match[str], end: int) -> str:
    """The lines of a block, without the indentation of its fence."""
    content = text[opening.end() + 1 : end]
    return re.sub(f"^ {{1,{len(opening[1])}}}", "", content, flags=re.MULTILINE) if opening[1] else content


def with_prefix(code: str, prefix: str | None) -> str:
    r"""The program of a completion that continues code of the prompt, or repeats it (LiveBench's rule).

    >>> with_prefix("print(x)", "x = 1")
    'x = 1\nprint(x)'
    >>> with_prefix("x = 1\nprint(x)", "x = 1")
    'x = 1\nprint(x)'
    """
    if prefix is None:
        return code
    prefix = _normal(prefix)  # as the completion's line ends were
    return code if code.startswith(prefix) else f"{prefix}\n{code}"


def _normal(text: str) -> str:
    return text.replace("\r\n", "\n")


def _language(opening: re.Match[str]) -> str:
    words = opening[3].split()
    return words[0].lower() if words else ""
