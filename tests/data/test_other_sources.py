"""LiveBench, Codeforces, MBPP, EvalPlus and CURE: what is kept, left out, refused, and what a prompt says."""

import ast
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maxk_lightning.data import MBPP, Codeforces, Cure, EvalPlus, Instruction, LiveBench, LoadReport
from maxk_lightning.data.assertions import parse_assertion, to_test
from maxk_lightning.data.codeforces import code_contests_ids
from maxk_lightning.data.rows import LeftOutError
from tests.support import layouts


def _left_out(report: LoadReport | None) -> dict[str, list[str]]:
    assert report is not None
    return {reason: [facts.id for facts in rows] for reason, rows in report.left_out.items()}


# LiveBench


def test_livebench_prompts_are_used_as_they_are(tmp_path: Path) -> None:
    problems = LiveBench(layouts.write_livebench(tmp_path / "livebench")).load()
    assert [problem.prompt for problem in problems] == [row["turns"][0] for row in layouts.livebench_rows()]
    assert [problem.prefix for problem in problems] == [None, layouts.PARTIAL, None]
    assert [problem.function for problem in problems] == [None, None, "addTwo"]  # named in original_json's metadata


def test_livebench_releases_and_tasks(tmp_path: Path) -> None:
    rows = [
        layouts.livebench_row(),
        layouts.livebench_row(question_id="removed", livebench_removal_date="2024-08-31"),
        layouts.livebench_row(question_id="later", livebench_release_date="2025-01-01T00:00:00"),
    ]
    source = LiveBench(layouts.write_livebench(tmp_path / "a", rows), release="2024-11-25")
    assert [problem.id for problem in source.load()] == ["ab11"]
    assert _left_out(source.report) == {"removed by 2024-11-25": ["removed"], "released after 2024-11-25": ["later"]}
    assert len(LiveBench(source.path).load()) == 3
    source = LiveBench(layouts.write_livebench(tmp_path / "b"), tasks=["coding_completion"])
    assert [problem.id for problem in source.load()] == ["ab12"]
    with pytest.raises(ValueError, match=r"tasks is \['x'\], must be some of LCB_generation, coding_completion"):
        LiveBench(tasks=["x"])


# Codeforces


def test_codeforces_problems_we_cannot_run_are_left_out(tmp_path: Path) -> None:
    rows = [
        layouts.codeforces_row(),
        layouts.codeforces_row(id="9001/I", interaction_format="flush"),
        layouts.codeforces_row(id="9001/F", input_mode="file"),
        layouts.codeforces_row(id="9001/X", executable=False),
        layouts.codeforces_row(id="9001/N", official_tests=[]),
    ]
    source = Codeforces(layouts.write_codeforces(tmp_path / "cf", rows), overlap=None)
    [problem] = source.load()
    assert _left_out(source.report) == {
        "interactive": ["9001/I"],
        "input_mode is file": ["9001/F"],
        "marked as not executable": ["9001/X"],
        "no tests": ["9001/N"],
    }
    assert (problem.time_limit_s, problem.memory_limit_mb, problem.metadata["rating"]) == (1.0, 256, 800)
    assert problem.metadata["difficulty"] == "0800-1199"


def test_overlap_with_code_contests_goes_by_columns_names_and_aliases(tmp_path: Path) -> None:
    known = [
        layouts.code_contests_row(name="1575_A. Another Sorting Problem", source=2, difficulty=7),
        layouts.code_contests_row(name="x", source=2, cf_contest_id=9001, cf_index="A"),
    ]
    contests = layouts.write_code_contests(tmp_path / "cc", known)
    layouts.write_code_contests(tmp_path / "cc", [layouts.code_contests_row(name="12_B1. In test")], split="test")
    assert code_contests_ids(contests) == {"1575/A", "9001/A", "12/B1"}
    rows = [
        layouts.codeforces_row(),
        layouts.codeforces_row(id="9002/C", aliases=["12/B1"]),
        layouts.codeforces_row(id="9002/D", aliases=["12/B2"]),
    ]
    source = Codeforces(layouts.write_codeforces(tmp_path / "cf", rows), overlap=contests)
    assert [problem.id for problem in source.load()] == ["9002/D"]
    assert _left_out(source.report) == {"also in CodeContests": ["9001/A", "9002/C"]}


def test_cut_tests_are_completed_by_generated_ones(tmp_path: Path) -> None:
    path = layouts.write_codeforces(tmp_path / "cf")
    problem = Codeforces(path, overlap=None).load()[2]
    assert [test.input for test in problem.tests] == ["1\n", "20\n", "30\n"]
    source = Codeforces(path, overlap=None, use_generated_tests=False)
    assert [problem.id for problem in source.load()] == ["9001/A", "9001/B"]
    assert _left_out(source.report) == {"official tests are incomplete": ["77/C"]}


