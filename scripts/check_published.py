"""Check verdicts on published problem sets: their authors' solutions must pass, programs that do nothing must not.

Every set goes through its source and the sandboxed reward with these programs: `canonical` (published with the
problem), `empty`, `constant` (the first expected answer), `echo` (its input), `others` (solutions of other problems).
The oracle is the benchmark's own grader in another process (published_graders.py): a program that one of the two passes
and the other fails is a disagreement. Solutions of CodeContests that fail are run again outside the sandbox.

    python scripts/check_published.py                        # ../shared/data, every test: half an hour on one core
    python scripts/check_published.py DIR --max_tests 3      # the first 3 tests of each problem: about 10 minutes

Prints a Markdown table and every disagreement with its reason; ends with status 1 where one has none. Files that DIR
lacks are named and left out. EvalPlus' tests need numpy. Published programs run outside the sandbox with your rights.
"""

import argparse
import contextlib
import gzip
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from published_graders import grade, run_program

from maxk_lightning.data import MBPP, CodeContests, EvalPlus, LiveCodeBench
from maxk_lightning.data.assertions import Assertion, Mode, parse_assertion, to_test
from maxk_lightning.data.mbpp import functions_of
from maxk_lightning.data.rows import LeftOutError
from maxk_lightning.records import problem_from_record
from maxk_lightning.rewards import UnitTestReward, same_output
from maxk_lightning.types import Compare, Problem, Score, TestCase

NUM_OTHERS = 3
NUM_QUICK_TESTS = 10
"Wrong programs that pass so many tests run on all of them."
CHUNK = 16
DEFAULT_LIMIT_S = 4.0  # UnitTestReward's
MAX_TIME_LIMITS = 2  # likewise
NATIVE_FACTOR = 3.0
"A solution may take so many times its limit outside the sandbox before it counts as too slow there too."
SPECIAL = {
    "HumanEval/32": "the published test unpacks a number and fails every program; graded by EvalPlus' own oracle",
    **{
        f"Mbpp/{number}": "the row's test asserts nothing; graded as EvalPlus' evaluator grades"
        for number in (737, 787, 794)
    },
    "Mbpp/558": "EvalPlus' evaluator accepts a second answer, the row's test does not",
    "Mbpp/581": "EvalPlus' evaluator accepts a second answer, the row's test does not",
}
"Problem -> why the row's test and EvalPlus' evaluator differ."
WRITE_LINES = """
def _lines(value):
    is_row = lambda item: isinstance(item, (list, tuple))
    if is_row(value) and value and all(map(is_row, value)):
        return "\\n".join(" ".join(map(str, row)) for row in value)
    return " ".join(map(str, value)) if is_row(value) else str(value)
"""
"CURE's form of a result, for programs around published functions."
WRITERS = {"stdin": "_lines", "repr": "repr"}
WRONG = ("empty", "constant", "echo", "others")
KINDS = ("canonical", *WRONG)


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """A set of problems and what its benchmark says of programs."""

    name: str
    "In the table."
    num_rows: int
    "As published."
    problems: Sequence[Problem]
    "Kept by the source."
    solutions: Mapping[str, tuple[str, str]]
    "Problem id -> published solution and the name of its function (of no account for whole programs)."
    as_program: Callable[[str, str, Problem], str]
    "(solution, its function, problem) -> a program for that problem."
    checks: Mapping[str, str] = field(default_factory=dict)
    "Problem id -> the benchmark's own check of a function; empty: there is none that can be run here."
    has_more_tests: bool = False
    "Whether the source has more tests than the check: what passes here must pass there, and not the other way round."


