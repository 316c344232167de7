"""Every command and code block of README.md and docs/ does what a reader who follows the page would see: it runs.

`tests/support/pages.py` says which block is what. Python blocks and commands of a page run in order in one directory
that looks like a clone of the repository, commands that take minutes with the options of `SHORTER` behind them, and
what cannot run here is listed with its reason in `NOT_RUN`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from maxk_lightning.commands.parser import Parser
from maxk_lightning.commands.trainer import MaxKCLI
from tests.support.pages import PAGES, Block, blocks_of, commands_of, name_of
from tests.support.paths import ROOT

SHORTER = {
    "fit": "--trainer.max_epochs 1 --trainer.limit_val_batches 1 --rollout.sampling.max_new_tokens 48 "
    "--rollout.eval_sampling.max_new_tokens 16 --trainer.accelerator cpu",
    "evaluate": "--num_samples 4 --rollout.eval_sampling.max_new_tokens 48",
    "evaluate --config configs": "--data.test.limit 3",
    "best": "--num_samples 4",
}
"Options that a test puts behind the commands that begin so; the last of equal options counts."
ENVIRONMENT = "what installs packages"
GPU = "needs a GPU"
HUB = "needs the hub"
STUDY = "hours: a study, whose kept results other tests hold against the page"
NOT_RUN = {
    ("README.md", "scripts/demo.sh"): "5.5 CPU minutes; docs/quickstart.md runs its steps",
    ("README.md", "pip install ."): ENVIRONMENT,
    ("docs/quickstart.md", "scripts/demo.sh"): "5.5 CPU minutes; the page runs its steps below",
    ("docs/how_to/math.md", "pip install"): ENVIRONMENT,
    ("docs/how_to/questions.md", "tensorboard --logdir"): "a server that does not end",
    ("docs/how_to/prompts.md", "scripts/get_smollm2.sh"): "downloads 93 MB; tests/shell/test_real_model.py runs it",
    ("docs/how_to/vllm.md", "pip install vllm"): ENVIRONMENT,
    ("docs/how_to/vllm.md", "configs/tiny_vllm.yaml"): "tests/shell/test_vllm_fit.py runs it",
    ("docs/how_to/gpus.md", "--trainer.strategy fsdp2 --trainer.devices 8"): GPU,
    ("docs/how_to/gpus.md", "torchrun --nnodes 2"): GPU,
    ("docs/how_to/gpus.md", "srun python"): GPU,
    (
        "docs/how_to/best_of_n.md",
        "--serve 8321",
    ): "a server that does not end; tests/commands/test_best_server.py runs it",
    (
        "docs/leaderboard.md",
        "scripts/leaderboard.py",
    ): "a training of minutes; tests/scripts/test_leaderboard.py tests parts",
    ("docs/best_of_n.md", "--serve 8321"): "a server that does not end; tests/commands/test_best_server.py runs it",
    ("docs/best_of_n.md", "scripts/study.py --plan configs/study_selection"): STUDY,
    (
        "docs/best_of_n.md",
        "scripts/study_report.py --plan configs/study_selection",
    ): "tests/scripts/test_study.py runs it",
    ("docs/best_of_n.md", "configs/smollm2.yaml"): HUB,
    (
        "docs/benchmarks.md",
        "scripts/bench_async.py",
    ): "twelve quiet minutes; test_bench_async.py tests its sums",
    ("docs/prediction.md", "scripts/prediction_study.py"): "tests/scripts/test_prediction_study.py runs parts of it",
    ("docs/results.md", "scripts/study.py --again off_policy_k4"): STUDY,
    ("docs/results.md", "scripts/study.py --quick"): STUDY,
    ("docs/results.md", "scripts/study.py --results runs/mine"): STUDY,
    ("docs/results_smollm2.md", "scripts/study.py --plan configs/study_smollm2"): STUDY,
    ("docs/rivals.md", "scripts/study.py --plan configs/study_rivals"): STUDY,
    ("docs/staleness.md", "scripts/study.py --plan configs/study_staleness"): STUDY,
    ("docs/staleness_smollm2.md", "scripts/study.py --plan configs/study_smollm2_staleness"): STUDY,
}
"(Page, part of the command): why it is not run."
TIMEOUT_S = 580


def _is_run(page: Path, command: str) -> bool:
    return not any(page == ROOT / name and part in command for name, part in NOT_RUN)


def _shortened(command: str) -> str:
    """A command with the options that make it short."""
    words = command.removeprefix("python -m maxk_lightning ")
    if words == command:
        return command
    return " ".join([command, *(options for start, options in SHORTER.items() if words.startswith(start))])


def _bash_of(page: Path) -> list[str]:
    """All commands of a page."""
    return [c for block in blocks_of(page) if block.language == "bash" for c in commands_of(block.text)]


def _steps(page: Path) -> list[Block]:
    """What a reader of the page runs, in order: Python, and commands."""
    return [b for b in blocks_of(page) if b.file is None and b.language in ("python", "bash")]


def _has_steps(page: Path) -> bool:
    is_code = any(block.language == "python" for block in _steps(page))
    return is_code or any(_is_run(page, command) for command in _bash_of(page))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A directory with what a clone holds, and the environment that scripts/setup.sh makes."""
    for name in ("configs", "scripts", "examples", "docs", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def _write_files(page: Path, directory: Path) -> None:
    for block in blocks_of(page):
        if block.file is not None:
            (directory / block.file).write_text(block.text, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if _has_steps(page)], ids=name_of)
