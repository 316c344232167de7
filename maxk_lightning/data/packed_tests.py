"""Tests as LiveCodeBench and LiveBench store them: JSON, or JSON in a pickle in zlib in base64."""

import base64
import io
import json
import pickle
import zlib
from typing import Any

from maxk_lightning.records import take
from maxk_lightning.types import Compare, TestCase

MAX_BYTES = 1 << 30
"Unpacked size at which decoding stops; the largest problems hold some hundred MB."
COMPARE: Compare = "lines_decimal"
"LiveCodeBench's rule for standard output."
PUBLIC = "public_test_cases"


class _StringUnpickler(pickle.Unpickler):
    """Loads what needs no import: the published pickles hold one string. Anything that names code is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"names {module}.{name}; a pickle of tests holds one string and nothing else")


def unpack_tests(text: str, field: str) -> list[dict[str, Any]]:
    """The list of test objects of a column, in either encoding.

    Raises:
        ValueError: naming the field: no such encoding, a pickle of anything but a string, not a list of tests.
    """
    try:
        items = json.loads(text)
    except json.JSONDecodeError:
        items = _from_pickle(text, field)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"`{field}` must hold a JSON list of objects")
    return items


def _from_pickle(text: str, field: str) -> Any:
    try:
        packed = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"`{field}` is neither JSON nor base64 of zlib ({error})") from error
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(packed, MAX_BYTES)
        if unpacker.unconsumed_tail:
            raise ValueError(f"`{field}` unpacks to more than {MAX_BYTES} bytes")
        content = _StringUnpickler(io.BytesIO(data)).load()
    except zlib.error as error:
        raise ValueError(f"`{field}` is neither JSON nor base64 of zlib ({error})") from error
    except (pickle.UnpicklingError, EOFError, IndexError, KeyError, AttributeError) as error:
        raise ValueError(f"`{field}` holds a pickle that was refused: {error}") from error
    if not isinstance(content, str):
        raise ValueError(f"`{field}` holds a pickle of {type(content).__name__}, must be of a string")
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"`{field}` unpacks to text that is not JSON ({error.msg})") from error


def read_tests(record: dict[str, Any], function: str | None) -> list[TestCase]:
    """The tests of a row, public ones first."""
    return [
        test
        for field in (PUBLIC, "private_test_cases")
        for test in to_tests(unpack_tests(take(record, field, str), field), function, field)
    ]


def to_tests(items: list[dict[str, Any]], function: str | None, field: str) -> list[TestCase]:
    """Test objects as our tests; those of the public column are public.

    Raises:
        ValueError: a missing text, or a kind of test that does not fit: call tests need `func_name` in the metadata.
    """
    wanted = "stdin" if function is None else "functional"
    tests = []
    for index, item in enumerate(items):
        given, expected, kind = (item.get(key) for key in ("input", "output", "testtype"))
        if not isinstance(given, str) or not isinstance(expected, str):
            raise ValueError(f"`{field}[{index}]` must have texts `input` and `output`")
        if kind != wanted:
            problem = "has no `func_name`" if function is None else f"names the function {function}"
            raise ValueError(f"`{field}[{index}]` has testtype {kind!r}, but the metadata {problem}")
        tests.append(TestCase(input=given, output=expected, is_public=field == PUBLIC))
    return tests


def function_name(metadata: Any, field: str) -> str | None:
    """`func_name` of a metadata column, which holds JSON or nothing."""
    if not metadata:
        return None
    try:
        facts = json.loads(metadata)
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"`{field}` is not JSON ({error})") from error
    name = facts.get("func_name") if isinstance(facts, dict) else None
    if name is not None and not isinstance(name, str):
        raise ValueError(f"`{field}`: func_name is {name!r}")
    return name