@dataclass(kw_only=True)
class Counts:
    """What came of a set."""

    name: str
    rows: int = 0
    kept: int = 0
    canonical: list[int] = field(default_factory=lambda: [0, 0])
    "Passed, tried."
    wrong: dict[str, list[int]] = field(default_factory=lambda: {kind: [0, 0] for kind in WRONG})
    "Kind -> passed, tried."
    agreement: list[int] = field(default_factory=lambda: [0, 0])
    "Programs on which both graders agree, compared."
    findings: list[dict[str, str]] = field(default_factory=list)
    "Disagreements and failed solutions."
    seconds: float = 0.0

    def find(self, problem: str, program: str, ours: str, theirs: str, reason: str | None) -> None:
        """Note something to explain; reason None: unexplained."""
        words = {"set": self.name, "problem": problem, "program": program, "ours": ours, "theirs": theirs}
        self.findings.append({**words, "reason": reason or "UNEXPLAINED"})


def main() -> int:
    """Run all sets that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "directory", nargs="?", default="../shared/data", help="published files (its README lists them)"
    )
    parser.add_argument("--max_tests", type=int, help="only the first tests of each problem")
    parser.add_argument("--max_problems", type=int, help="only so many problems of each set, evenly spread")
    parser.add_argument("--programs", nargs="*", default=KINDS, choices=KINDS, help="kinds that are run; default: all")
    parser.add_argument("--sets", nargs="*", help="names (or their beginnings) of the sets to run; default: all")
    parser.add_argument("--num_workers", type=int, default=1, help="of the sandbox")
    parser.add_argument("--json", help="write the counts to this file too")
    options = parser.parse_args()
    root = Path(options.directory)
    if not root.is_dir():
        parser.error(f"{root} is no directory; give the one that holds the published files")
    all_counts = []
    with UnitTestReward(num_workers=options.num_workers, max_tests=options.max_tests) as reward:
        for name, (files, load) in SETS.items():
            if options.sets and not name.startswith(tuple(options.sets)):
                continue
            missing = [file for file in files if not (root / file).exists()]
            if missing:
                print(f"{name}: left out, {root / missing[0]} is not there", file=sys.stderr)
                continue
            published = load(root)
            counts = check(thinned(published, options.max_problems), reward, options.programs)
            counts.kept = len(published.problems)
            all_counts.append(counts)
            print(f"{name}: {all_counts[-1].seconds:.0f} s", file=sys.stderr)
        if (root / "apps").is_dir() and (not options.sets or "APPS".startswith(tuple(options.sets))):
            all_counts.append(check_apps(root / "apps", reward))
    print(table(all_counts))
    if options.json:
        Path(options.json).write_text(json.dumps({"rows": [vars(counts) for counts in all_counts]}, indent=1) + "\n")
    return int(any(finding["reason"] == "UNEXPLAINED" for counts in all_counts for finding in counts.findings))


# Sets


def thinned(published: PublishedSet, max_problems: int | None) -> PublishedSet:
    """The set with at most so many of its problems, evenly spread."""
    step = 1 if max_problems is None else -(-len(published.problems) // max_problems)
    return replace(published, problems=published.problems[::step])


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON lines file or a JSON array."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


def as_function(code: str, function: str, problem: Problem) -> str:
    """A solution under the name that this problem wants."""
    return code if function == problem.function else f"{code}\n{problem.function} = {function}\n"


def whole(code: str, function: str, problem: Problem) -> str:
    """A solution that is a program already."""
    return code


def evalplus_set(name: str, file: str) -> Callable[[Path], PublishedSet]:
    """A file of EvalPlus; its check is the row's test."""

    def load(root: Path) -> PublishedSet:
        problems = EvalPlus(str(root / file)).load()
        functions = {problem.id: problem.function or "" for problem in problems}
        solutions, checks = {}, {}
        rows = rows_of(root / file)
        for row in rows:
            if "entry_point" in row:
                key, check = row["task_id"], f"{row['test']}\ncheck({row['entry_point']})"
                code = row["prompt"] + row["canonical_solution"]
            else:
                key, check, code = f"Mbpp/{row['task_id']}", row["test"], row["code"]
            solutions[key], checks[key] = (code, functions.get(key, "")), check
        return PublishedSet(
            name=name,
            num_rows=len(rows),
            problems=problems,
            solutions=solutions,
            as_program=as_function,
            checks=checks,
        )

    return load


