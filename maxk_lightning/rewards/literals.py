"""Read Python literals that untrusted programs wrote. Linear time, bounded depth, nothing is executed.

`ast.literal_eval` is no match for hostile text (its documentation warns of crashes), and knows no `inf`, no
`Counter({...})` and no `set()` of a list.
"""

import ast
import collections
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MAX_DEPTH = 100
_TOKEN = re.compile(
    r"""\s*(?:
    (?P<text>b?(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"))
    |(?P<number>0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?[jJ]?)
    |(?P<name>[A-Za-z_]\w*|<class\ '\w+'>)
    |(?P<mark>[\[\](){},:=+-])
    )""",
    re.VERBOSE | re.ASCII | re.DOTALL,
)
_CONSTANTS: Mapping[str, Any] = {"None": None, "True": True, "False": False, "inf": math.inf, "nan": math.nan}
_CALLS: Mapping[str, Callable[..., Any]] = {
    "set": set,
    "frozenset": frozenset,
    "Counter": collections.Counter,
    "OrderedDict": dict,
    "defaultdict": lambda _, items=(): dict(items),
    "deque": collections.deque,
    "range": range,
    "dict_keys": lambda items: dict.fromkeys(items).keys(),
    "iter": iter,
    "object": object,
}
"What may be called: the `repr` of containers, and what the sandbox writes for iterators and other objects."
_END = ("end", "")
Token = tuple[str, str]


def read_literal(text: str) -> Any:
    """The value of a Python literal; containers of the standard library as their `repr` shows them.

    Raises:
        ValueError: it is none, or nested too deep, or holds a number of too many digits.

    >>> read_literal("[(1, -2.5), {'a': {3}}, Counter({'b': 1}), inf, 1+2j]")
    [(1, -2.5), {'a': {3}}, Counter({'b': 1}), inf, (1+2j)]
    """
    reader = _Reader(_tokens(text))
    try:
        value = reader.value(0)
    except (TypeError, SyntaxError) as error:  # an unhashable item, a call with wrong arguments, a broken escape
        raise ValueError(str(error)) from error
    if reader.next != _END:
        raise ValueError(f"{reader.next[1]!r} after the value")
    return value


def _tokens(text: str) -> Iterator[Token]:
    text = text.strip()
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ValueError(f"not a literal at character {place}")
        place = match.end()
        yield match.lastgroup or "", match[match.lastgroup or 0]
    while True:
        yield _END


class _Reader:
    """Recursive descent, one token ahead."""

    def __init__(self, tokens: Iterator[Token]) -> None:
        self._tokens = tokens
        self.next = next(tokens)

    def value(self, depth: int) -> Any:
        """A term, or a real and an imaginary one."""
        if depth > MAX_DEPTH:
            raise ValueError("nested too deep")
        value = self._term(depth)
        if self.next in (("mark", "+"), ("mark", "-")):
            other = self._term(depth)
            if not isinstance(other, complex) or not isinstance(value, int | float):
                raise ValueError("a sum that is no complex number")
            return value + other
        return value

    def _term(self, depth: int) -> Any:
        kind, word = self._take()
        if kind == "text":
            return word[1:-1] if "\\" not in word and word[0] != "b" else ast.literal_eval(word)
        if kind == "number":
            return _number(word)
        if kind == "name":
            return self._named(word, depth)
        if word in ("-", "+"):
            number = self._term(depth + 1) if self.next[0] == "number" or self.next[1] in ("inf", "nan") else None
            if number is None:
                raise ValueError("a sign without a number")
            return -number if word == "-" else number
        if word == "[":
            return self._items("]", depth)[0]
        if word == "(":
            items, has_comma = self._items(")", depth)
            return items[0] if len(items) == 1 and not has_comma else tuple(items)
        if word == "{":
            return self._braces(depth)
        raise ValueError(f"{word!r} where a value belongs")

    def _named(self, name: str, depth: int) -> Any:
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        if name.startswith("<class"):
            return None
        if name not in _CALLS or self._take() != ("mark", "("):
            raise ValueError(f"{name!r} is no literal")
        arguments, _ = self._items(")", depth, has_keywords=True)
        if name != "range" and any(isinstance(argument, range) for argument in arguments):
            raise ValueError("a container of a range: it could have any length")
        return _CALLS[name](*arguments)

    def _items(self, end: str, depth: int, *, has_keywords: bool = False) -> tuple[list[Any], bool]:
        """Values up to a closing bracket, and whether the last one was followed by a comma."""
        items: list[Any] = []
        has_comma = True
        while self.next != ("mark", end):
            if not has_comma:
                raise ValueError("no comma between values")
            if has_keywords and self.next == ("name", "maxlen"):
                self._take()
                self._expect("=")
            items.append(self.value(depth + 1))
            has_comma = self.next == ("mark", ",")
            if has_comma:
                self._take()
        self._take()
        return items, has_comma and bool(items)

    def _braces(self, depth: int) -> Any:
        """A dict or a set."""
        if self.next == ("mark", "}"):
            self._take()
            return {}
        first = self.value(depth + 1)
        if self.next != ("mark", ":"):
            rest: list[Any] = []
            if self.next == ("mark", ","):
                self._take()
                rest, _ = self._items("}", depth)
            else:
                self._expect("}")
            return {first, *rest}
        found = {}
        key = first
        while True:
            self._expect(":")
            found[key] = self.value(depth + 1)
            if self.next == ("mark", ","):
                self._take()
            elif self.next != ("mark", "}"):
                raise ValueError("no comma between items")
            if self.next == ("mark", "}"):
                self._take()
                return found
            key = self.value(depth + 1)

    def _take(self) -> Token:
        token, self.next = self.next, next(self._tokens)
        return token

    def _expect(self, mark: str) -> None:
        if self._take() != ("mark", mark):
            raise ValueError(f"{mark!r} is missing")


def _number(word: str) -> int | float | complex:
    if word[:2] in ("0x", "0X"):
        return int(word, 16)
    if word[-1] in "jJ":
        return complex(word)
    return int(word) if word.isdigit() else float(word)
