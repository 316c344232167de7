"""Every YAML of configs/: it parses, its model can be built, its memory table is what the program computes."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from maxk_lightning.commands.memory_plan import Machine, workload_of
from maxk_lightning.commands.parser import Parser
from maxk_lightning.commands.trainer import MaxKCLI
from maxk_lightning.objectives import check_group_size
from maxk_lightning.policy import load_tokenizer
from maxk_lightning.policy.memory import GIB, describe, items_of, table
from tests.support import layouts
from tests.support.paths import ROOT

CONFIGS = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if not path.parent.name.startswith("study")]
"Those of configs/study* are plans and parts of configurations, see test_study.py."
BASELINES = sorted((ROOT / "configs" / "baselines").glob("*.yaml"))
POLICIES = ROOT / "tests" / "fixtures" / "policies"
"Descriptions (config.json) of published policies; weights and tokenizers are not needed here."
SIZES = {"0.5b": 494_032_768, "1.5b": 1_543_714_304, "7b": 7_615_616_512}
"Parameters by the model cards' exact counts, tied ones once."
CAPACITY_GIB = {"qwen7b": 139.8, "qwen0.5b_lora": 23.6}
"What GPUs of the stated size offer (H200; RTX 4090), by config; otherwise 80 GB:"
H100_GIB = 79.1
FITS = [path for path in CONFIGS if path.parent.name in ("configs", "baselines") and path.stem != "smollm2"]
"Those of a training run that need no policy from the hub, or one of which the description lies in `POLICIES`."
COVERED = [path for path in CONFIGS if path.stem.startswith("qwen")]


def _policy(size: str, directory: Path) -> str:
    """A directory that looks like a policy: the description of the real one, and a file in the place of its weights."""
    directory.mkdir(exist_ok=True)
    name = f"qwen2.5-coder-{size}"
    (directory / "config.json").write_text((POLICIES / name / "config.json").read_text())
    (directory / "model.safetensors").touch()
    return str(directory)


@cache
def _raw(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def _size(path: Path) -> str:
    found = re.fullmatch(r"Qwen/Qwen2.5-Coder-(.*)-Instruct", _raw(path)["model"]["policy"])
    assert found is not None
    return found[1].lower()


def _build(path: Path, policy: str) -> MaxKCLI:
    """The objects of a config, on this machine's CPU."""
    here = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.num_nodes", "1"]
    return MaxKCLI(["--config", str(path), "--model.policy", policy, *here], run=False)


def _machine(path: Path) -> Machine:
    trainer = _raw(path)["trainer"]
    strategy = trainer.get("strategy", {})
    return Machine(
        num_ranks=trainer["devices"] * trainer.get("num_nodes", 1),
        precision=trainer["precision"],
        is_sharded=bool(strategy),
        reduces_every_micro_batch=strategy.get("init_args", {}).get("reduce_every_micro_batch", False),
        has_gpu=True,
        capacity_bytes=int(CAPACITY_GIB.get(path.stem, H100_GIB) * GIB),
    )


@pytest.fixture(scope="module")
def parser() -> Parser:
    """One for all configs: it takes longer to make than to use."""
    made = MaxKCLI(["--config", str(ROOT / "configs" / "tiny.yaml")], run=False).parser
    assert isinstance(made, Parser)
    return made


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_what_the_parser_makes_of_it(path: Path, parser: Parser) -> None:
    made = yaml.safe_load(parser.dump(parser.parse_args(["--config", str(path)]), skip_unset=False))
    _assert_within(_raw(path), made, path.stem)


def test_a_config_prints_itself(capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "configs" / "qwen0.5b_lora.yaml"
    with pytest.raises(SystemExit) as stopped:
        MaxKCLI(["fit", "--config", str(path), "--print_config"])
    assert stopped.value.code == 0
    _assert_within(_raw(path), yaml.safe_load(capsys.readouterr().out), path.stem)


def _assert_within(part: Any, whole: Any, where: str) -> None:
    """Whatever the file says stands in what the parser made of it."""
    if isinstance(part, dict):
        for key, value in part.items():
            assert key in whole, f"{where}.{key}"
            _assert_within(value, whole[key], f"{where}.{key}")
    else:
        assert part == whole, where


@pytest.fixture(scope="module", params=COVERED, ids=lambda path: path.stem)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MaxKCLI]:
    """A config and the objects that it describes."""
    path: Path = request.param
    return path, _build(path, _policy(_size(path), tmp_path_factory.mktemp("built") / "policy"))


def test_the_model_can_be_built_and_the_objective_fits(built: tuple[Path, MaxKCLI]) -> None:
    path, cli = built
    size = _size(path)
    model = describe(cli.model.policy_name, getattr(torch, cli.model.dtype_name), cli.model.lora)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    num_adapter = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert model.num_parameters() - num_adapter == SIZES[size]
    assert (num_adapter > 0) == (cli.model.lora is not None)
    check_group_size(cli.model.objective, cli.config_init["rollout"].sampling.num_completions)
    optimizer = cli.model.optimizer_from([torch.nn.Parameter(torch.zeros(2))])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(_raw(path)["model"]["optimizer"]["init_args"]["lr"])
    trainer = _raw(path)["trainer"]
    assert _raw(path)["data"]["prompts_per_rollout"] % (trainer["devices"] * trainer.get("num_nodes", 1)) == 0


