"""The command line as a user meets it: bad input ends with one sentence, user classes work, help is fast."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from maxk_lightning.cli import PLAIN, TRAINING
from maxk_lightning.commands.trainer import MaxKCLI
from tests.support.paths import ROOT
from tests.support.refusals import refusal

TINY = ["--config", str(ROOT / "configs" / "tiny.yaml")]
CONFIGS = sorted(path.relative_to(ROOT) for path in (ROOT / "configs" / "baselines").glob("*.yaml"))


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--model.kl_koef", "1"], "kl_koef"),
        (["--model.kl_c", "1"], "kl_c"),  # abbreviations are not guessed
        (["--model.objective.k", "9"], "k"),
        (["--model.objective.k", "8", "--model.objective.baseline", "mean"], "baseline"),
        (["--model.objective.k", "0"], "k"),
        (["--model.policy", "no/such/directory/here"], "model.policy: no/such/directory/here is neither a directory"),
        (["--model.policy", str(ROOT / "tests")], "is not a policy directory: it has no config.json"),
        (["--rollout.sampling.temperature", "0"], "temperature is 0.0, must be positive"),
        (["--rollout.sampling.top_p", "0.9"], "rollout.sampling.top_p is 0.9"),
        (["--data.prompts_per_step", "3"], "data.prompts_per_step (3) must divide data.prompts_per_rollout (8)"),
        (["--data.max_prompt_tokens", "5"], "no problem has a prompt of at most 5 tokens"),
        (["--model.kl_target", "reference", "--model.kl_coef", "0"], "kl_target"),
        (["--model.objective", "GRPOO"], "GRPOO"),
        (["--trainer.gradient_clip_val", "1"], "trainer.gradient_clip_val: set model.max_grad_norm instead"),
        (["--trainer.precision", "bf16-true"], "trainer.precision is bf16-true, must be 32-true or bf16-mixed"),
        (["--model.max_grad_norm", "0"], "model.max_grad_norm is 0.0, must be positive"),
        (
            ["--model.objective.kk", "2"],
            "Option 'kk' is not accepted; there are k, baseline, clamp (max@k credits with",
        ),
        (["--ckpt_path", "best"], "ckpt_path is best, which Lightning knows only after a `fit` of the same process"),
        (
            [
                *("--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "5"),
                *("--checkpoint.monitor", "val/max_at_k/4"),
            ],
            "checkpoint.monitor waits for a metric of validations, but trainer.check_val_every_n_epoch is above",
        ),
        (["--checkpoint.save_last", "false"], "nothing of the run would be kept"),
        (
            ["--data.validation", "null", "--checkpoint.monitor", "val/max_at_k/4"],
            "checkpoint.monitor waits for a metric of validations, but data.validation is null",
        ),
        (
            ["--trainer.limit_val_batches", "0", "--checkpoint.monitor", "val/max_at_k/4"],
            "checkpoint.monitor waits for a metric of validations, but trainer.limit_val_batches is 0",
        ),
        (
            [
                "--checkpoint.train_time_interval",
                "00:00:10",
                "--checkpoint.every_n_epochs",
                "null",
                "--dry_run",
                "true",
            ],
            "checkpoint.train_time_interval has no effect here",
        ),
        (
            [
                *("--data.refill", "1", "--rollout.allocation.pilot", "2", "--rollout.allocation.max_completions", "8"),
                *("--dry_run", "true"),
            ],
            "rollout.allocation and data.refill exclude each other",
        ),
        (
            [
                "--model.objective",
                "maxk_lightning.objectives.ToldK",
                "--model.objective.ks",
                "[1,2]",
                "--dry_run",
                "true",
            ],
            "data.template needs {k}",
        ),
        (
            ["--trainer.accumulate_grad_batches", "2"],
            "trainer.accumulate_grad_batches: set model.prompts_per_micro_batch",
        ),
    ],
)
def test_a_bad_value_ends_with_one_sentence(
    args: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--trainer.default_root_dir", str(tmp_path)]
    assert sentence in refusal(["fit", *TINY, *root, *args], capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_a_stage_without_problems_is_refused(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    key = "data.validation" if stage == "validate" else "data.test"
    assert f"{key} is null: there is nothing to {stage}" in refusal([stage, *TINY, f"--{key}", "null"], capsys)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no problem in this file"),
        ('{"id": "a"}\n', ":1: `prompt` is missing"),
        ('{"id": "a", "prompt": "p", "tests": [{"input": "", "output": ""}]}\n{oops\n', ":2: not JSON"),
    ],
)
def test_a_bad_problem_file_is_named_with_line_and_reason(
    text: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text(text)
    data = ["--data.train", "maxk_lightning.data.JsonLines", "--data.train.path", str(path)]
    said = refusal(["fit", *TINY, *data], capsys)
    assert str(path) in said
    assert reason in said


def test_an_unknown_key_in_a_yaml_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: {objectiv: 3}\n")
    assert "objectiv" in refusal(["fit", "--config", str(path)], capsys)


@pytest.mark.parametrize(("word", "number"), [("validate", 1), ("trian", 4)])
def test_only_the_subcommand_asked_for_gets_a_parser(
    word: str, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []

    class Counting(MaxKCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            made.append(parser)
            super().add_arguments_to_parser(parser)

    with pytest.raises(SystemExit):
        Counting([word, "--print_config"])
    assert len(made) == number
    assert number == 1 or "'predict'" in capsys.readouterr().err


def test_an_earlier_run_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"")
    said = refusal(["fit", *TINY, "--trainer.default_root_dir", str(tmp_path)], capsys)
    assert "holds an earlier run: continue it with --ckpt_path last" in said


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_baseline_is_a_config_line(config: Path) -> None:
    cli = MaxKCLI([*TINY, "--config", str(ROOT / config)], run=False)
    from maxk_lightning.objectives import check_group_size

    check_group_size(cli.model.objective, cli.config_init["rollout"].sampling.num_completions)
    text = (ROOT / config).read_text()
    assert type(cli.model.objective).__name__ in text
    assert f"--config {config}" in text  # the header gives the command


def test_help_does_not_import_torch() -> None:
    code = (
        "import contextlib, sys\nfrom maxk_lightning.cli import PLAIN, TRAINING, main\n"
        "for command in ((), *zip(TRAINING + PLAIN)):\n"
        "    sys.argv = ['maxk', *command, '--help']\n"
        "    with contextlib.suppress(SystemExit): main()\n"
        "    assert 'torch' not in sys.modules, command"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("usage: python -m maxk_lightning") == 1 + len(TRAINING + PLAIN)


@pytest.mark.parametrize(("given", "expected"), [(None, "passive"), ("active", "active")])
def test_threads_wait_without_spinning_unless_the_user_says_otherwise(given: str | None, expected: str) -> None:
    code = (
        "import os, sys; from maxk_lightning.cli import main; sys.argv = ['maxk']; main(); "
        "assert 'torch' not in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == expected


def test_an_unknown_command_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "maxk_lightning", "trian"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "unknown command 'trian'" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "args", "sentence"),
    [
        ("torchao", ["--model.optimizer", "torchao.optim.Adam8bit"], "torchao"),
        ("peft", ["--model.lora.r", "8"], "model.lora needs peft: pip install 'maxk-lightning[lora]'"),
    ],
)
def test_a_missing_package_is_named(package: str, args: list[str], sentence: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None  # as if it were not installed\n"
        f"from maxk_lightning.cli import main\nsys.argv = ['maxk', 'fit', *{args}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


USER_CODE = '''
import torch
from maxk_lightning.types import Score


class HalfAndHalf:
    """A user's objective: no base class, no package change."""

    includes_ratio = False

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, rewards_PN, log_ratios_PN):
        return self.scale * (rewards_PN - rewards_PN.mean(1, keepdim=True)).double()