def test_the_code_of_a_page_runs(page: Path, clone: Path) -> None:
    _write_files(page, clone)
    script = ["set -euo pipefail"]
    python: list[str] = []
    for step in _steps(page):
        if step.language == "python":
            python.append(step.text)  # with what came before, as a reader's session has it
            (clone / f"session{len(python)}.py").write_text("\n".join(python), encoding="utf-8")
            script.append(f"python session{len(python)}.py")
        else:
            script += [_shortened(command) for command in commands_of(step.text) if _is_run(page, command)]
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{clone}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
        "HF_HUB_OFFLINE": "1",
    }
    command = ["bash", "-x", "-c", "\n".join(script)]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def parser() -> Parser:
    """The parser of `fit`: it takes longer to make than to use."""
    made = MaxKCLI(["--config", str(ROOT / "configs" / "tiny.yaml")], run=False).parser
    assert isinstance(made, Parser)
    return made


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.language == "yaml" for b in blocks_of(p))], ids=name_of)
def test_the_parser_takes_every_configuration_of_a_page(
    page: Path, clone: Path, parser: Parser, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_files(page, clone)
    monkeypatch.chdir(clone)
    monkeypatch.syspath_prepend(str(clone))
    for module in ("mine", "my_rewards"):  # those of another page
        monkeypatch.delitem(sys.modules, module, raising=False)
    for number, block in enumerate(b for b in blocks_of(page) if b.language == "yaml"):
        part = yaml.safe_load(block.text)
        assert isinstance(part, dict), block.text
        if block.file == "mine.yaml" and "easy" in part:  # a file of benchmarks, which `evaluate` reads
            continue
        (clone / f"part{number}.yaml").write_text(block.text, encoding="utf-8")
        made = parser.parse_args(["--config", "configs/tiny.yaml", "--config", f"part{number}.yaml"])
        assert set(part) <= set(made.as_dict())
    for module in ("mine", "my_rewards"):
        sys.modules.pop(module, None)


def test_every_exception_is_still_on_its_page() -> None:
    for name, part in NOT_RUN:
        assert any(part in command for command in _bash_of(ROOT / name)), f"{part} is no command of {name}: drop it"


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    kinds = {block.language for page in PAGES for block in blocks_of(page)}
    assert kinds <= {"bash", "python", "yaml", "json", "csv", "text"}
    data = [(name_of(p), b.text) for p in PAGES for b in blocks_of(p) if b.language in ("json", "csv") and not b.file]
    assert data == []
    fences = [re.findall(r"^```", page.read_text("utf-8"), re.MULTILINE) for page in PAGES]
    assert [len(found) // 2 for found in fences] == [len(blocks_of(page)) for page in PAGES]
