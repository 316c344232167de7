"""Questions with answers, from any file, by the names of columns; the published sets of mathematics."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from maxk_lightning.data import GSM8K, MATH, Arithmetic, HubDataset, JsonLines
from maxk_lightning.data.math_questions import last_boxed

ROWS = [{"question": "2+2?", "result": "4", "level": 1}, {"question": "1/2, really?", "result": "1/2", "level": 2}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        import datasets

        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_kind_of_file_gives_the_same_problems(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", ROWS)
    source = HubDataset(str(path), prompt="question", answer="result")
    problems = source.load()
    assert [(p.id, p.prompt, p.answer, dict(p.columns)) for p in problems] == [
        (str(place), row["question"], row["result"], row) for place, row in enumerate(ROWS)
    ]
    assert source.report is not None
    assert f"{path}: 2 rows read, 2 kept" in source.report.text()


def test_an_empty_cell_changes_nothing_about_the_other_cells(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer,code,note\nWhat is 2 + 3?,5,007,None\nWhat is x?,,8,NA\n1e400?,6,,\n")
    problems = HubDataset(str(path), prompt="question").load()
    assert [problem.answer for problem in problems] == ["5", None, "6"]
    assert [problem.columns["answer"] for problem in problems] == [5, None, 6]
    assert [problem.columns["code"] for problem in problems] == ["007", "8", None]
    assert [problem.columns["note"] for problem in problems] == ["None", "NA", None]


def test_rows_of_other_lengths_than_the_header(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\nWhat is 2 + 3?,5\nWhat is x?\n")
    assert [problem.answer for problem in HubDataset(str(path), prompt="question").load()] == ["5", None]
    for rows in ("What is 2 + 3?,5,6\nWhat is x?,7,8\n", "What is 2 + 3?,5\nWhat is x?,7,8\n"):
        path.write_text(f"question,answer\n{rows}")
        with pytest.raises(ValueError, match=r"rows.csv: cannot be read: "):
            HubDataset(str(path), prompt="question").load()


def test_a_local_copy_of_a_hub_set_is_read_by_split_also_as_a_stream(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "test.jsonl", ROWS[1:])
    whole = HubDataset(str(tmp_path), "test", "question", "result").load()
    assert [problem.answer for problem in whole] == ["1/2"]
    stream = HubDataset(str(tmp_path), "train", "question", "result", streaming=True, limit=1)
    assert [problem.answer for problem in stream.load()] == ["4"]
    assert stream.report is not None
    assert stream.report.num_rows == 1
    with pytest.raises(ValueError, match="streaming: true needs a `limit`"):
        HubDataset("owner/name", streaming=True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"prompt": "text"},
            r"`prompt` is 'text', but .*rows.jsonl has no such column; it has question, result",
        ),
        ({"prompt": "question", "answer": "gold"}, r"`answer` is 'gold', but .* has no such column"),
        ({"prompt": "level"}, r"rows.jsonl: row 0: `level` must be str, not int"),
        ({"prompt": "question", "path": "absent.csv"}, r"absent.csv: no such file"),
        ({"prompt": "question", "limit": 0}, r"limit is 0, must be at least 1"),
    ],
)
def test_mistakes_name_column_row_or_file(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(ValueError, match=sentence):
        HubDataset(**{"path": str(path), **options}).load()


def test_malformed_rows_and_repeated_ids_are_counted(tmp_path: Path) -> None:
    rows = [*ROWS, {"question": " ", "result": "1", "level": 3}, {"question": "Again?", "result": "1", "level": 1}]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match="row 2: `question` is empty"):
        HubDataset(str(path), prompt="question").load()
    source = HubDataset(str(path), prompt="question", id="level", skip_invalid=True)
    assert [problem.id for problem in source.load()] == ["1", "2"]
    assert source.report is not None
    assert {reason: len(rows) for reason, rows in source.report.left_out.items()} == {
        "malformed: `question` is empty": 1,
        "id was used before": 1,
    }


def test_chats_and_answers_of_any_kind(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    rows = [{"prompt": chat, "answer": 4}, {"prompt": chat, "answer": None}]
    hub = HubDataset(str(write(tmp_path / "rows.jsonl", rows))).load()
    own = JsonLines(str(tmp_path / "rows.jsonl")).load()
    for problems in (hub, own):
        assert [(p.prompt, list(p.messages), p.answer) for p in problems] == [("2+2?", chat, "4"), ("2+2?", chat, None)]


def test_gsm8k_gives_the_number_behind_the_mark(tmp_path: Path) -> None:
    rows = [{"question": "Many?", "answer": "1,000 + 80 = <<1000+80=1080>>1080\n#### 1,080"}]
    (problem,) = GSM8K(str(write(tmp_path / "g.jsonl", rows))).load()
    assert (problem.id, problem.prompt, problem.answer) == ("gsm8k/0", "Many?", "1080")
    assert problem.columns["solution"] == rows[0]["answer"]
    with pytest.raises(ValueError, match="row 0: `answer` holds no ####"):
        GSM8K(str(write(tmp_path / "h.jsonl", [{"question": "Many?", "answer": "1080"}]))).load()


def test_math_gives_what_the_last_box_holds(tmp_path: Path) -> None:
    rows = [
        {
            "problem": "a?",
            "solution": r"$\boxed{1}$: $\boxed{\frac{1}{2}}$.",
            "level": "Level 3",
            "type": "Algebra",
        },
        {"problem": "b?", "solution": "It follows.", "level": "Level 3", "type": "Algebra"},
        {"problem": "c?", "solution": r"\boxed{2}", "level": "Level 5", "type": "Algebra"},
        {"problem": "d?", "solution": r"\boxed{2}", "answer": "3", "level": 3, "unique_id": "x"},
    ]
    source = MATH(str(write(tmp_path / "m.jsonl", rows)), levels=["3"])
    assert [(p.id, p.answer) for p in source.load()] == [("math/0", r"\frac{1}{2}"), ("x", "3")]
    assert source.report is not None
    assert set(source.report.left_out) == {r"no \boxed in the solution", "level 5 was not asked for"}


def test_answers_that_are_numbers_are_kept(tmp_path: Path) -> None:
    rows = [{"problem": "a?", "solution": r"So \boxed{100}.", "answer": 100}]
    assert [p.answer for p in MATH(str(write(tmp_path / "aime.jsonl", rows))).load()] == ["100"]


@pytest.mark.parametrize(
    ("text", "held"),
    [(r"\boxed{a{b}c} d}", "a{b}c"), (r"$\boxed 7$.", "7"), (r"\fbox{x}", "x"), (r"\boxed{1", None), ("none", None)],
)
def test_braces_are_counted(text: str, held: str | None) -> None:
    assert last_boxed(text) == held


def test_the_builtin_sums_are_right() -> None:
    problems = Arithmetic(largest=4).load()
    assert len({problem.id for problem in problems}) == 16
    assert all(str(eval(problem.id)) == problem.answer for problem in problems)
