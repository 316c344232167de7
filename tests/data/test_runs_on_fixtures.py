"""The sources in the product: configs, the `data` command, ranks, and training."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from maxk_lightning.callbacks.rollouts import rollout_callback
from maxk_lightning.commands.arguments import call
from maxk_lightning.commands.data import data
from maxk_lightning.commands.trainer import MaxKCLI
from maxk_lightning.data import CodeContests
from maxk_lightning.datamodule import PromptDataModule
from maxk_lightning.types import Sampling
from tests.support import layouts
from tests.support.paths import ROOT

CONFIGS = sorted((ROOT / "configs" / "eval").glob("*.yaml"))
BARE = {"stdin": "{statement}", "function": "{statement}"}
SOURCES: dict[str, tuple[Callable[[Path], str], dict[str, Any]]] = {
    "CodeContests": (layouts.write_code_contests, {"split": "all", "instruction": BARE}),
    "LiveCodeBench": (layouts.write_livecodebench, {"version": "release_v2", "instruction": BARE}),
    "LiveBench": (layouts.write_livebench, {}),
    "Codeforces": (layouts.write_codeforces, {"overlap": None, "instruction": BARE}),
    "MBPP": (layouts.write_mbpp, {"instruction": BARE}),
    "EvalPlus": (layouts.write_evalplus, {"instruction": BARE}),
    "Cure": (layouts.write_cure, {"instruction": BARE}),
}


def _source(name: str, directory: Path) -> dict[str, Any]:
    write, options = SOURCES[name]
    return {"class_path": f"maxk_lightning.data.{name}", "init_args": {"path": write(directory / name), **options}}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_evaluation_config_reads_a_local_copy(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = yaml.safe_load(config.read_text())
    name = settings["data"]["test"]["class_path"].rsplit(".", 1)[1]
    local = SOURCES[name][0](tmp_path / name)
    changes = ["--data.test.init_args.path", local]
    if name == "CodeContests":
        rows = [layouts.code_contests_row(name=str(i)) for i in range(20)]
        layouts.write_code_contests(tmp_path / name, rows)
    if name == "LiveCodeBench":
        changes += ["--data.test.init_args.version", "release_v2"]
    if name == "Codeforces":
        changes += ["--data.test.init_args.overlap", "null"]
    options = ["--split", "test", "--policy", "builtin", "--num_prompts", "1"]
    call(data, ["--config", str(config), *options, *changes, "--data.max_prompt_tokens", "2000"])
    said = capsys.readouterr().out
    assert said.startswith("=== test: ")
    assert "<|im_start|>assistant" in said
    assert "input:    " in said
    header = config.read_text().split("seed_everything")[0]
    assert f"--config configs/eval/{config.name}" in header
    assert "Expected" in header


def test_the_data_command_shows_reports_prompts_and_tests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [layouts.code_contests_row(), layouts.code_contests_row(name="hard", difficulty=9)]
    path = layouts.write_code_contests(tmp_path / "cc", rows)
    source = {"class_path": "maxk_lightning.data.CodeContests", "init_args": {"path": path, "split": "all"}}
    run = {"data": {"train": source, "validation": None, "test": None}, "trainer": {"accelerator": "cpu"}}
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(run))
    call(data, ["--config", str(config), "--num_tests", "1"])
    said = capsys.readouterr().out
    assert f"=== train: {path} (train): 2 rows read, 1 kept" in said
    assert "difficulty above 3 (CODECHEF/hard)" in said
    assert "Read an integer n and print 2n.\n\nWrite a Python 3 program" in said
    assert "4 tests, judged by `tokens`; limits: 0.5 s, 245 MiB" in said
    assert said.count("input:    ") == 1
    assert "input:    '3\\n'\nexpected: '6\\n'" in said
    call(
        data,
        ["--config", str(config), "--data.max_prompt_tokens", "200", "--data.train.instruction.stdin", "{statement}"],
    )
    assert "Write a Python 3 program" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="no problem has a prompt of at most 9 tokens"):
        call(data, ["--config", str(config), "--data.max_prompt_tokens", "9"])
    with pytest.raises(ValueError, match=r"data.test is null"):
        call(data, ["--config", str(config), "--split", "test"])


def test_a_dry_run_reports_the_data_and_stops(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [layouts.code_contests_row(), layouts.code_contests_row(name="hard", difficulty=9)]
    layouts.write_code_contests(tmp_path / "cc", rows)
    source = {
        "class_path": "maxk_lightning.data.CodeContests",
        "init_args": {"path": str(tmp_path / "cc"), "split": "all"},
    }
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({"data": {"train": source, "validation": None}}))
    root = ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"]
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as ended:
        MaxKCLI(["fit", "--config", str(config), *root, "--dry_run", "true"])
    assert ended.value.code == 0
    assert "2 rows read, 1 kept" in caplog.text
    assert not (tmp_path / "run").exists()


def test_prompts_that_are_too_long_join_the_report(random_policy: str, tmp_path: Path) -> None:
    rows = [layouts.code_contests_row(), layouts.code_contests_row(name="long", description="x" * 900)]
    source = CodeContests(layouts.write_code_contests(tmp_path, rows), split="all")
    module = PromptDataModule(policy=random_policy, train=source, validation=None, max_prompt_tokens=600)
    module.setup("fit")
    left_out = module.reports["fit"].left_out
    assert {reason: [facts.id for facts in rows] for reason, rows in left_out.items()} == {
        "prompt longer than data.max_prompt_tokens (600)": ["CODECHEF/long"]
    }
    assert source.report is not None
    assert source.report.num_rows == len(source.report.kept) == 2  # the source's own report stays as it was


@pytest.mark.parametrize("num_problems", [4, 5, 7])
def test_two_ranks_together_see_what_one_sees(num_problems: int, random_policy: str, tmp_path: Path) -> None:
    rows = [layouts.code_contests_row(name=str(i)) for i in range(num_problems)]
    path = layouts.write_code_contests(tmp_path, rows)

    def seen(rank: int, num_ranks: int) -> list[tuple[str, int, int]]:
        source = CodeContests(path, split="all")
        module = PromptDataModule(policy=random_policy, train=source, validation=source, prompts_per_rollout=4)
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        module.trainer = SimpleNamespace(global_rank=rank, world_size=num_ranks, strategy=strategy)  # type: ignore[assignment]
        module.setup("fit")
        orders = [module.order(index, Sampling()) for index in range(num_problems)]
        orders.append(module.eval_order("validate", Sampling()))
        pairs = [pair for order in orders for pair in zip(order.problems, order.prompts, strict=True)]
        return [(problem.id, prompt.seed, len(list(problem.tests))) for problem, prompt in pairs]

    one = Counter(seen(0, 1))
    assert Counter(seen(0, 2)) + Counter(seen(1, 2)) == one
    visits = Counter(name for name, _, _ in one.elements())
    assert set(visits.values()) == {5}  # num_problems rollouts of 4 are 4 whole passes; validation is the fifth
    assert one.total() == 5 * num_problems


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_fit_runs_on_every_fixture(name: str, tmp_path: Path) -> None:
    source = _source(name, tmp_path)
    sampling = {"num_completions": 6, "max_new_tokens": 16}
    run = {
        "trainer": {"default_root_dir": str(tmp_path / "run"), "max_epochs": 1, "accelerator": "cpu"},
        "model": {"policy": "builtin"},
        "data": {
            "train": source,
            "validation": source,
            "test": None,
            "prompts_per_rollout": 2,
            "max_prompt_tokens": 480,
        },
        "rollout": {"sampling": sampling, "eval_sampling": sampling},
    }
    run["trainer"]["enable_progress_bar"] = False  # type: ignore[index]
    run["trainer"]["check_val_every_n_epoch"] = 1  # type: ignore[index]
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(run))
    cli = MaxKCLI(["fit", "--config", str(config)])
    callback = rollout_callback(cli.trainer)
    assert callback is not None
    assert callback.sampler.current is not None
    groups = callback.sampler.current.samples.groups
    assert len(groups) == 2
    assert all(len(score.verdicts) == len(group.problem.tests) for group in groups for score in group.scores)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