def test_the_codeforces_statement_has_all_parts(tmp_path: Path) -> None:
    row = layouts.codeforces_row(note="Mind the gap.")
    path = layouts.write_codeforces(tmp_path / "cf", [row])
    [problem] = Codeforces(path, overlap=None, instruction=Instruction(stdin="{statement}")).load()
    wanted = (
        "# Double Print 2n. ## Input n ## Output 2n ## Examples Input ``` 1 ``` Output ``` 2 ``` ## Note Mind the gap."
    )
    assert problem.prompt.split() == wanted.split()


# MBPP


@pytest.mark.parametrize(
    ("assertion", "given", "expected"),
    [
        ("assert f(2) == 4", "2\n", "4\n"),
        ("assert f('a b', True) == False", "a b\nTrue\n", "False\n"),
        ("assert f([1, -2.5], (3, 'x')) == (1, 2)", "1 -2.5\n3 x\n", "1 2\n"),
        ("assert f([[1, 2], (3, 4)]) == [[1], [2]]", "1 2\n3 4\n", "1\n2\n"),
        ("assert f() == 0.1", "", "0.1\n"),
    ],
)
def test_assertions_become_standard_input_by_cure_s_rule(assertion: str, given: str, expected: str) -> None:
    test = to_test(parse_assertion(assertion), "stdin")
    assert (test.input, test.output) == (given, expected)


@pytest.mark.parametrize(
    "value",
    ["{'a': 1}", "{1, 2}", "None", "1j", "[]", "[[]]", "[[[1]]]", "[1, [2]]", "['a b']", "['']", "'a\\nb'", "b'x'"],
)
def test_values_without_a_form_on_standard_input_are_left_out(value: str) -> None:
    for assertion in (f"assert f({value}) == 1", f"assert f(1) == {value}"):
        with pytest.raises(LeftOutError, match="no form on standard input"):
            to_test(parse_assertion(assertion), "stdin")


@pytest.mark.parametrize(
    "assertion",
    ["assert f(1)", "assert f(1) != 2", "assert f(g(1)) == 2", "assert f(x=1) == 2", "assert a.f(1) == 2", "f(1)"],
)
def test_other_assertions_are_left_out(assertion: str) -> None:
    with pytest.raises(LeftOutError, match="an assertion"):
        parse_assertion(assertion)


VALUES = [1, -2.5, True, "a b", "", "x\ny", [], [1, [2, "z"]], (1, (2,)), {"k": [1]}]


def test_the_lossless_forms_can_be_read_back() -> None:
    for value in VALUES:
        assertion = parse_assertion(f"assert f({value!r}, 0) == {value!r}")
        literal = to_test(assertion, "repr")
        assert [ast.literal_eval(line) for line in literal.input.splitlines()] == [value, 0]
        assert ast.literal_eval(literal.output) == value
        call = to_test(assertion, "function")
        assert [ast.literal_eval(line) for line in call.input.splitlines()] == [value, 0]
    with pytest.raises(LeftOutError):
        to_test(parse_assertion("assert f(float) == 0"), "function")


@pytest.mark.parametrize(
    ("assertion", "given", "condition"),
    [
        ("assert set(f([1, 2])) == set([2, 1])", "[1, 2]\n", "set(result) == set([2, 1])"),
        ("assert math.isclose(f(1.0/4), 3., rel_tol=0.001)", "0.25\n", "math.isclose(result, 3.0, rel_tol=0.001)"),
        ("assert not f(14*14)", "196\n", "not result"),
        ("assert f(1) == sys.getsizeof(1)", "1\n", "result == sys.getsizeof(1)"),
    ],
)
def test_other_assertions_on_a_function_become_conditions(assertion: str, given: str, condition: str) -> None:
    parsed = parse_assertion(assertion, ["f"])
    test = to_test(parsed, "function")
    assert (parsed.function, test.input, test.output) == ("f", given, condition)
    with pytest.raises(LeftOutError, match="not of the form"):
        to_test(parsed, "repr")


def test_assertions_that_call_twice_or_something_else_are_left_out() -> None:
    for assertion in ("assert f(1) == f(2)", "assert f(g(1)) == 2", "assert f(x=1)", "f(1)"):
        with pytest.raises(LeftOutError, match="an assertion"):
            parse_assertion(assertion, ["f"])


