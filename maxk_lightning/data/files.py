"""Rows of one published file as it lies on disk (JSON lines, a JSON array, both also compressed), read one at a time.

The `datasets` library guesses column types and names neither file nor row of what it cannot read; these rows are what
the file says. Only their places are kept, so that a file of gigabytes takes no memory.
"""

import gzip
import hashlib
import json
import re
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet", *SEPARATORS)
"Files that `path` may name."
NUM_REMEMBERED = 4
_GAP = re.compile(r"[\s,\ufeff]*")


class FileRows:
    """Rows of a JSON lines file or of a JSON array; the part of `datasets.Dataset` that loading needs."""

    def __init__(self, path: str) -> None:
        """Find the rows.

        Raises:
            ValueError: no such file, it is cut short, not UTF-8, or no JSON array.
        """
        self.path = path
        file = Path(path).expanduser()
        is_array = ".json" in file.suffixes
        try:
            content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else None
            if is_array:
                text = (content if content is not None else file.read_bytes()).decode()
                self._spans = list(_array_spans(text, path))
            else:
                self._spans = list(_line_spans(content, file))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
        if not self._spans:
            raise ValueError(f"{path}: no row in this file")
        self._content = content

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One row; ValueError when it is not a JSON object."""
        start, end = self._spans[index]
        if self._content is not None:
            line = self._content[start:end]
        else:
            with Path(self.path).expanduser().open("rb") as file:
                file.seek(start)
                line = file.read(end - start)
        try:
            row = json.loads(line)
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start} of the row)") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"a row must be a JSON object, not {type(row).__name__}")
        return row


def _line_spans(content: bytes | None, file: Path) -> Iterator[tuple[int, int]]:
    start = 0
    with file.open("rb") as opened:
        for line in opened if content is None else content.splitlines(keepends=True):
            if line.strip():
                yield start, start + len(line)
            start += len(line)


def _array_spans(text: str, path: str) -> Iterator[tuple[int, int]]:
    """Byte ranges of the items of a JSON array, or of objects one after the other."""
    decoder = json.JSONDecoder()
    done, num_bytes, num_rows = 0, 0, 0
    place = _GAP.match(text).end()  # type: ignore[union-attr]
    is_array = text.startswith("[", place)
    place += is_array
    while True:
        place = _GAP.match(text, place).end()  # type: ignore[union-attr]
        if text[place : place + 1] in ("", "]"):
            break
        try:
            _, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: row {num_rows}: not JSON ({error})") from error
        start = num_bytes + len(text[done:place].encode())
        num_bytes = start + len(text[place:end].encode())
        yield start, num_bytes
        done = place = end
        num_rows += 1
    if is_array and place == len(text):
        raise ValueError(f"{path}: not JSON (the array does not end)")


def is_data_file(path: str) -> bool:
    """Whether a path names a published file instead of a hub repository or its local copy."""
    return path.endswith(SUFFIXES) and not Path(path).expanduser().is_dir()


def state_of(path: str) -> str:
    """Identifies a local file or directory and what is in it; a hub name is itself."""
    root = Path(path).expanduser()
    if not root.exists():
        return path
    files = [root] if root.is_file() else sorted(root.rglob("*"))
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.blake2b(repr((str(root.resolve()), facts)).encode(), digest_size=8).hexdigest()


_remembered: OrderedDict[Hashable, Any] = OrderedDict()


def read_once(key: Hashable, read: Callable[[], T]) -> T:
    """What `read` gives, from memory where the key is known: a config names a source up to three times."""
    if key not in _remembered:
        _remembered[key] = read()
        while len(_remembered) > NUM_REMEMBERED:
            _remembered.popitem(last=False)
    _remembered.move_to_end(key)
    found: T = _remembered[key]
    return found
