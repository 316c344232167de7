"""Malformed files and settings, one table per command: each ends with one sentence that names file, line or key."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from maxk_lightning.commands.arguments import call, check_config_files
from maxk_lightning.commands.data import data
from maxk_lightning.commands.score import score
from maxk_lightning.commands.trainer import MaxKCLI
from tests.support.paths import ROOT
from tests.support.refusals import refusal

SQUARE = {"id": "a", "prompt": "Print the square of n.", "tests": [{"input": "7\n", "output": "49\n"}]}
ANSWER = {"id": "a", "completions": ["```python\nprint(int(input()) ** 2)\n```"]}
CALL = SQUARE | {"function": "f", "tests": [{"input": "7", "output": "49"}]}


def line_of(record: dict[str, Any], **changes: object) -> bytes:
    return json.dumps(record | changes).encode() + b"\n"


def with_number(key: str, digits: str) -> bytes:
    return line_of(SQUARE, **{key: 0}).replace(f'"{key}": 0'.encode(), f'"{key}": {digits}'.encode())


PROBLEMS = {
    "empty": (b"", r"p.jsonl: no problem in this file"),
    "blank lines": (b"\n \n", r"p.jsonl: no problem in this file"),
    "not UTF-8": (b'{"id": "\xff"}\n', r"p.jsonl:1: not UTF-8 text \(invalid start byte at byte 8\)"),
    "UTF-16": (line_of(SQUARE).decode().encode("utf-16"), r"p.jsonl:1: not UTF-8"),
    "nested deep": (line_of(SQUARE) + b"[" * 200_000, r"p.jsonl:2: .*nested too deep"),
    "metadata nested deep": (
        line_of(SQUARE, metadata={"x": 0}).replace(b'"x": 0', b'"x": ' + b"[" * 200_000 + b"]" * 200_000),
        r"p.jsonl:1: .*nested too deep",
    ),
    "5000 digits": (with_number("time_limit_s", "1" * 5000), r"p.jsonl:1: .*an integer of 5000 digits$"),
    "400 digits": (with_number("time_limit_s", "1" * 400), r"p.jsonl:1: `time_limit_s` must be .* 400 digits$"),
    "400 digits of memory": (with_number("memory_limit_mb", "1" * 400), r"p.jsonl:1: `memory_limit_mb` must be"),
    "NaN": (with_number("time_limit_s", "NaN"), r"p.jsonl:1: `time_limit_s` must be a positive number, not nan"),
    "negative": (with_number("memory_limit_mb", "-1"), r"p.jsonl:1: `memory_limit_mb` must be a positive number"),
    "repeated id": (line_of(SQUARE) * 2, r"p.jsonl:2: id 'a' was used on line 1"),
    "repeated key": (b'{"id": "b", ' + line_of(SQUARE)[1:], r"p.jsonl:1: key `id` appears twice in one object"),
    "tests are text": (line_of(SQUARE, tests="x"), r"p.jsonl:1: `tests` must be list, not str"),
    "input is a number": (
        line_of(SQUARE, tests=[{"input": 1, "output": ""}]),
        r"p.jsonl:1: `tests\[0\]`: `input` must be str",
    ),
    "compare is a list": (line_of(SQUARE, compare=["tokens"]), r"p.jsonl:1: `compare` is \['tokens'\], must be one of"),
    "id is empty": (line_of(SQUARE, id=""), r"p.jsonl:1: `id` is empty"),
    "prompt has half a character": (line_of(SQUARE, prompt="x\ud800"), r"p.jsonl:1: `prompt` holds half a character"),
    "function is no name": (line_of(CALL, function="a b"), r"p.jsonl:1: `function` is 'a b', not a Python name"),
    "function is a keyword": (line_of(CALL, function="class"), r"p.jsonl:1: `function` is 'class', a keyword"),
    "function is endless": (line_of(CALL, function="f" * 20_000), r"p.jsonl:1: `function` is a name of 20000"),
    "function and checker": (line_of(CALL, checker="print(1)"), r"p.jsonl:1: `function` and `checker` exclude"),
    "arguments are no JSON": (
        line_of(CALL, tests=[{"input": "1\n\n[1,", "output": "1"}]),
        r"p.jsonl:1: `tests\[0\]`: argument 2 of the call in `input` is not JSON",
    ),
    "arguments are nested deep": (
        line_of(CALL, tests=[{"input": "[" * 100_000, "output": "1"}]),
        r"p.jsonl:1: `tests\[0\]`: argument 1 of the call in `input` is not JSON",
    ),
    "checker does not compile": (
        line_of(SQUARE, checker="print(1)\nprint("),
        r"p.jsonl:1: `checker` does not compile \('\(' was never closed on its line 2\)",
    ),
    "checker holds a NUL": (line_of(SQUARE, checker="print(1)\0"), r"p.jsonl:1: `checker` does not compile"),
    "checker is nested deep": (line_of(SQUARE, checker="(" * 5000), r"p.jsonl:1: `checker` does not compile"),
}
COMPLETIONS = {
    "null": (line_of(ANSWER, completions=["x", None]), r"c.jsonl:1: `completions\[1\]` must be str, not NoneType"),
    "unknown id": (line_of(ANSWER, id="zz"), r"c.jsonl:1: id 'zz' is not among the problems"),
    "id is a list": (line_of(ANSWER, id=["a"]), r"c.jsonl:1: `id` must be str"),
    "not UTF-8": (b'{"id": "a", "completions": ["\xff"]}', r"c.jsonl:1: not UTF-8"),
    "5000 digits": (b'{"id": "a", "completions": [' + b"1" * 5000 + b"]}", r"c.jsonl:1: .*an integer of 5000 digits"),
    "nested deep": (b"[" * 200_000, r"c.jsonl:1: .*nested too deep"),
    "repeated id": (line_of(ANSWER) * 2, r"c.jsonl:2: id 'a' was used on line 1"),
}


def run_score(
    folder: Path, *args: str, problems: bytes = line_of(SQUARE), completions: bytes = line_of(ANSWER)
) -> None:
    """In this process; the last words on the command line win."""
    (folder / "p.jsonl").write_bytes(problems)
    (folder / "c.jsonl").write_bytes(completions)
    files = ["--problems", f"{folder}/p.jsonl", "--completions", f"{folder}/c.jsonl", "--out", f"{folder}/s.jsonl"]
    call(score, [*files, "--num_workers", "1", *args])


@pytest.mark.parametrize("name", PROBLEMS)
def test_score_refuses_problems(name: str, tmp_path: Path) -> None:
    content, sentence = PROBLEMS[name]
    with pytest.raises(ValueError, match=sentence) as refused:
        run_score(tmp_path, problems=content)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "s.jsonl").exists()


@pytest.mark.parametrize("name", COMPLETIONS)
def test_score_refuses_completions(name: str, tmp_path: Path) -> None:
    content, sentence = COMPLETIONS[name]
    with pytest.raises(ValueError, match=sentence):
        run_score(tmp_path, completions=content)
    assert not (tmp_path / "s.jsonl").exists()


def a_directory(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_loop(path: Path) -> None:
    path.symlink_to(path)


def a_path_below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("a file")


PATHS: list[tuple[Callable[[Path], None], str]] = [
    (a_directory, "x: a directory, not a file"),
    (a_pipe, "x: a pipe, not a file"),
    (a_loop, "x: Too many levels of symbolic links"),
    (a_path_below_a_file, "x: Not a directory"),
    (lambda path: None, "x: no such file"),
]


@pytest.mark.parametrize(("make", "sentence"), PATHS)
@pytest.mark.parametrize("key", ["--problems", "--completions"])
def test_score_says_what_a_path_is(key: str, make: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    make(tmp_path / "folder" / "x")
    with pytest.raises(ValueError, match=sentence):
        run_score(tmp_path, key, str(tmp_path / "folder" / "x"))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="/proc/self/mem: Input/output error"):
        run_score(tmp_path, "--problems", "/proc/self/mem")


NOTES = b"my notes, without a line end"
GOOD_SCORES = b'{"id": "b", "rewards": [1.0], "verdicts": [["passed"]]}\n'
OUTS: dict[str, tuple[dict[str, bytes], str, str]] = {
    "a directory": ({}, ".", "a directory, not a file"),
    "below a file": ({}, "p.jsonl/x", "--out is .*p.jsonl/x, but .*p.jsonl is no directory"),
    "equal to the problems": ({}, "p.jsonl", "p.jsonl, the file that is read"),
    "equal to the completions": ({}, "../{folder}/c.jsonl", "c.jsonl, the file that is read"),
    "one line of something else": ({"x": NOTES}, "x", "x:1: not a record of scores"),
    "completions without a line end": ({"x": line_of(ANSWER)[:-1]}, "x", "x: its last line has no end"),
    "lines of something else": ({"x": b"one\ntwo\n"}, "x", "x:1: not a record of scores"),
    "something else behind scores": (
        {"x": GOOD_SCORES + NOTES, "x.settings.json": b'{"max_tests": null}'},
        "x",
        "x:2: not a record of scores",
    ),
    "nested deep": ({"x": b"[" * 200_000 + b"\n"}, "x", "x:1: not a record of scores"),
    "rewards are a number": ({"x": b'{"id": "a", "rewards": 1}\n'}, "x", "x:1: not a record of scores"),
    "broken settings": ({"x": GOOD_SCORES, "x.settings.json": b"{"}, "x", "x.settings.json: not the settings"),
    "settings are a list": ({"x": GOOD_SCORES, "x.settings.json": b"[1]"}, "x", "x.settings.json: not the settings"),
    "settings of something else": ({"x.settings.json": b'{"color": 3}'}, "x", "x.settings.json: not the settings"),
    "cannot be made": ({}, "/proc/x", "--out is /proc/x: No such file or directory"),
}


@pytest.mark.parametrize("name", OUTS)
def test_score_refuses_an_out_and_leaves_it_alone(name: str, tmp_path: Path) -> None:
    files, out, sentence = OUTS[name]
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        run_score(tmp_path, "--out", os.path.join(tmp_path, out.format(folder=tmp_path.name)))
    files |= {"p.jsonl": line_of(SQUARE), "c.jsonl": line_of(ANSWER)}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--num_workers", "0"], "num_workers is 0"),
        (["--num_workers", "1000000000"], "num_workers is 1000000000, must be at most"),
        (["--max_tests", "-1"], "max_tests is -1"),
        (["--memory_limit_mb", "-1"], "memory_limit_mb is -1"),
    ],
)
def test_score_refuses_settings(args: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        run_score(tmp_path, *args)


@pytest.mark.parametrize(
    ("args", "changes"),
    [
        (["--memory_limit_mb", str(10**14)], {}),
        (["--time_limit_s", "1e300"], {}),
        ([], {"memory_limit_mb": 1e15}),
        ([], {"memory_limit_mb": 1e300}),
        ([], {"time_limit_s": 1e300}),
        ([], {"id": "a", "tests": [{"input": "7\n", "output": "49\n"}], "metadata": {"\ud800": "\ud800"}}),
    ],
)
def test_what_no_machine_has_is_no_limit(args: list[str], changes: dict[str, Any], tmp_path: Path) -> None:
    run_score(tmp_path, *args, problems=line_of(SQUARE, **changes))
    assert json.loads((tmp_path / "s.jsonl").read_text())["rewards"] == [1.0]


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    run_score(tmp_path, problems=b"\xef\xbb\xbf" + line_of(SQUARE), completions=b"\xef\xbb\xbf" + line_of(ANSWER))
    assert json.loads((tmp_path / "s.jsonl").read_text())["rewards"] == [1.0]


CONFIGS = {
    "a directory": (None, "a directory, not a file"),
    "empty": (b"", "x.yaml is empty, must hold keys"),
    "a list": (b"- 1\n", "x.yaml is a list, must hold keys"),
    "not YAML": (b"a: 1\nb: ]\n", "x.yaml: not YAML .*line 2"),
    "not UTF-8": (b"a: b # \xff", "x.yaml: not UTF-8 text \\(invalid start byte at byte 7\\)"),
    "nested deep": (b"a: " + b"[" * 50_000, "x.yaml: nested too deep"),
}


@pytest.mark.parametrize("word", ["--config {}", "--config={}"])
@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_refused_by_name(name: str, word: str, tmp_path: Path) -> None:
    content, sentence = CONFIGS[name]
    path = tmp_path / "x.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=f"--config: .*{sentence}"):
        check_config_files(word.format(path).split(" "))


@pytest.mark.parametrize("command", ["data", "fit"])
def test_every_command_looks_at_its_config_first(command: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"a: \xff")
    words = [sys.executable, "-m", "maxk_lightning", command, "--config", str(tmp_path / "x.yaml")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert (
        done.stderr == f"{command}: error: --config: {tmp_path}/x.yaml: not UTF-8 text (invalid start byte at byte 3)\n"
    )


def tiny_config(folder: Path, problems: bytes) -> Path:
    (folder / "p.jsonl").write_bytes(problems)
    config = yaml.safe_load((ROOT / "configs" / "tiny.yaml").read_text())
    source = {"class_path": "maxk_lightning.data.JsonLines", "init_args": {"path": str(folder / "p.jsonl")}}
    config["data"] |= {"train": source, "validation": source}
    (folder / "x.yaml").write_text(yaml.safe_dump(config))
    return folder / "x.yaml"


@pytest.mark.parametrize("name", ["nested deep", "metadata nested deep", "5000 digits", "400 digits", "not UTF-8"])
def test_data_refuses_problems_as_score_does(name: str, tmp_path: Path) -> None:
    content, sentence = PROBLEMS[name]
    with pytest.raises(ValueError, match=sentence):
        call(data, ["--config", str(tiny_config(tmp_path, content))])


def no_database(path: Path) -> None:
    path.write_text("no database, but long enough to be taken for one" * 100)


def another_database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE VIEW verdicts AS SELECT 1")
    connection.close()


FITS: dict[str, tuple[list[str], Callable[[Path], None] | None, str]] = {
    "cache_file is a directory": (["--rollout.reward.cache_file"], a_directory, "cache_file is .*x: Is a directory"),
    "cache_file is no database": (["--rollout.reward.cache_file"], no_database, "x: file is not a database"),
    "ckpt_path is no checkpoint": (["--ckpt_path"], no_database, "ckpt_path is .*x, which is no checkpoint"),
    "ckpt_path is nothing": (["--ckpt_path"], None, "ckpt_path is .*x: no such file"),
    "a worker too many": (["--rollout.reward.num_workers", "5000"], None, "num_workers is 5000, must be at most"),
    "completions beyond count": (
        ["--rollout.sampling.num_completions", "1" + 30 * "0"],
        None,
        "num_completions is 10+,",
    ),
    "tokens beyond count": (["--rollout.sampling.max_new_tokens", "1" + 30 * "0"], None, "max_new_tokens is 10+, must"),
    "prompts beyond count": (["--data.prompts_per_rollout", "1" + 30 * "0"], None, "prompts_per_rollout is 10+, must"),
    "no memory": (["--rollout.reward.memory_limit_mb", "1"], None, "memory_limit_mb is 1"),
}


@pytest.mark.parametrize("name", FITS)
def test_dry_run_checks_the_reward_and_the_checkpoint(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args, make, sentence = FITS[name]
    if make is not None:
        make(tmp_path / "x")
    if len(args) == 1:
        args = [*args, str(tmp_path / "x")]
    root = ["--trainer.default_root_dir", str(tmp_path / "run")]
    tiny = ["fit", "--config", str(ROOT / "configs" / "tiny.yaml")]
    assert re.search(sentence, refusal([*tiny, *root, "--dry_run", "true", *args], capsys))


def test_a_big_number_of_time_limits_is_fine(tmp_path: Path) -> None:
    root = ["--trainer.default_root_dir", str(tmp_path / "run")]
    limits = ["--rollout.reward.max_time_limits", "300"]
    with pytest.raises(SystemExit) as done:
        MaxKCLI(["fit", "--config", str(ROOT / "configs" / "tiny.yaml"), *root, "--dry_run", "true", *limits])
    assert done.value.code in (0, None)
