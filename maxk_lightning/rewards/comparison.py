"""Decide whether a program's output equals the expected one. Linear time; any bytes allowed; never raises.

The rules are those of published graders, so that numbers can be matched (design: one rule per comparison, logged):
`tokens` CURE, `tokens_float` DeepMind's CodeContests, `lines_decimal` LiveCodeBench, `exact` none. Returned values are
compared as Python compares them, or as EvalPlus does.
"""

import json
import math
import re
from decimal import Decimal
from typing import Any

from maxk_lightning.rewards.literals import read_literal
from maxk_lightning.types import Compare

FLOAT_TOLERANCE = 1e-5
"CodeContests' absolute tolerance."
EVALPLUS_RTOL, EVALPLUS_ATOL = 1e-7, 1e-6
"EvalPlus' relative tolerance, and its absolute one where a problem names none and expects floats."
MAX_EXTRA_BYTES, MAX_GROWTH = 1 << 16, 16
"A value longer than this many times the expected one, and so many bytes, is wrong without being read."
_MAX_NUMBER_LENGTH = 400
"Longer tokens are text: a double needs at most 309 digits, and conversion of more is no longer linear."
_MAX_ZEROS = 30
"Numbers that more zeros belong to are written with an exponent."
_FLOAT = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,5})?")
_DECIMAL = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?")


def same_output(output: bytes, expected: bytes, compare: Compare) -> bool:
    """Compare by one rule.

    - `tokens`: the same tokens between ASCII whitespace, as bytes;
    - `tokens_float`: as many tokens, each equal without regard to ASCII case or, where both are numbers, within 1e-5;
    - `lines_decimal`: the same lines without surrounding whitespace; a line that differs may still hold equal decimals;
    - `exact`: the same bytes.
    """
    if output == expected:
        return True
    if compare == "exact":
        return False
    if compare == "lines_decimal":
        return _same_lines(output, expected)
    ours, theirs = output.split(), expected.split()
    if compare == "tokens":
        return ours == theirs
    return len(ours) == len(theirs) and all(map(_same_float_token, ours, theirs))


def same_value(output: bytes, expected: bytes) -> bool:
    """Whether a call's JSON result equals the expected one, as Python compares (True == 1, 1.0 == 1; lists for tuples).

    Where the expected one is no JSON, or nested too deep for a parser, both are compared as `tokens`.
    """
    if output == expected:
        return True
    if _is_too_long(output, expected):
        return False
    try:
        wanted = json.loads(expected)
    except (ValueError, RecursionError):  # also bytes that are no text, and integers of thousands of digits
        return output.split() == expected.split()
    try:
        return bool(json.loads(output) == wanted)
    except (ValueError, RecursionError):
        return False


def same_literal(output: bytes, expected: bytes, atol: float | None = None) -> bool:
    """Whether a Python literal equals the expected one.

    Args:
        output: What a program printed or returned.
        expected: Where it is no literal, both are compared as `tokens`.
        atol: EvalPlus' rule (evalplus/eval/__init__.py, commit 26d6d00): equal, or floats of the same shape within this
            absolute tolerance; 0 means 1e-6 where floats are expected. None: equal as Python compares.
    """
    if output == expected and b"nan" not in output:
        return True
    if _is_too_long(output, expected):
        return False
    try:
        wanted = read_literal(expected.decode())
    except ValueError:
        return output.split() == expected.split()
    try:
        value = read_literal(output.decode())
    except ValueError:
        return False
    return bool(value == wanted) or (atol is not None and _within_tolerance(value, wanted, atol))


def behaviour_of(output: bytes, *, is_value: bool, is_literal: bool, is_numeric: bool = False) -> bytes:
    """What an output says, in a form that is equal for outputs that say the same: tokens, or a value's canonical text.

    Args:
        output: What a program printed or returned.
        is_value: It is one value: JSON, or a Python literal.
        is_literal: Of a value: it is a Python literal.
        is_numeric: Of tokens: 1.50 and 1.5 say the same, see `_plain_number`. Not of outputs above `MAX_EXTRA_BYTES`,
            where that would take too long.
    """
    if is_value:
        try:
            value = read_literal(output.decode()) if is_literal else json.loads(output)
            return _canonical(value).encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError):
            pass  # a value that cannot be read is compared as text
    tokens = output.split()
    return b" ".join(map(_plain_number, tokens) if is_numeric and len(output) <= MAX_EXTRA_BYTES else tokens)


