"""Decide whether a program's output equals the expected one. Linear time; any bytes allowed; never raises.

The rules are those of published graders, so that numbers can be matched (design: one rule per comparison, logged):
`tokens` CURE, `tokens_float` DeepMind's CodeContests, `lines_decimal` LiveCodeBench, `exact` none.
"""

import json
import math
import re
from decimal import Decimal

from maxk_lightning.types import Compare

FLOAT_TOLERANCE = 1e-5
"CodeContests' absolute tolerance."
_MAX_NUMBER_LENGTH = 400
"Longer tokens are text: a double needs at most 309 digits, and conversion of more is no longer linear."
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

    What is no JSON, or nested too deep for a parser, is compared as `tokens`.
    """
    if output.split() == expected.split():
        return True
    try:
        return bool(json.loads(output) == json.loads(expected))
    except (ValueError, RecursionError):  # also bytes that are no text, and integers of thousands of digits
        return False


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