def human_eval_set(root: Path) -> PublishedSet:
    """Problems of HumanEval+, programs that pass them held against HumanEval's own check."""
    plus = evalplus_set("HumanEval+, programs against HumanEval's own check", HUMANEVAL_PLUS)(root)
    rows = rows_of(root / HUMANEVAL)
    checks = {row["task_id"]: f"{row['test']}\ncheck({row['entry_point']})" for row in rows}
    return replace(plus, num_rows=len(rows), checks=checks, has_more_tests=True)


def mbpp_set(name: str, file: str, mode: Mode, compare: Compare = "tokens") -> Callable[[Path], PublishedSet]:
    """A file of MBPP, all splits; where functions are called, its check is the assertions."""

    def load(root: Path) -> PublishedSet:
        rows = {f"MBPP/{row['task_id']}": row for row in rows_of(root / file)}
        problems = MBPP(str(root / file), hub_split="all", mode=mode, compare=compare).load()
        solutions = {}
        for problem in problems:
            code = rows[problem.id]["code"].replace("\r\n", "\n")
            solutions[problem.id] = (code, _function_of(rows[problem.id], code, mode))
        is_call = mode == "function"
        return PublishedSet(
            name=name,
            num_rows=len(rows),
            problems=problems,
            solutions=solutions,
            as_program=as_function if is_call else _mbpp_driver(rows, mode),
            checks={key: _mbpp_check(row) for key, row in rows.items()} if is_call else {},
        )

    return load


def _assertions(row: dict[str, Any], code: str, mode: Mode) -> Iterator[Assertion]:
    """Those that have a form in this mode."""
    for line in (*row["test_list"], *row.get("challenge_test_list", [])):
        with contextlib.suppress(LeftOutError):
            assertion = parse_assertion(line, functions_of(code) if mode == "function" else ())
            to_test(assertion, mode)
            yield assertion


def _function_of(row: dict[str, Any], code: str, mode: Mode) -> str:
    return next(_assertions(row, code, mode)).function


def _mbpp_check(row: dict[str, Any]) -> str:
    setup = [*row.get("test_imports", []), row.get("test_setup_code", "")]
    return "\n".join([*setup, *row["test_list"], *row.get("challenge_test_list", [])])


def _mbpp_driver(rows: Mapping[str, dict[str, Any]], mode: Mode) -> Callable[[str, str, Problem], str]:
    """Programs on standard input around published functions: a table tells which input stands for which arguments."""

    def as_program(code: str, function: str, problem: Problem) -> str:
        row = rows[problem.id]
        calls = {to_test(each, mode).input: each.arguments for each in _assertions(row, row["code"], mode)}
        written = f"print({WRITERS[mode]}({function}(*_calls[_sys.stdin.read()])))"
        return f"{code}\n{WRITE_LINES}\nimport sys as _sys\n_calls = {calls!r}\n{written}\n"

    return as_program


def code_contests_set(root: Path) -> PublishedSet:
    """Rows of CodeContests with a solution each, judged as DeepMind judges."""
    path = str(root / "codecontests/rows_even.jsonl")
    rows = rows_of(Path(path))
    problems = CodeContests(path, split="all", max_difficulty=None, compare="tokens_float").load()
    return PublishedSet(
        name="CodeContests, `tokens_float`",
        num_rows=len(rows),
        problems=problems,
        solutions={f"UNKNOWN_SOURCE/{row['name']}": (row["solution"], "") for row in rows},
        as_program=whole,
    )


def live_code_bench_set(root: Path) -> PublishedSet:
    """Rows of LiveCodeBench, which publishes no solutions."""
    path = str(root / "livecodebench/test.jsonl")
    problems = LiveCodeBench(path).load()
    return PublishedSet(
        name="LiveCodeBench", num_rows=len(rows_of(Path(path))), problems=problems, solutions={}, as_program=whole
    )