def _plain_number(token: bytes) -> bytes:
    """A number with a point or an exponent, in one form for equal ones; another token as it is.

    Numbers without either stay as they are: 010 may be a word of digits. So do those that differ by rounding alone:
    there is no telling how near a checker wants them.

    >>> [_plain_number(token) for token in (b"1.50", b"+15e-1", b"2.0", b"-0.0", b"010", b"1.5.0", b"1e99")]
    [b'1.5', b'1.5', b'2', b'0', b'010', b'1.5.0', b'1e99']
    """
    if not (b"." in token or b"e" in token or b"E" in token) or not _is_number(_DECIMAL, token):
        return token
    sign, digits, exponent = Decimal(token.decode()).as_tuple()
    assert isinstance(exponent, int)  # the pattern has neither infinities nor NaN
    text = "".join(map(str, digits)).lstrip("0")
    plain = text.rstrip("0")
    exponent += len(text) - len(plain)
    if not plain:
        return b"0"
    if 0 <= exponent <= _MAX_ZEROS:
        plain += "0" * exponent
    elif -_MAX_ZEROS <= exponent < 0:
        plain = plain.zfill(1 - exponent)
        plain = f"{plain[:exponent]}.{plain[exponent:]}"
    else:
        plain += f"e{exponent}"
    return f"{'-' * sign}{plain}".encode()


def _canonical(value: Any) -> str:
    """A text that is the same for values that Python holds equal: 1, 1.0 and True; sets and dicts in any order."""
    if isinstance(value, bool | int | float) and value == value and abs(value) < math.inf and value == int(value):
        return hex(int(value))  # no limit of digits
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}[{','.join(map(_canonical, value))}]"
    if isinstance(value, set | frozenset):
        return f"set[{','.join(sorted(map(_canonical, value)))}]"
    if isinstance(value, dict):
        return f"dict[{','.join(sorted(f'{_canonical(key)}:{_canonical(item)}' for key, item in value.items()))}]"
    return repr(value)


def is_literal(output: bytes) -> bool:
    """Whether an output is a Python literal, which is safe to evaluate."""
    try:
        read_literal(output.decode())
    except ValueError:
        return False
    return True


def _within_tolerance(value: Any, wanted: Any, atol: float) -> bool:
    if atol == 0 and _is_floats(wanted):
        atol = EVALPLUS_ATOL
    return atol > 0 and type(value) is type(wanted) and _is_close(value, wanted, atol)


def _is_floats(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _is_close(value: Any, wanted: Any, atol: float) -> bool:
    """`numpy.allclose` on numbers and nested sequences of one shape."""
    if isinstance(wanted, list | tuple):
        has_shape = isinstance(value, list | tuple) and len(value) == len(wanted)
        return has_shape and all(_is_close(ours, theirs, atol) for ours, theirs in zip(value, wanted, strict=True))
    if not isinstance(value, int | float | complex) or not isinstance(wanted, int | float | complex):
        return False
    try:
        return value == wanted or math.inf > abs(value - wanted) <= atol + EVALPLUS_RTOL * abs(wanted) < math.inf
    except OverflowError:  # an integer beyond the floats
        return False


def _is_too_long(output: bytes, expected: bytes) -> bool:
    return len(output) > MAX_EXTRA_BYTES + MAX_GROWTH * len(expected)


def _same_float_token(ours: bytes, theirs: bytes) -> bool:
    if ours == theirs or ours.lower() == theirs.lower():
        return True
    if not (_is_number(_FLOAT, ours) and _is_number(_FLOAT, theirs)):
        return False
    x, y = float(ours), float(theirs)
    return math.isfinite(x) and math.isfinite(y) and abs(x - y) < FLOAT_TOLERANCE


def _same_lines(output: bytes, expected: bytes) -> bool:
    ours, theirs = output.strip().split(b"\n"), expected.strip().split(b"\n")
    return len(ours) == len(theirs) and all(map(_same_decimal_line, ours, theirs))


def _same_decimal_line(ours: bytes, theirs: bytes) -> bool:
    if ours.strip() == theirs.strip():
        return True
    our_tokens, their_tokens = ours.split(), theirs.split()
    return len(our_tokens) == len(their_tokens) and all(map(_same_decimal, our_tokens, their_tokens))


def _same_decimal(ours: bytes, theirs: bytes) -> bool:
    if not (_is_number(_DECIMAL, ours) and _is_number(_DECIMAL, theirs)):
        return False
    return ours == theirs or Decimal(ours.decode()) == Decimal(theirs.decode())


def _is_number(pattern: re.Pattern[bytes], token: bytes) -> bool:
    return len(token) <= _MAX_NUMBER_LENGTH and pattern.fullmatch(token) is not None