def test_the_memory_table_of_the_header_is_what_is_computed_and_fits(built: tuple[Path, MaxKCLI]) -> None:
    path, cli = built
    machine = _machine(path)
    items = items_of(workload_of(cli.model, cli.datamodule, cli.config_init["rollout"], machine))
    expected = table(items, machine.capacity_bytes)
    header = [line.removeprefix("#   ") for line in path.read_text().splitlines() if line.startswith("#   ")]
    assert expected in "\n".join(header), f"put this into {path.name}:\n{expected}"
    assert "\nfits into" in expected
    assert f"configs/{path.name}" in path.read_text()  # the command


@pytest.mark.slow
@pytest.mark.parametrize("path", FITS, ids=lambda path: path.stem)
def test_a_dry_run_needs_no_gpu_no_hub_and_no_weights(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """On a machine without a GPU it reports the data and prints the table of the header, but for the GPU's size."""
    changes = _local(path, tmp_path)
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as ended:
        MaxKCLI(["fit", "--config", str(ROOT / "configs" / "tiny.yaml"), "--config", str(path), *changes])
    said = capsys.readouterr().out
    assert ended.value.code in (0, None)
    assert "rows read" in caplog.text or "problems" in caplog.text
    assert said.startswith("GiB per rank")
    if path in COVERED:
        of_size = ("logits of a chunk", "recomputed layer", "total")
        for line in said.splitlines()[:-1]:
            assert line.startswith(of_size) or f"#   {line}" in path.read_text(), line
        assert "there is no GPU here" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    "devices", ["8", *(pytest.param(few, marks=pytest.mark.slow) for few in ("1", "[0, 1]", "auto"))]
)
def test_training_without_the_gpus_is_refused_in_a_sentence(
    devices: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.devices", devices]
    config = str(ROOT / "configs" / "qwen7b.yaml")
    with pytest.raises(SystemExit) as refused:
        MaxKCLI(["fit", "--config", config, *root])
    assert refused.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    sentence = r"trainer.accelerator: torch sees 0 of the \d GPUs that this run wants; .*dry_run.*"
    assert re.fullmatch(rf"python -m maxk_lightning: error: {sentence}", said)
    assert not (tmp_path / "run").exists()


def test_other_mistakes_of_the_trainer_are_sentences_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.strategy", "dpp"]
    with pytest.raises(SystemExit) as refused:
        MaxKCLI(["fit", "--config", str(ROOT / "configs" / "tiny.yaml"), *args])
    assert refused.value.code == 2
    assert "dpp" in capsys.readouterr().err.strip().splitlines()[-1]


def _local(path: Path, directory: Path) -> list[str]:
    """What a dry run of a config needs in the place of the hub: a tokenizer, a description, a few problems."""
    changes = ["--trainer.default_root_dir", str(directory / "run"), "--dry_run", "true"]
    if path in COVERED:
        policy = _policy(_size(path), directory / "policy")
        load_tokenizer("builtin").save_pretrained(policy)
        rows = [layouts.code_contests_row(name=str(number)) for number in range(20)]
        data = layouts.write_code_contests(directory / "problems", rows)
        splits = ("train", "validation", "test")
        changes += [arg for split in splits for arg in (f"--data.{split}.init_args.path", data)]
        changes += ["--model.policy", policy]
    if path.stem == "math":
        rows = [{"question": f"{number} + 1?", "answer": f"Add.\n#### {number + 1}"} for number in range(20)]
        data = directory / "questions.jsonl"
        data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        splits = ("train", "validation", "test")
        changes += [arg for split in splits for arg in (f"--data.{split}.init_args.path", str(data))]
        changes += ["--model.policy", "builtin"]
    return changes


def test_the_runs_of_the_paper_differ_in_hardware_only() -> None:
    """Four files say the same in most places; here is where they may differ."""
    may_differ = {"trainer", "checkpoint"}
    may_differ_in_model = {"dtype", "optimizer", "prompts_per_micro_batch"}
    first = _raw(ROOT / "configs" / "qwen7b.yaml")
    for name in ("qwen7b_80gb", "qwen7b_8gpu", "qwen7b_multinode", "qwen1.5b"):
        other = _raw(ROOT / "configs" / f"{name}.yaml")
        assert other["data"] == first["data"]
        for key in ("sampling", "eval_sampling", "reward"):
            assert other["rollout"][key] == first["rollout"][key]
        assert set(other) - may_differ == set(first) - may_differ
        models = [
            {key: value for key, value in run["model"].items() if key not in may_differ_in_model | {"policy"}}
            for run in (first, other)
        ]
        assert models[0] == models[1]
        assert other["model"]["optimizer"]["init_args"]["lr"] == 5e-6
        assert other["trainer"]["max_epochs"] == first["trainer"]["max_epochs"]


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_a_baseline_can_be_laid_over_a_big_config(path: Path, tmp_path: Path) -> None:
    """Objective and loss change together, and the objective is one that cannot explode."""
    configs = ["--config", str(ROOT / "configs" / "qwen7b.yaml"), "--config", str(path)]
    policy = ["--model.policy", _policy("7b", tmp_path / "policy"), "--trainer.accelerator", "cpu"]
    cli = MaxKCLI([*configs, *policy], run=False)
    wanted = _raw(path)["model"]["objective"]["class_path"]
    assert type(cli.model.objective).__name__ == wanted.rpartition(".")[2]
    log_ratios_PN = torch.linspace(-30, 30, 16, dtype=torch.float64)[None, torch.randperm(16)]
    rewards_PN = torch.rand(1, 16, dtype=torch.float64)
    assert cli.model.objective(rewards_PN, log_ratios_PN).abs().max() < 20