HUMANEVAL = "humaneval/HumanEval.jsonl.gz"
HUMANEVAL_PLUS, MBPP_PLUS = "evalplus/HumanEvalPlus-OriginFmt.jsonl.gz", "evalplus/MbppPlus-OriginFmt.jsonl.gz"
SANITIZED, FULL = "mbpp/sanitized-mbpp.json", "mbpp/mbpp.jsonl"
SETS: Mapping[str, tuple[Sequence[str], Callable[[Path], PublishedSet]]] = {
    "HumanEval+": ([HUMANEVAL_PLUS], evalplus_set("HumanEval+", HUMANEVAL_PLUS)),
    "HumanEval, own check": ([HUMANEVAL, HUMANEVAL_PLUS], human_eval_set),
    "MBPP+": ([MBPP_PLUS], evalplus_set("MBPP+", MBPP_PLUS)),
    "MBPP full, function": ([FULL], mbpp_set("MBPP full, `function`", FULL, "function")),
    "MBPP sanitized, function": ([SANITIZED], mbpp_set("MBPP sanitized, `function`", SANITIZED, "function")),
    "MBPP sanitized, stdin": ([SANITIZED], mbpp_set("MBPP sanitized, `stdin`", SANITIZED, "stdin")),
    "MBPP sanitized, stdin, float": (
        [SANITIZED],
        mbpp_set("MBPP sanitized, `stdin`, `tokens_float`", SANITIZED, "stdin", "tokens_float"),
    ),
    "MBPP full, repr": ([FULL], mbpp_set("MBPP full, `repr`", FULL, "repr")),
    "CodeContests": (["codecontests/rows_even.jsonl"], code_contests_set),
    "LiveCodeBench": (["livecodebench/test.jsonl"], live_code_bench_set),
}


# Programs


def wrong_programs(problem: Problem, published: PublishedSet) -> Iterator[tuple[str, str]]:
    """(kind, program) that should not solve a problem."""
    yield "empty", "pass"
    test = problem.tests[0]
    if problem.function is None:
        yield "constant", f"import sys\nsys.stdout.write({test.output!r})"
        yield "echo", "import sys\nsys.stdout.write(sys.stdin.read())"
    else:
        if problem.id in published.solutions:
            yield "constant", _constant(problem, *published.solutions[problem.id])
        yield "echo", f"def {problem.function}(*values):\n    return values[0] if values else None"
    names = sorted(set(published.solutions) - {problem.id})
    for name in Random(f"others of {problem.id}").sample(names, min(NUM_OTHERS, len(names))):
        yield "others", published.as_program(*published.solutions[name], problem)


def _constant(problem: Problem, code: str, function: str) -> str:
    """Always gives what the published solution gives on the first test."""
    arguments = ", ".join(line for line in problem.tests[0].input.split("\n") if line.strip())
    return (
        f"{code}\nfrom math import inf, nan\n_answer = {function}({arguments})\n"
        f"def {problem.function}(*_):\n    return _answer\n"
    )


# Verdicts


def check(published: PublishedSet, reward: UnitTestReward, kinds: Sequence[str]) -> Counts:
    """Run all programs of a set and count."""
    start = time.monotonic()
    counts = Counts(name=published.name, rows=published.num_rows, kept=len(published.problems))
    for first in range(0, len(published.problems), CHUNK):
        problems = [replace(p, tests=tuple(p.tests)) for p in published.problems[first : first + CHUNK]]
        for problem, judged in zip(problems, _judged(problems, published, reward, kinds), strict=True):
            _count(problem, judged, published, counts, is_whole=reward.max_tests is None)
    counts.seconds = time.monotonic() - start
    return counts


Judged = list[tuple[str, str, Score]]
"(kind, program, score)."


