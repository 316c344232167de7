"""Small made-up data sets, written as the hub lays out the real ones: same files, same schema, same encodings.

`write_*(directory, rows)` writes rows; the `*_row` functions give a sound row that a test changes where it wants a
defect. `SOLUTIONS` holds a right and a wrong program for every problem that the default rows make.
"""

import base64
import json
import pickle
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Value
from datasets import List as ListOf

from maxk_lightning.data.code_contests import DIFFICULTIES, SOURCES

Row = dict[str, Any]
DOUBLE = ("print(2*int(input()))", "print(6)")
TEXTS = {"input": ListOf(Value("string")), "output": ListOf(Value("string"))}
LANGUAGES = ClassLabel(names=["UNKNOWN_LANGUAGE", "PYTHON", "CPP", "PYTHON3", "JAVA"])
CODE_CONTESTS_FEATURES = Features(
    {
        "name": Value("string"),
        "description": Value("string"),
        "public_tests": TEXTS,
        "private_tests": TEXTS,
        "generated_tests": TEXTS,
        "source": ClassLabel(names=list(SOURCES)),
        "difficulty": ClassLabel(names=list(DIFFICULTIES)),
        "solutions": {"language": ListOf(LANGUAGES), "solution": ListOf(Value("string"))},
        "incorrect_solutions": {"language": ListOf(LANGUAGES), "solution": ListOf(Value("string"))},
        "cf_contest_id": Value("int64"),
        "cf_index": Value("string"),
        "cf_points": Value("float32"),
        "cf_rating": Value("int32"),
        "cf_tags": ListOf(Value("string")),
        "is_description_translated": Value("bool"),
        "untranslated_description": Value("string"),
        "time_limit": {"seconds": Value("int64"), "nanos": Value("int64")},
        "memory_limit_bytes": Value("int64"),
        "input_file": Value("string"),
        "output_file": Value("string"),
    }
)


def code_contests_row(**changes: Any) -> Row:
    return {
        "name": "prob77. Double It",
        "description": "Read an integer n and print 2n.",
        "public_tests": {"input": ["3\n"], "output": ["6\n"]},
        "private_tests": {"input": ["0\n"], "output": ["0\n"]},
        "generated_tests": {"input": ["4\n", "5\n"], "output": ["8\n", "10\n"]},
        "source": 1,
        "difficulty": 2,
        "solutions": {"language": [3], "solution": ["print(2*int(input()))"]},
        "incorrect_solutions": {"language": [], "solution": []},
        "cf_contest_id": 0,
        "cf_index": "",
        "cf_points": 0.0,
        "cf_rating": 0,
        "cf_tags": [""],
        "is_description_translated": False,
        "untranslated_description": "",
        "time_limit": {"seconds": 0, "nanos": 500000000},
        "memory_limit_bytes": 256000000,
        "input_file": "",
        "output_file": "",
    } | changes


def write_code_contests(directory: Path, rows: Sequence[Row] | None = None, split: str = "train") -> str:
    """`data/<split>-00000-of-00001.parquet` with class labels in its metadata."""
    rows = rows or [
        code_contests_row(),
        code_contests_row(name="echo", description="Print n twice, added.", time_limit=None, source=3, difficulty=0),
    ]
    (directory / "data").mkdir(parents=True, exist_ok=True)
    data = Dataset.from_list([dict(row) for row in rows], features=CODE_CONTESTS_FEATURES)
    data.to_parquet(directory / "data" / f"{split}-00000-of-00001.parquet")
    return str(directory)