def test_mbpp_keeps_a_problem_and_drops_the_assertion_that_does_not_convert(tmp_path: Path) -> None:
    row = layouts.mbpp_row(test_list=["assert double(2) == 4", "assert double(None) == None"])
    path = layouts.write_mbpp(tmp_path / "mbpp", [row])
    source = MBPP(path)
    [problem] = source.load()
    assert [test.output for test in problem.tests] == ["4\n"]
    assert source.report is not None
    reason = "a value of type NoneType has no form on standard input"
    assert {name: [facts.id for facts in rows] for name, rows in source.report.shortened.items()} == {
        reason: ["MBPP/11"]
    }
    assert f"shortened      1  {reason} (MBPP/11)" in source.report.text()
    strict = MBPP(path, inconvertible="leave_out_problem")
    assert strict.load() == []
    assert _left_out(strict.report) == {reason: ["MBPP/11"]}
    bare = MBPP(path, describe_input=False, instruction=Instruction(stdin="{statement}"))
    assert [problem.prompt for problem in bare.load()] == ["Write a function to double n."]


def test_mbpp_lists_what_cannot_be_converted_and_says_how_input_arrives(tmp_path: Path) -> None:
    rows = [*layouts.mbpp_rows(), layouts.mbpp_row(task_id=13, test_list=["assert f({}) == 1"])]
    path = layouts.write_mbpp(tmp_path / "mbpp", rows)
    source = MBPP(path)
    problems = source.load()
    assert _left_out(source.report) == {"a value of type dict has no form on standard input": ["MBPP/13"]}
    assert "reads the arguments of `shift(m, x)`" in problems[1].prompt
    assert "Example input:\n```\n1 2\n3 4\n1\n```\nExample output:\n```\n2 3\n4 5\n```" in problems[1].prompt
    assert [test.output for test in problems[0].tests] == ["4\n", "0\n", "-6\n"]
    called = MBPP(path, mode="function").load()
    assert [problem.function for problem in called] == ["double", "shift", "f"]
    assert "def double(n):\n    ..." in called[0].prompt
    with pytest.raises(ValueError, match="mode is 'x', must be one of stdin, repr, function"):
        MBPP(mode="x")  # type: ignore[arg-type]


def test_full_mbpp_has_other_columns_and_challenge_tests(tmp_path: Path) -> None:
    [problem, _] = MBPP(layouts.write_mbpp(tmp_path / "mbpp"), config="full").load()
    assert len(problem.tests) == 4
    assert problem.prompt.startswith("Write a function to double n.")


def test_assertions_on_several_functions_are_left_out(tmp_path: Path) -> None:
    rows = [layouts.mbpp_row(), layouts.mbpp_row(task_id=9, test_list=["assert f(1) == 1", "assert g(1) == 1"])]
    source = MBPP(layouts.write_mbpp(tmp_path / "mbpp", rows))
    source.load()
    assert _left_out(source.report) == {"the assertions call several functions": ["MBPP/9"]}


# HumanEval+ and MBPP+


def test_evalplus_leaves_out_tests_of_other_forms(tmp_path: Path) -> None:
    test = layouts.EVALPLUS_TEST
    odd = {
        "HumanEval/4": "def check(c): assert c(1) == 2",
        "HumanEval/5": test.replace("[[2], [0], [7]]", "[[2], [float('x')], [7]]"),
        "HumanEval/6": test.replace("    results = [4, 0, 14]\n", ""),
        "HumanEval/7": test.replace("assertion(candidate(*inp), exp, 0)", "assert candidate(*inp) is exp"),
    }
    rows = [layouts.humaneval_row(), *(layouts.humaneval_row(task_id=key, test=text) for key, text in odd.items())]
    source = EvalPlus(layouts.write_evalplus(tmp_path / "he", rows))
    [problem] = source.load()
    assert (problem.function, problem.tests[2].input, problem.tests[2].output) == ("double", "7\n", "14")
    assert (problem.values, problem.atol, problem.checker) == ("python", 0.0, None)
    assert 'def double(n: int) -> int:\n    """Double n."""' in problem.prompt
    assert list(_left_out(source.report).values()) == [[key] for key in odd]
    uneven = EvalPlus(
        layouts.write_evalplus(tmp_path / "bad", [layouts.humaneval_row(test=test.replace("[4, 0, 14]", "[4, 0]"))])
    )
    with pytest.raises(ValueError, match="row 0: `test` has 3 inputs and 2 results"):
        uneven.load()