def _judged(
    problems: Sequence[Problem], published: PublishedSet, reward: UnitTestReward, kinds: Sequence[str]
) -> list[Judged]:
    """Scores of all programs; wrong ones run on few tests first, and on all when they pass those."""
    tried: list[list[tuple[str, str]]] = []
    for problem in problems:
        known = published.solutions.get(problem.id)
        canonical = [("canonical", published.as_program(*known, problem))] if known else []
        programs = [*canonical, *wrong_programs(problem, published)]
        tried.append([(kind, program) for kind, program in programs if kind in kinds])
    quick = [replace(p, tests=p.tests[:NUM_QUICK_TESTS]) for p in problems]
    first = [
        [reward.submit(problem if kind == "canonical" else short, _fenced(program)) for kind, program in programs]
        for problem, short, programs in zip(problems, quick, tried, strict=True)
    ]
    second = [
        [
            reward.submit(problem, _fenced(program)) if future.result().reward == 1.0 else future
            for (_, program), future in zip(programs, futures, strict=True)
        ]
        for problem, programs, futures in zip(problems, tried, first, strict=True)
    ]
    return [
        [(kind, program, future.result()) for (kind, program), future in zip(programs, futures, strict=True)]
        for programs, futures in zip(tried, second, strict=True)
    ]


def _fenced(program: str) -> str:
    return f"~~~python\n{program}\n~~~" if "```" in program else f"```python\n{program}\n```"


def _count(problem: Problem, judged: Judged, published: PublishedSet, counts: Counts, *, is_whole: bool) -> None:
    check = published.checks.get(problem.id)
    theirs = grade([program for _, program, _ in judged], check) if check else [""] * len(judged)
    for (kind, program, score), verdict in zip(judged, theirs, strict=True):
        has_passed = score.reward == 1.0
        tally = counts.canonical if kind == "canonical" else counts.wrong[kind]
        tally[0] += has_passed
        tally[1] += 1
        ours = _summary(score)
        if verdict:
            may_differ = not is_whole if has_passed else published.has_more_tests
            agrees = has_passed == (verdict == "pass") or may_differ
            counts.agreement[0] += agrees
            counts.agreement[1] += 1
            if not agrees:
                counts.find(problem.id, kind, ours, verdict, SPECIAL.get(problem.id))
        if kind == "canonical" and not has_passed and verdict != "pass":
            counts.find(problem.id, kind, ours, verdict or "-", _why_failed(problem, program, score))


def _summary(score: Score) -> str:
    if score.reward == 1.0:
        return "pass"
    failed = next(verdict for verdict in score.verdicts if verdict != "passed")
    return f"{score.reward:.2f} {failed}" if score.reward is not None else failed


def _why_failed(problem: Problem, program: str, score: Score) -> str | None:
    """Whether a published solution on standard input fails, or answers otherwise, outside the sandbox too."""
    if problem.function is not None:
        return None
    if problem.id.startswith("MBPP/"):
        is_float = all(
            same_output(
                run_program(program, test.input, limit_s=60.0)[1].encode(), test.output.encode(), "tokens_float"
            )
            for test in problem.tests
        )
        return "prints 240.0 where 240 is expected, which the assertion accepts" if is_float else None
    limit_s = problem.time_limit_s or DEFAULT_LIMIT_S
    failed = [test for test, verdict in zip(problem.tests, score.verdicts, strict=False) if verdict != "passed"]
    slow = [test for test, verdict in zip(problem.tests, score.verdicts, strict=False) if verdict == "time_limit"]
    failed = [test for test in failed if test not in slow[MAX_TIME_LIMITS:]]  # those were not run
    reasons = [_native_reason(program, test, problem, limit_s) for test in failed[:3]]
    return reasons[0] if all(reasons) else None


