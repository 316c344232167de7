"""`score` over files: right numbers, refusals with file and line, resuming, bounded memory."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maxk_lightning.commands.score import score

PROBLEMS = [
    {"id": "a", "prompt": "square", "tests": [{"input": f"{n}\n", "output": f"{n * n}\n"} for n in range(4)]},
    {"id": "b", "prompt": "same", "tests": [{"input": "x", "output": "x"}, {"input": "y", "output": "y"}]},
]
SQUARE = "```python\nprint(int(input()) ** 2)\n```"
ZERO = "```\nprint(0)\n```"


def write_lines(path: Path, records: list[object]) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return str(path)


def read_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rewards_and_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = write_lines(tmp_path / "p.jsonl", PROBLEMS)
    records = [
        {"id": "b", "completions": ["```\nprint(input())\n```", "prose"]},
        {"id": "a", "completions": [SQUARE, ZERO]},
    ]
    completions = write_lines(tmp_path / "c.jsonl", records)
    out = tmp_path / "deep" / "s.jsonl"
    score(problems, completions, str(out), num_workers=1)
    wrong = "wrong_answer"
    assert read_lines(out) == [
        {"id": "b", "rewards": [1.0, 0.0], "verdicts": [["passed"] * 2, ["no_code"] * 2]},
        {"id": "a", "rewards": [1.0, 0.25], "verdicts": [["passed"] * 4, ["passed", wrong, wrong, wrong]]},
    ]
    printed = capsys.readouterr().out
    assert "sandbox backend: " in printed
    assert "4 completions, mean reward 0.5625" in printed


BAD_COMPLETIONS = [
    ('{"id": "a", "completions": [1]}', "`completions\\[0\\]` must be str"),
    ('{"id": "zzz", "completions": []}', "'zzz' is not among the problems"),
    ('{"id": "a"}', "`completions` is missing"),
    ('{"id": "a", "completions": [], "extra": 1}', "unknown key `extra`"),
    ("[1]", "must be a JSON object"),
    ("{", "not JSON"),
    ("[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_COMPLETIONS)
def test_malformed_records_are_refused_or_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, reason: str
) -> None:
    problems = write_lines(tmp_path / "p.jsonl", PROBLEMS)
    completions = write_lines(tmp_path / "c.jsonl", [{"id": "b", "completions": []}, line])
    out = tmp_path / "s.jsonl"
    with pytest.raises(ValueError, match=rf"c.jsonl:2: .*{reason}"):
        score(problems, completions, str(out))
    assert not out.exists()
    score(problems, completions, str(out), skip_invalid=True)
    assert read_lines(out) == [{"id": "b", "rewards": [], "verdicts": []}]
    assert "skipped 1 malformed records" in capsys.readouterr().out


def test_bad_problems_repeated_ids_and_missing_files(tmp_path: Path) -> None:
    completions = write_lines(tmp_path / "c.jsonl", [{"id": "a", "completions": []}] * 2)
    problems = write_lines(tmp_path / "p.jsonl", PROBLEMS)
    out = str(tmp_path / "s.jsonl")
    with pytest.raises(ValueError, match=r"c.jsonl:2: id 'a' was used on line 1"):
        score(problems, completions, out)
    with pytest.raises(ValueError, match=r"p.jsonl:3: id 'a' was used"):
        score(write_lines(tmp_path / "p.jsonl", [*PROBLEMS, PROBLEMS[0]]), completions, out)
    with pytest.raises(ValueError, match=r"none.jsonl: no such file"):
        score(str(tmp_path / "none.jsonl"), completions, out)
    with pytest.raises(ValueError, match="num_workers is 0"):
        score(problems, completions, out, num_workers=0)


def test_resume_keeps_what_is_there_and_refuses_other_settings(tmp_path: Path) -> None:
    problems = write_lines(tmp_path / "p.jsonl", PROBLEMS)
    completions = write_lines(tmp_path / "c.jsonl", [{"id": i, "completions": [SQUARE]} for i in "ab"])
    out = tmp_path / "s.jsonl"
    score(problems, completions, str(out), num_workers=1)
    whole = out.read_text()
    first, second = whole.splitlines(keepends=True)
    kept = first.replace("1.0", "0.125")  # a mark that a second scoring would overwrite
    out.write_text(kept + second[: len(second) // 2])
    score(problems, completions, str(out), num_workers=1)
    assert out.read_text() == kept + second
    with pytest.raises(ValueError, match=r"other settings \(max_tests\)"):
        score(problems, completions, str(out), max_tests=1)
    out.write_text("something else\n")
    with pytest.raises(ValueError, match=r"s.jsonl:1: not a record of scores"):
        score(problems, completions, str(out))


def test_scores_of_other_completions_or_tests_are_not_taken_for_these(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = write_lines(tmp_path / "p.jsonl", PROBLEMS)
    completions = write_lines(tmp_path / "c.jsonl", [{"id": "a", "completions": [ZERO]}])
    out = str(tmp_path / "s.jsonl")
    score(problems, completions, out, num_workers=1)
    more = [{"id": "a", "completions": [ZERO]}, {"id": "b", "completions": ["```python\nprint(input())\n```"]}]
    write_lines(tmp_path / "c.jsonl", more)  # one more record is no change
    score(problems, completions, out, num_workers=1)
    assert [record["rewards"] for record in read_lines(Path(out))] == [[0.25], [1.0]]
    assert "1 records, 1 completions, mean reward 1.0000" in (printed := capsys.readouterr().out)
    assert "1 records kept of an earlier run" in printed
    score(problems, completions, out, num_workers=1)
    assert "0 completions, none with a reward" in capsys.readouterr().out
    write_lines(tmp_path / "c.jsonl", [{**more[0], "completions": [SQUARE]}, more[1]])
    with pytest.raises(ValueError, match=r"id 'a' was finished with other completions or tests; choose another --out"):
        score(problems, completions, out)
    write_lines(tmp_path / "c.jsonl", more)
    other_tests = [{**problem, "tests": problem["tests"][:1]} for problem in PROBLEMS]
    write_lines(tmp_path / "p.jsonl", other_tests)
    with pytest.raises(ValueError, match=r"id 'a' and 1 more was finished with other completions or tests"):
        score(problems, completions, out)


@pytest.mark.slow
def test_killed_runs_lose_nothing(tmp_path: Path) -> None:
    """Kill -9 the command at five moments; the pieces make up the whole, and no worker survives."""
    ids = [str(i) for i in range(60)]
    problems = write_lines(tmp_path / "p.jsonl", [{**PROBLEMS[0], "id": i} for i in ids])
    slow_square = "```python\nimport time; time.sleep(0.02)\nprint(int(input()) ** 2)\n```"
    completions = write_lines(tmp_path / "c.jsonl", [{"id": i, "completions": [slow_square, ZERO]} for i in ids])
    out = tmp_path / "s.jsonl"
    command = [sys.executable, "-m", "maxk_lightning", "score", "--problems", problems, "--completions", completions]
    command += ["--out", str(out)]
    for patience in (1.0, 1.5, 2.0, 2.5, 3.0):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(patience)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    records = read_lines(out)
    assert [record["id"] for record in records] == ids
    assert all(record["rewards"] == [1.0, 0.25] for record in records)
    # Of any run on this machine: tests beside this one are killed, too, and their workers take a moment to notice.
    deadline = time.monotonic() + 10
    while orphaned_workers() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not orphaned_workers()


def orphaned_workers() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line, status = (entry / "cmdline").read_bytes(), (entry / "stat").read_text()
            except OSError:
                continue
            if b"sandbox.server" in line and status.rpartition(")")[2].split()[1] == "1":
                found.append(entry.name)
    return found


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Twenty times the completions, the same peak (identical programs: the reading, not the running, is measured)."""

    def peak_mb(num_problems: int) -> float:
        problems = write_lines(tmp_path / "p.jsonl", [{**PROBLEMS[1], "id": str(i)} for i in range(num_problems)])
        record = {"completions": ["```\nprint(input())\n```" + "x" * 2000] * 500}
        completions = write_lines(tmp_path / "c.jsonl", [{"id": str(i), **record} for i in range(num_problems)])
        code = (
            "import sys; from maxk_lightning.commands.score import score; score(*sys.argv[1:]);"
            "print('peak', open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
        )
        (tmp_path / "s.jsonl").unlink(missing_ok=True)
        command = [sys.executable, "-c", code, problems, completions, str(tmp_path / "s.jsonl")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return float(done.stdout.rpartition("peak")[2]) / 1024

    small, large = peak_mb(10), peak_mb(200)
    assert large < small + 40, (small, large)
