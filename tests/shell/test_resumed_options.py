"""What a resumed run trains: its own configuration, and over it the options that the user gives."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from maxk_lightning.checkpoints import read_configurations
from maxk_lightning.commands.export import export
from maxk_lightning.commands.trainer import MaxKCLI
from tests.support.runs import scalars
from tests.support.tiny_run import run

ADAM = {"model.optimizer": "torch.optim.Adam", "model.optimizer.lr": 1e-3}


def _resume(root: Path, policy: str, rollouts: int, **options: Any) -> None:
    run("fit", root, policy, ckpt_path="last", **{"trainer.max_epochs": rollouts, **options})


def _used(root: Path) -> dict[str, Any]:
    """What the last checkpoint was trained with."""
    return dict(yaml.safe_load(read_configurations(root / "checkpoints" / "last.ckpt")[-1].text))


@pytest.fixture(scope="module")
def begun(random_policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rollouts, with options that its YAML does not hold."""
    root = tmp_path_factory.mktemp("begun")
    run("fit", root, random_policy, **ADAM, **{"model.objective": "MaxAtK", "model.objective.k": 2})
    return root


@pytest.fixture
def copy(begun: Path, tmp_path: Path) -> Path:
    """A copy of that run, in another place."""
    return Path(shutil.copytree(begun, tmp_path / "copy"))


def test_options_need_not_be_repeated(copy: Path, random_policy: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        _resume(copy, random_policy, 3)
    used = _used(copy)["model"]
    assert used["objective"]["class_path"].endswith("MaxAtK")
    assert used["objective"]["init_args"]["k"] == 2
    assert list(scalars(copy)["train/learning_rate"].values()) == pytest.approx([1e-3] * 9)
    assert "with its own configuration" in caplog.text
    assert "from here on trainer.max_epochs is 3 (was 2)" in caplog.text


def test_a_yaml_that_says_otherwise_is_told_to_be_overridden(
    copy: Path, random_policy: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "other.yaml").write_text("model: {kl_coef: 0.5}\n")
    args = ["fit", "--config", str(copy / "other.yaml"), "--trainer.default_root_dir", str(copy), "--ckpt_path", "last"]
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        MaxKCLI([*args, "--trainer.max_epochs", "3"])
    assert "model.kl_coef stays 0.01: --config says 0.5, which only an option --model.kl_coef can change" in caplog.text
    assert _used(copy)["model"]["kl_coef"] == 0.01


def test_options_of_the_command_line_change_the_run_and_are_kept(
    copy: Path, random_policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        _resume(copy, random_policy, 3, **{"model.objective.k": 3, "rollout.sampling.temperature": 0.7})
    assert "from here on model.objective.k is 3 (was 2)" in caplog.text
    assert "from here on rollout.sampling.temperature is 0.7 (was 1.0)" in caplog.text
    history = read_configurations(copy / "checkpoints" / "last.ckpt")
    assert [each.step for each in history] == [0, 6]  # 2 rollouts of 3 PPO iterations
    ks = [yaml.safe_load(each.text)["model"]["objective"]["init_args"]["k"] for each in history]
    assert ks == [2, 3]
    assert (copy / "config-from-step-0.yaml").read_text() == history[0].text
    assert (copy / "config.yaml").read_text() == history[1].text
    export(str(copy / "checkpoints" / "last.ckpt"), str(copy / "policy"))
    card = (copy / "policy" / "README.md").read_text()
    assert "- from optimizer step 6 on `model.objective.k` 3 (before: 2)" in card
    assert "MaxAtK(k=3" in card


def test_a_new_learning_rate_is_used(copy: Path, random_policy: str) -> None:
    _resume(copy, random_policy, 3, **{"model.optimizer.lr": 5e-6})
    rates = scalars(copy)["train/learning_rate"]
    assert [rates[step] for step in range(9)] == pytest.approx([1e-3] * 6 + [5e-6] * 3)
    (optimizer,) = torch.load(copy / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"]
    assert optimizer["param_groups"][0]["lr"] == 5e-6
    assert optimizer["state"][0]["step"] == 9  # the moments go on


def test_a_new_schedule_goes_on_where_it_would_be(copy: Path, random_policy: str) -> None:
    schedule = {"model.lr_scheduler": "LinearLR", "model.lr_scheduler.start_factor": 0.1}
    _resume(copy, random_policy, 3, **schedule, **{"model.lr_scheduler.total_iters": 10})
    rates = scalars(copy)["train/learning_rate"]
    assert [rates[step] for step in (6, 7, 8)] == pytest.approx([1e-3 * (0.1 + 0.9 * step / 10) for step in (6, 7, 8)])


def test_another_class_of_optimizer_is_refused(
    copy: Path, random_policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _resume(copy, random_policy, 3, **{"model.optimizer": "torch.optim.SGD", "model.optimizer.lr": 1})
    assert "model.optimizer is torch.optim.SGD: the checkpoint holds the states of" in capsys.readouterr().err


def test_the_learning_rate_is_that_of_its_step(random_policy: str, tmp_path: Path) -> None:
    warm_up = {"model.lr_scheduler": "LinearLR", "model.lr_scheduler.start_factor": 0.1}
    run("fit", tmp_path, random_policy, **ADAM, **warm_up, **{"model.lr_scheduler.total_iters": 4})
    rates = scalars(tmp_path)["train/learning_rate"]
    expected = [1e-3 * min(1.0, 0.1 + 0.9 * step / 4) for step in range(6)]
    assert [rates[step] for step in range(6)] == pytest.approx(expected)


def test_last_without_a_checkpoint_begins_a_run_and_says_so(
    random_policy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        _resume(tmp_path, random_policy, 1)
    assert "holds no checkpoint: the run starts afresh" in caplog.text
    assert "save_last=True" not in caplog.text
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()