def pack(tests: Any) -> str:
    """LiveCodeBench's private tests: base64 of zlib of a pickled JSON text."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def stdin_tests(*pairs: tuple[str, str]) -> list[Row]:
    return [{"input": given, "output": expected, "testtype": "stdin"} for given, expected in pairs]


def call_tests(*pairs: tuple[str, str]) -> list[Row]:
    return [{"input": given, "output": expected, "testtype": "functional"} for given, expected in pairs]


def lcb_row(**changes: Any) -> Row:
    return {
        "question_title": "Double",
        "question_content": "Print twice the number.",
        "platform": "atcoder",
        "question_id": "abc900_a",
        "contest_id": "abc900",
        "contest_date": "2024-03-01T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps(stdin_tests(("3\n", "6\n"))),
        "private_test_cases": pack(stdin_tests(("4\n", "8\n"), ("-1\n", "-2\n"))),
        "metadata": "{}",
    } | changes


STARTER = "class Solution:\n    def addTwo(self, a: int, b: int) -> int:\n        "


def lcb_call_row(**changes: Any) -> Row:
    return (
        lcb_row(
            question_title="add-two",
            question_content="Given a and b return a+b.",
            platform="leetcode",
            question_id="99001",
            contest_date="2025-03-01T00:00:00",
            starter_code=STARTER,
            public_test_cases=json.dumps(call_tests(("1\n2", "3"))),
            private_test_cases=json.dumps(call_tests(("5\n-5", "0"))),
            metadata=json.dumps({"func_name": "addTwo"}),
        )
        | changes
    )


def write_livecodebench(directory: Path, files: dict[str, Sequence[Row]] | None = None) -> str:
    """JSON lines files beside the loading script that makes the repository unloadable by name."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{directory.name}.py").write_text("raise RuntimeError('never run')\n")
    for name, rows in (files or {"test.jsonl": [lcb_row()], "test2.jsonl": [lcb_call_row()]}).items():
        (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(directory)


def livebench_row(**changes: Any) -> Row:
    return {
        "question_id": "ab11",
        "category": "coding",
        "turns": ["Print the sum of two numbers."],
        "question_title": "sum",
        "public_test_cases": json.dumps(stdin_tests(("1 2\n", "3\n"))),
        "private_test_cases": pack(stdin_tests(("2 2\n", "4\n"))),
        "original_json": {
            "question_title": "sum",
            "question_content": "c",
            "platform": "atcoder",
            "question_id": "abc900_a",
            "contest_id": "abc900",
            "contest_date": "2024-04-01T00:00:00",
            "starter_code": "",
            "difficulty": "medium",
            "metadata": "{}",
        },
        "release_date": "2024-07-26T00:00:00",
        "citation": "",
        "task": "LCB_generation",
        "livebench_release_date": "2024-07-26T00:00:00",
        "livebench_removal_date": "",
        "partial_solution": None,
        "solution": None,
        "remainder": None,
    } | changes


PARTIAL = "a, b = map(int, input().split())"


def livebench_rows() -> list[Row]:
    call = livebench_row(
        question_id="ab13",
        turns=["Complete addTwo."],
        public_test_cases=json.dumps(call_tests(("1\n2", "3"))),
        private_test_cases=pack(call_tests(("2\n2", "4"))),
    )
    call["original_json"]["metadata"] = json.dumps({"func_name": "addTwo"})
    completion = livebench_row(
        question_id="ab12",
        task="coding_completion",
        turns=["Go on: " + PARTIAL],
        partial_solution=PARTIAL,
        solution=PARTIAL + "\nprint(a+b)",
        remainder="print(a+b)",
    )
    return [livebench_row(), completion, call]


def write_livebench(directory: Path, rows: Sequence[Row] | None = None) -> str:
    """One parquet file."""
    (directory / "data").mkdir(parents=True)
    Dataset.from_list(list(rows or livebench_rows())).to_parquet(directory / "data" / "test-00000-of-00001.parquet")
    return str(directory)


CHECKER = (
    "import sys\n"
    "n = int(open(sys.argv[1]).read())\n"
    "try:\n    a, b = map(int, open(sys.argv[3]).read().split())\n    print(int(a + b == n))\n"
    "except ValueError:\n    print(0)\n"
)


def codeforces_row(**changes: Any) -> Row:
    return {
        "id": "9001/A",
        "aliases": [],
        "contest_id": "9001",
        "contest_name": "Round",
        "contest_type": "CF",
        "contest_start": 1700000000,
        "contest_start_year": 2023,
        "index": "A",
        "time_limit": 1.0,
        "memory_limit": 256.0,
        "title": "Double",
        "description": "Print 2n.",
        "input_format": "n",
        "output_format": "2n",
        "interaction_format": None,
        "note": None,
        "examples": [{"input": "1\n", "output": "2\n"}],
        "editorial": None,
        "rating": 800,
        "tags": ["math"],
        "testset_size": 2,
        "official_tests": [{"input": "1\n", "output": "2\n"}, {"input": "7\n", "output": "14\n"}],
        "official_tests_complete": True,
        "input_mode": "stdio",
        "generated_checker": None,
        "executable": True,
        "generated_tests": 0,
    } | changes


def codeforces_rows() -> list[Row]:
    checked = codeforces_row(
        id="9001/B",
        title="Split",
        description="Print a, b with a + b = n.",
        official_tests=[{"input": "5\n", "output": "2 3\n"}, {"input": "8\n", "output": "4 4\n"}],
        generated_checker=CHECKER,
        rating=None,
    )
    cut = codeforces_row(
        id="77/C",
        contest_id="77",
        official_tests=[{"input": "1\n", "output": "2\n"}],
        official_tests_complete=False,
        generated_tests=2,
    )
    return [codeforces_row(), checked, cut]


CODEFORCES_SCHEMA = pa.schema(
    [
        *[(name, pa.string()) for name in ("id", "contest_id", "contest_name", "contest_type", "index", "title")],
        *[(name, pa.string()) for name in ("description", "input_format", "output_format", "interaction_format")],
        *[(name, pa.string()) for name in ("note", "editorial", "input_mode", "generated_checker")],
        *[(name, pa.int64()) for name in ("contest_start", "contest_start_year", "rating", "testset_size")],
        ("generated_tests", pa.int64()),
        *[(name, pa.float64()) for name in ("time_limit", "memory_limit")],
        *[(name, pa.bool_()) for name in ("official_tests_complete", "executable")],
        *[(name, pa.list_(pa.string())) for name in ("aliases", "tags")],
        *[
            (name, pa.list_(pa.struct([("input", pa.string()), ("output", pa.string())])))
            for name in ("examples", "official_tests")
        ],
    ]
)
CODEFORCES_CARD = """\
---
configs:
- config_name: default
  data_files:
  - split: test
    path: data/test-*
- config_name: verifiable
  data_files:
  - split: test
    path: verifiable/test-*
---
"""


def write_codeforces(directory: Path, rows: Sequence[Row] | None = None) -> str:
    """A card that names configurations, parquet per configuration, and generated tests per contest."""
    for folder in ("data", "verifiable", "generated_tests"):
        (directory / folder).mkdir(parents=True)
    (directory / "README.md").write_text(CODEFORCES_CARD)
    table = pa.Table.from_pylist(list(rows or codeforces_rows()), CODEFORCES_SCHEMA)
    for folder in ("data", "verifiable"):
        pq.write_table(table, directory / folder / "test-00000-of-00001.parquet")
    generated = [
        {"problem_id": "77/C", "input": "20\n", "output": "40\n"},
        {"problem_id": "77/D", "input": "x\n", "output": "y\n"},
        {"problem_id": "77/C", "input": "30\n", "output": "60\n"},
    ]
    pq.write_table(pa.Table.from_pylist(generated), directory / "generated_tests" / "test_cases_0077.parquet")
    return str(directory)


def mbpp_row(**changes: Any) -> Row:
    return {
        "source_file": "x.ipynb",
        "task_id": 11,
        "prompt": "Write a function to double n.",
        "code": "def double(n):\r\n  return 2*n",
        "test_imports": [],
        "test_list": ["assert double(2) == 4", "assert double(0) == 0", "assert double(-3) == -6"],
    } | changes


def mbpp_rows() -> list[Row]:
    rows = mbpp_row(
        task_id=12,
        prompt="Write a function to add a number to a matrix.",
        code="def shift(m, x):\r\n  return [[v + x for v in r] for r in m]",
        test_list=["assert shift([[1, 2], [3, 4]], 1) == [[2, 3], [4, 5]]", "assert shift([[0]], 5) == [[5]]"],
    )
    return [mbpp_row(), rows]


MBPP_CARD = """\
---
configs:
- config_name: full
  data_files:
  - split: test
    path: full/test-*
  default: true
- config_name: sanitized
  data_files:
  - split: test
    path: sanitized/test-*
---
"""


def write_mbpp(directory: Path, rows: Sequence[Row] | None = None) -> str:
    """Parquet per configuration; `full` has other columns."""
    rows = list(rows or mbpp_rows())
    full = [
        {
            "task_id": row["task_id"],
            "text": row["prompt"],
            "code": row["code"],
            "test_list": row["test_list"],
            "test_setup_code": "",
            "challenge_test_list": [row["test_list"][0]],
        }
        for row in rows
    ]
    for folder, content in {"sanitized": rows, "full": full}.items():
        (directory / folder).mkdir(parents=True)
        Dataset.from_list(content).to_parquet(directory / folder / "test-00000-of-00001.parquet")
    (directory / "README.md").write_text(MBPP_CARD)
    return str(directory)


EVALPLUS_TEST = """
import numpy as np

def assertion(out, exp, atol):
    assert out == exp

def check(candidate):
    inputs = [[2], [0], [7]]
    results = [4, 0, 14]
    for i, (inp, exp) in enumerate(zip(inputs, results)):
        assertion(candidate(*inp), exp, 0)
"""


def humaneval_row(**changes: Any) -> Row:
    return {
        "task_id": "HumanEval/9001",
        "prompt": 'def double(n: int) -> int:\n    """Double n."""\n',
        "canonical_solution": "    return 2*n\n",
        "entry_point": "double",
        "test": EVALPLUS_TEST,
    } | changes


def write_evalplus(directory: Path, rows: Sequence[Row] | None = None) -> str:
    """One parquet file."""
    (directory / "data").mkdir(parents=True)
    data = Dataset.from_list(list(rows or [humaneval_row()]))
    data.to_parquet(directory / "data" / "test-00000-of-00001.parquet")
    return str(directory)


def cure_row(**changes: Any) -> Row:
    return {
        "dataset": "CodeContests",
        "task_id": 0,
        "question": "Print the sum of the n numbers.",
        "difficulty": 1,
        "solutions": None,
        "test_input": ["3\n1 2 3\n", "1\n5\n"],
        "test_output": ["6\n", "5\n"],
        "example_input": ["2\n1 1\n"],
        "example_output": ["2\n"],
        "test_time_limit": 1,
        "exe_method": "stdin",
    } | changes


def write_cure(directory: Path, rows: Sequence[Row] | None = None) -> str:
    """One JSON array."""
    (directory / "train").mkdir(parents=True)
    (directory / "train" / "CodeContests_train.json").write_text(json.dumps(list(rows or [cure_row()])))
    return str(directory)


ADD = "class Solution:\n    def addTwo(self, a, b):\n        return a + b"
NOT_ADD = "class Solution:\n    def addTwo(self, a, b):\n        return 3"
SPLIT = "n = int(input())\nprint(n, 0)"
MATRIX = (
    "import sys\n*rows, x = sys.stdin.read().split('\\n')[:-1]\n"
    "for row in rows:\n    print(*(int(v) + int(x) for v in row.split()))"
)
SOLUTIONS: dict[str, tuple[str, str]] = {
    "CODECHEF/prob77. Double It": DOUBLE,
    "HACKEREARTH/echo": ("print(2*int(input()))", "print(input())"),
    "abc900_a": DOUBLE,
    "99001": (ADD, NOT_ADD),
    "ab11": ("print(sum(map(int, input().split())))", "print(3)"),
    "ab12": ("print(a + b)", "print(a)"),
    "ab13": (ADD, NOT_ADD),
    "9001/A": DOUBLE,
    "9001/B": (SPLIT, "print(2, 3)"),
    "77/C": DOUBLE,
    "MBPP/11": (DOUBLE[0], "print(4)"),
    "MBPP/12": (MATRIX, "print(5)"),
    "HumanEval/9001": ("def double(n):\n    return 2 * n", "def double(n):\n    return 4"),
    "CodeContests/0": ("input()\nprint(sum(map(int, input().split())))", "print(5)"),
}
