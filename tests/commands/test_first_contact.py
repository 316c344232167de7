"""The mistakes of first users, each answered by one sentence that says what to do."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maxk_lightning.commands.trainer import MaxKCLI
from tests.support.paths import ROOT

TINY = ["fit", "--config", str(ROOT / "configs" / "tiny.yaml"), "--trainer.enable_progress_bar", "false"]
PROBLEM = '{"id": "sum", "prompt": "Print 3.", "tests": [{"input": "", "output": "3\\n"}]}\n'
FOREIGN = "data.validation and data.test: Builtin, while data.train is JsonLines"


def said(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a refused command printed."""
    with pytest.raises(SystemExit) as refused:
        MaxKCLI([*TINY, *args])
    assert refused.value.code not in (0, None)
    return capsys.readouterr().err


def test_a_wrong_flag_is_answered_without_pages_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(["--model.kl_koef", "1"], capsys).strip().splitlines()
    assert len(lines) < 6
    assert lines[-1].startswith("python -m maxk_lightning")
    assert "kl_koef" in lines[-1]


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["--rollout.reward", "json.JSONDecoder"], "has no method score(problems, completions)"),
        (["--model.objective", "json.JSONDecoder"], "Objective is a class with an attribute includes_ratio"),
        (["--rollout.engine", "json.JSONDecoder"], "RolloutEngine is a class with generate"),
        (["--data.train", "json.JSONDecoder"], "ProblemSource is a class with load"),
    ],
)
def test_what_a_seam_wants_is_said(args: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert hint in said(args, capsys)


def test_the_seed_is_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert "seed_everything" in said(["--seed_everything", "true"], capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    errors = said(["--trainer.accelerator", "gpu", "--trainer.default_root_dir", str(tmp_path)], capsys)
    assert "error: trainer.accelerator: torch sees 0 of the 1 GPUs" in errors
    assert len(errors.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("evaluations", "is_warned"), [([], True), (["--data.validation=null", "--data.test=null"], False)]
)
def test_own_problems_validated_on_the_built_in_ones_are_told(
    evaluations: list[str], is_warned: bool, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text(PROBLEM)
    root = ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.max_epochs", "0"]
    MaxKCLI([*TINY, *root, "--data.train", "maxk_lightning.data.JsonLines", f"--data.train.path={path}", *evaluations])
    assert any(FOREIGN in str(warning.message) for warning in recwarn) == is_warned


def test_an_objective_that_does_not_say_what_it_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no_flag.py").write_text("class NoFlag:\n    def __call__(self, rewards_PN, log_ratios_PN): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "model.objective: NoFlag needs an attribute includes_ratio" in said(
        ["--model.objective", "no_flag.NoFlag"], capsys
    )


@pytest.mark.parametrize("words", [["fit", "--print_config"], ["evaluate", "--help"]], ids=lambda words: words[0])
def test_outside_the_environment_the_way_in_is_shown(words: list[str]) -> None:
    code = (
        "import sys; sys.modules['lightning'] = sys.modules['jsonargparse'] = None\n"
        f"from maxk_lightning.cli import main\nsys.argv = ['maxk', *{words}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert ". .venv/bin/activate" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("key", "name"),
    [("data.train", "data.JsonLines"), ("data.validation", "data.Builtin"), ("rollout.engine", "rollouts.VLLMEngine")],
)
def test_the_path_of_a_class_of_ours_is_told(key: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    short = name.rpartition(".")[2]
    assert f"error: {key} is {short}: write maxk_lightning.{name}" in said([f"--{key}", short], capsys)