REFERENCE_TEST = """
import numpy as np

def assertion(out, exp, atol):
    assert out == exp

import math
def ref_func(n):
    return [n + 2 * i for i in range(n)]

def check(candidate):
    inputs = [[2], [1000000]]
    for i, inp in enumerate(inputs):
        assertion(candidate(*inp), ref_func(*inp), 0)
"""


def test_evalplus_oracles_are_conditions_and_too_long_answers_are_counted(tmp_path: Path) -> None:
    sets = layouts.EVALPLUS_TEST.replace("out == exp", "set(out) == set(exp)")
    rows = [
        layouts.humaneval_row(test=sets),
        layouts.humaneval_row(task_id="HumanEval/2", entry_point="make_a_pile", test=REFERENCE_TEST),
        layouts.humaneval_row(task_id="HumanEval/3", test=layouts.EVALPLUS_TEST.replace("exp, 0)", "exp, 0.5)")),
    ]
    path = layouts.write_evalplus(tmp_path / "he", rows)
    source = EvalPlus(path)
    alike, pile, near = source.load()
    assert [test.output for test in alike.tests] == [f"set(result) == set({value})" for value in (4, 0, 14)]
    assert [(test.input, test.output) for test in pile.tests] == [("2\n", "result == ref_func(*arguments)")]
    assert pile.checker is not None
    assert "def ref_func(n):" in pile.checker
    assert "import math" in pile.checker
    assert "numpy" not in pile.checker
    assert source.report is not None
    assert [[facts.id for facts in rows] for rows in source.report.shortened.values()] == [["HumanEval/2"]]
    assert (near.atol, near.checker) == (0.5, None)
    assert [problem.atol for problem in EvalPlus(path, compare="equal").load()] == [None, None, None]


def test_mbpp_plus_takes_the_function_from_its_assertions(tmp_path: Path) -> None:
    row = {
        "task_id": 9001,
        "prompt": "Write a function to double n.",
        "code": "def double(n): return 2*n",
        "source_file": "x",
        "test_imports": [],
        "test_list": ["assert double(2) == 4"],
        "test": layouts.EVALPLUS_TEST,
    }
    [problem] = EvalPlus(layouts.write_evalplus(tmp_path / "mbpp", [row])).load()
    assert (problem.id, problem.function, len(problem.tests)) == ("Mbpp/9001", "double", 3)


# CURE


def test_cure_refuses_the_schema_of_the_project_that_took_over(tmp_path: Path) -> None:
    taken: dict[str, Any] = {
        "question": "q",
        "test_time_limit": 1,
        "test_method": "function",
        "test_list": "def check(c): ...",
        "prefix": "",
    }
    rows = [layouts.cure_row(test_method="stdio"), taken]
    source = Cure(layouts.write_cure(tmp_path / "cure", rows))
    assert [problem.id for problem in source.load()] == ["CodeContests/0"]
    assert _left_out(source.report) == {"function tests of the project that took this repository over": ["-/1"]}


def test_cure_uses_the_first_eight_private_tests(tmp_path: Path) -> None:
    many = layouts.cure_row(test_input=[f"1\n{i}\n" for i in range(20)], test_output=[f"{i}\n" for i in range(20)])
    examples_only = layouts.cure_row(test_input=[], test_output=[], difficulty="hard")
    with pytest.raises(ValueError, match=r"CodeContests_train.json: cannot be read|row"):
        Cure(layouts.write_cure(tmp_path / "odd", [layouts.cure_row(test_output=["1\n"])])).load()
    problems = Cure(layouts.write_cure(tmp_path / "cure", [many, examples_only])).load()
    assert [len(problem.tests) for problem in problems] == [8, 1]
    assert problems[0].time_limit_s == 1.0
    assert [problem.metadata["difficulty"] for problem in problems] == ["1", "hard"]  # mixed types in one column


def test_nested_lists_of_codeforces_survive_a_round_trip_through_parquet(tmp_path: Path) -> None:
    """The same tests, as list of structs (published) and as struct of lists (older copies)."""
    row = layouts.codeforces_row()
    turned = row | {
        key: {"input": [t["input"] for t in row[key]], "output": [t["output"] for t in row[key]]}
        for key in ("examples", "official_tests")
    }
    layouts.write_codeforces(tmp_path / "cf", [row])
    [ours] = Codeforces(str(tmp_path / "cf"), overlap=None).load()
    pq.write_table(pa.Table.from_pylist([turned]), tmp_path / "cf" / "verifiable" / "test-00000-of-00001.parquet")
    [theirs] = Codeforces(str(tmp_path / "cf"), overlap=None).load()
    assert list(ours.tests) == list(theirs.tests)
    assert ours.prompt == theirs.prompt
