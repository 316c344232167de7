"""Types of the columns of a csv file. Its cells are texts; a type is given only where it loses nothing of them."""

import re
from collections.abc import Callable, Sequence
from typing import Any

INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
"Integers that are written as Python writes them, and fit into 64 bits; `007` is a text."
NUMBER = re.compile(r"-?(0|[1-9]\d{0,14})?(\.\d*)?([eE][-+]?\d{1,2})?")
TRUTH = {"True": True, "False": False, "true": True, "false": False, "TRUE": True, "FALSE": False}


def typed(cells: Sequence[str]) -> list[Any]:
    """Give a column a type; an empty cell is None, and changes nothing about the others.

    >>> typed(["5", "6", ""]), typed(["5", "6.5"]), typed(["007", "8"]), typed(["True", "", "False"])
    ([5, 6, None], [5.0, 6.5], ['007', '8'], [True, None, False])
    >>> typed(["12345678901234567890123", "1"]), typed(["None", "NA"]), typed(["", ""])
    (['12345678901234567890123', '1'], ['None', 'NA'], [None, None])
    """
    present = [cell for cell in cells if cell]
    convert: Callable[[str], Any] = str
    if present and all(cell in TRUTH for cell in present):
        convert = TRUTH.__getitem__
    elif present and all(INTEGER.fullmatch(cell) for cell in present):
        convert = int
    elif present and all(NUMBER.fullmatch(cell) and any(map(str.isdigit, cell)) for cell in present):
        convert = float
    return [convert(cell) if cell else None for cell in cells]
