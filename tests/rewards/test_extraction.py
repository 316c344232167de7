"""Finding the program in a completion."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxk_lightning.rewards import extract_code

CASES = [
    ("```python\nA\n```", "A\n"),
    ("```py\nA\n```", "A\n"),
    ("```Python3\nA\n```", "A\n"),
    ("```\nA\n```", "A\n"),
    ("text\n```python\nA\n```\nmore\n```python\nB\n```\nend", "B\n"),
    ("```python\nA\n```\nSample output:\n```text\n3\n```", "A\n"),
    ("```cpp\nA\n```", None),
    ("```python\nA\n```\n```python\nB", "A\n"),
    ("```python\nA", None),
    ("print(1)", None),
    ("", None),
    ("```", None),
    ("``````", None),
    ("```python\n```", ""),
    ("```python A ```", None),
    ("Use `x` and ```y``` inline.", None),
    ("````python\nA\n```\nB\n````", "A\n```\nB\n"),
    ("```python\r\nA\r\n```\r\n", "A\n"),
    ("  ```python\n  A\n  ```", "A\n"),
    ("1. So:\n   ```python\n   if A:\n       B\n\n C\n   ```", "if A:\n    B\n\nC\n"),
    ("```python\nA\n```\nOutput:\n```\n3\n```", "A\n"),
    ("```\nA\n```\nor\n```\nB\n```", "B\n"),
    ("```python\nA\n```\nor\n```py\nB\n```", "B\n"),
    ("```python\nA\n``` \t\n", "A\n"),
    ('```python\nprint("```")\n```', 'print("```")\n'),
    ("```\nunfinished\n```python\nA\n```", "A\n"),
    ("```python title=x\nA\n```", "A\n"),
]


@pytest.mark.parametrize(("text", "code"), CASES)
def test_last_complete_block(text: str, code: str | None) -> None:
    assert extract_code(text) == code


UNCLOSED = [
    ("```python\nA", "A"),
    ("```python\nA\n```\n```python\nB", "B"),
    ("```python\nA\n```\nDone.\n```", "A\n"),
    ("```python\nA\n```\n```python\n", "A\n"),
    ("```\nSome prose that the end cut off", None),
    ("print(1)", None),
]


@pytest.mark.parametrize(("text", "code"), UNCLOSED)
def test_unclosed_block_is_an_option(text: str, code: str | None) -> None:
    assert extract_code(text, allow_unclosed=True) == code


@given(st.text(max_size=50), st.text("abc \n`", max_size=30), st.text(max_size=50), st.booleans())
def test_any_text_never_raises_and_code_comes_from_the_text(a: str, b: str, c: str, allow_unclosed: bool) -> None:
    text = f"{a}\n```python\n{b}\n```\n{c}"
    code = extract_code(text, allow_unclosed=allow_unclosed)
    assert code is None or code in text.replace("\r\n", "\n")
    assert extract_code(a.replace("`", "'"), allow_unclosed=allow_unclosed) is None


@given(st.text("print(1)\n x=", max_size=40))
def test_round_trip(code: str) -> None:
    assert extract_code(f"Answer:\n```python\n{code}\n```\n") == code + "\n"


@pytest.mark.parametrize(
    "unit", ["`", "```\n", "```python\n", " ", "   ```", "```a` ", "\n", "````\n```\n", "```" + "x" * 100]
)
def test_linear_time(unit: str) -> None:
    text = unit * (2_000_000 // len(unit))
    start = time.process_time()
    extract_code(text, allow_unclosed=True)
    assert time.process_time() - start < 10.0