class Brevity:
    """A user's reward."""

    def __init__(self, limit: int = 100) -> None:
        self.limit = limit

    def score(self, problems, completions):
        return [[Score(reward=1 - min(len(c), self.limit) / self.limit, verdicts=()) for c in g] for g in completions]
'''


@pytest.mark.slow
def test_the_user_s_own_objective_and_reward_train_test_and_predict(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(USER_CODE)
    run = {
        "trainer": {"default_root_dir": str(tmp_path / "run"), "max_epochs": 2, "enable_progress_bar": False},
        "model": {"objective": {"class_path": "mine.HalfAndHalf", "init_args": {"scale": 0.5}}},
        "rollout": {
            "reward": {"class_path": "mine.Brevity", "init_args": {"limit": 80}},
            "sampling": {"num_completions": 4, "max_new_tokens": 16},
            "eval_sampling": {"num_completions": 2, "max_new_tokens": 16},
        },
        "data": {
            split: {"class_path": "maxk_lightning.data.Builtin", "init_args": {"split": name, "limit": 4}}
            for split, name in {"train": "train", "validation": "validation", "test": "test"}.items()
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    checkpoint = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    for command in (["fit"], ["validate"], ["test", "--ckpt_path", checkpoint], ["predict", "--ckpt_path", checkpoint]):
        args = [sys.executable, "-m", "maxk_lightning", *command, "--config", "run.yaml"]
        done = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    assert f"wrote {tmp_path / 'run' / 'predictions.jsonl'}, for `score`" in done.stderr
    records = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == ["test-000", "test-001", "test-002", "test-003"]
    assert all(len(record["completions"]) == 2 for record in records)