def _native_reason(program: str, test: TestCase, problem: Problem, limit_s: float) -> str | None:
    start = time.monotonic()
    status, output = run_program(program, test.input, limit_s=NATIVE_FACTOR * limit_s)
    seconds = time.monotonic() - start
    if status == "error":
        return "fails outside the sandbox too"
    if status == "time" or seconds > limit_s / 2:
        return f"too slow outside the sandbox too ({seconds:.1f} s, limit {limit_s:g} s)"
    if not same_output(output.encode(), test.output.encode(), problem.compare):
        return "another output outside the sandbox too (several right answers, or a wrong solution)"
    return None


def check_apps(root: Path, reward: UnitTestReward) -> Counts:
    """APPS problems as `JsonLines` records, their solutions, and programs with recorded verdicts."""
    start = time.monotonic()
    counts = Counts(name="APPS", rows=0)
    for directory in sorted(path for path in root.iterdir() if (path / "input_output.json").exists()):
        counts.rows += 1
        counts.kept += 1
        problem = apps_problem(directory)
        solutions = json.loads((directory / "solutions.json").read_text())
        generated = json.loads((directory / "gen_solutions.json").read_text())
        programs = [*solutions, *(each["code"] for each in generated)]
        [scores] = reward.score([problem], [[_fenced(program) for program in programs]])
        for program, score in zip(solutions, scores, strict=False):
            counts.canonical[0] += score.reward == 1.0
            counts.canonical[1] += 1
            if score.reward != 1.0:
                counts.find(problem.id, "canonical", _summary(score), "-", _does_not_compile(program))
        for each, score in zip(generated, scores[len(solutions) :], strict=True):
            theirs = each["result"] is True
            agrees = theirs == (score.reward == 1.0) or (reward.max_tests is not None and not theirs)
            counts.agreement[0] += agrees
            counts.agreement[1] += 1
            if not agrees:
                counts.find(problem.id, "generated", _summary(score), str(each["result"]), None)
    counts.seconds = time.monotonic() - start
    return counts


def apps_problem(directory: Path) -> Problem:
    """One problem in the format of a user's JSON lines."""
    tests = json.loads((directory / "input_output.json").read_text())
    record: dict[str, Any] = {"id": directory.name, "prompt": (directory / "question.txt").read_text()}
    if "fn_name" in tests:
        record["function"] = tests["fn_name"]
        pairs = [("\n".join(map(json.dumps, given)), json.dumps(expected[0]))
                 for given, expected in zip(tests["inputs"], tests["outputs"], strict=True)]  # fmt: skip
    else:
        pairs = list(zip(tests["inputs"], tests["outputs"], strict=True))
    record["tests"] = [{"input": given, "output": expected} for given, expected in pairs]
    return problem_from_record(record)


def _does_not_compile(program: str) -> str | None:
    try:
        compile(program, "solution", "exec")
    except SyntaxError as error:
        return f"the published solution does not compile ({error.msg})"
    return None


# Table


def table(all_counts: Sequence[Counts]) -> str:
    """Markdown: counts per set, then every finding."""
    head = ["set", "rows", "kept", "canonical", *WRONG, "agreement with the benchmark's grader"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for counts in all_counts:
        cells = [counts.name, str(counts.rows), str(counts.kept), _share(counts.canonical)]
        cells += [_share(counts.wrong[kind]) for kind in WRONG]
        lines.append(f"| {' | '.join([*cells, _share(counts.agreement)])} |")
    findings = [finding for counts in all_counts for finding in counts.findings]
    keys = ("set", "problem", "program", "ours", "theirs", "reason")
    lines += ["", f"{len(findings)} findings:", "", f"| {' | '.join(keys)} |", f"|{'---|' * len(keys)}"]
    lines += [f"| {' | '.join(finding[key] for key in keys)} |" for finding in findings]
    return "\n".join(lines)


def _share(tally: Sequence[int]) -> str:
    return f"{tally[0]}/{tally[1]}" if tally[1] else "-"


if __name__ == "__main__":
    raise SystemExit(main())
