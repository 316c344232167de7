"""The study: equal budgets, a runner that goes on after kill -9, tables that follow from the kept results."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import study
import study_adapters
import study_again
import study_comparisons
import study_controls
import study_figures
import study_groups
import study_programs
import study_report
import study_results
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from study_results import CONFIGS, Benchmark, Job, Result, StudyPlan, Table, Told, read_plan

from maxk_lightning.commands.trainer import MaxKCLI
from maxk_lightning.data.mistakes import GOOD_CONTEXT_RIGHT, habit
from maxk_lightning.data.pipelines import VAGUE, VAGUE_PHRASES, VARIANTS, Pipeline, Step
from maxk_lightning.evaluation.samples import to_sample
from maxk_lightning.policy import load_model
from maxk_lightning.policy.adapter import write_merged
from maxk_lightning.types import Completion, Score
from tests.support.adapters import randomise
from tests.support.paths import ROOT

PLAN = read_plan(ROOT / CONFIGS)
PLANS = [
    PLAN,
    *(
        read_plan(ROOT / "configs" / name)
        for name in (
            "study_smollm2",
            "study_selection",
            "study_staleness",
            "study_smollm2_staleness",
            "study_rivals",
        )
    ),
]
SMALL: dict[str, Any] = {
    "seed_everything": 1,
    "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False},
    "model": {"policy": "builtin", "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-4}}},
    "data": {
        "train": {"class_path": "maxk_lightning.data.Builtin", "init_args": {"split": "train"}},
        "validation": None,
        "test": {"class_path": "maxk_lightning.data.Builtin", "init_args": {"split": "test", "limit": 4}},
        "prompts_per_rollout": 2,
    },
    "rollout": {"sampling": {"num_completions": 8, "max_new_tokens": 32}, "eval_sampling": {"max_new_tokens": 32}},
}
SMALL_PLAN: dict[str, Any] = {
    "tuning": {"seed": 0, "num_samples": 4},
    "test": {"num_samples": 8},
    "select": "public,agreement+public",
    "quick": {"num_samples": 8, "seeds": [1], "arms": ["base", "grpo_3"]},
    "test_ks": [1, 4, 8],
    "drawn_tables": ["main"],
    "grouped_tables": [],
    "tuning_options": {"trainer.max_epochs": 2},
    "controls": {"base": {"temperature": [0.5]}, "grpo_3": {"temperature": [0.5], "towards": [0.5]}},
    "control_samples": 4,
    "common": ["common.yaml"],
    "page": "docs/results.md",
    "results": "docs/results/study",
    "benchmarks": {
        "vague": {
            "policy": "builtin-vague",
            "learning_rates": [1e-4, 2e-4],
            "train": {"data.train.variant": "vague"},
            "validation": {"data.test.variant": "vague", "data.test.split": "validation"},
            "test": {"data.test.variant": "vague", "data.test.split": "test", "data.test.num_public": 2},
        }
    },
    "arms": {"base": {"label": "base"}, "grpo_3": {"label": "GRPO"}, "grpo_1": {"label": "G1", "tuned_as": "grpo_3"}},
    "tables": {"main": {"benchmark": "vague", "seeds": [1], "against": ["base"], "arms": ["base", "grpo_3"]}},
}


OTHER_BUDGETS = {
    "reuse_1": (13824, 144),
    "reuse_2": (6912, 144),
    "reuse_4": (3456, 144),
    "replay": (3456, 72),
    "uniform_60": (2784, 87),
    "allocated_60": (2784, 87),
}
"Completions and steps of the arms that differ in them."
SMOLLM2_BUDGETS = {"study_smollm2": (7680, 180), "study_smollm2_staleness": (384, 36)}
"Those of the plans on SmolLM2."


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "arm"), [(plan, arm) for plan in PLANS for arm in plan.arms if arm != "base"])
def test_every_arm_has_the_same_budget(plan: StudyPlan, arm: str, capsys: pytest.CaptureFixture[str]) -> None:
    configs = [plan.configs / name for name in plan.common] + [plan.config_of(arm)]
    words = [word for path in configs for word in ("--config", str(ROOT / path))]
    with pytest.raises(SystemExit) as stopped:
        MaxKCLI(["fit", *words, *study.as_options(plan.options_of(arm)), "--print_config"])
    assert stopped.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    data, num_rollouts = config["data"], config["trainer"]["max_epochs"]
    num_completions = num_rollouts * data["prompts_per_rollout"] * config["rollout"]["sampling"]["num_completions"]
    steps_per_iteration = data["prompts_per_rollout"] // (data["prompts_per_step"] or data["prompts_per_rollout"])
    num_steps = num_rollouts * data["num_ppo_iterations"] * steps_per_iteration
    usual = SMOLLM2_BUDGETS.get(plan.configs.name, (4608, 144))
    assert (num_completions, num_steps) == OTHER_BUDGETS.get(arm, usual)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.configs.name)
def test_every_yaml_is_an_arm(plan: StudyPlan) -> None:
    files = {path.resolve() for path in plan.configs.glob("*.yaml") if path.stem not in ("common", "plan")}
    files |= {(plan.configs / arm["config"]).resolve() for arm in plan.arms.values() if "config" in arm}
    assert files == {plan.config_of(arm).resolve() for arm in plan.arms if arm != study_results.BASE}


def _write_configs(directory: Path, num_rollouts: int = 4, plan: dict[str, Any] = SMALL_PLAN) -> None:
    directory.mkdir()
    trainer = {**SMALL["trainer"], "max_epochs": num_rollouts}
    (directory / "common.yaml").write_text(yaml.safe_dump({**SMALL, "trainer": trainer}))
    (directory / "plan.yaml").write_text(yaml.safe_dump(plan))
    for arm in ("grpo_3", "grpo_1"):
        (directory / f"{arm}.yaml").write_text(PLAN.config_of(arm).read_text())


def _has_members(process_group: int) -> bool:
    try:
        os.killpg(process_group, 0)
    except ProcessLookupError:
        return False
    return True


def _written_at(results: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.suffix in {".json", ".md"}}


def _study(directory: Path) -> list[str]:
    command = [sys.executable, str(ROOT / "scripts/study.py"), "--jobs", "2"]
    for option, name in (("plan", "configs"), ("results", "results"), ("directory", "directory")):
        command += [f"--{option}", str(directory / name)]
    return command


def _kill_once_there_is(directory: Path, pattern: str, study: subprocess.Popen[bytes]) -> None:
    """Kill a study when it has written a file, and wait until it and its trainings are gone."""
    deadline = time.monotonic() + 600
    while not list(directory.glob(pattern)) and time.monotonic() < deadline:
        assert study.poll() is None, "the study ended early"
        time.sleep(0.2)
    study.kill()
    study.wait()
    while _has_members(study.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _has_members(study.pid)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trainings_end_with_a_killed_study(tmp_path: Path) -> None:
    _write_configs(tmp_path / "configs", num_rollouts=10**9)
    started = subprocess.Popen(_study(tmp_path), cwd=ROOT, start_new_session=True)
    try:
        _kill_once_there_is(tmp_path, "directory/*/*/checkpoints/last.ckpt", started)
    finally:
        if _has_members(started.pid):
            os.killpg(started.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_goes_on_after_kill_9(tmp_path: Path) -> None:
    _write_configs(tmp_path / "configs")
    command = _study(tmp_path)
    subprocess.run([*command, "--table", "main", "--arm", "base"], cwd=ROOT, check=True)
    kept = sorted(path.stem for path in (tmp_path / "results").glob("*/*/*.json"))
    assert kept == ["base-lr0-seed0", "base-lr0-seed1", "base-lr0-seed1-temperature-0.5"]
    started = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    _kill_once_there_is(tmp_path, "results/*/*/grpo_3*.json", started)
    kept = _written_at(tmp_path / "results")
    assert kept
    subprocess.run(command, cwd=ROOT, check=True)
    results = sorted(str(path.relative_to(tmp_path / "results")) for path in (tmp_path / "results").glob("*/*/*.json"))
    plan = read_plan(tmp_path / "configs")
    rate = study_results.tuned_learning_rate(plan, tmp_path / "results", "vague", "grpo_3")
    assert results == [
        "vague/controls/base-lr0-seed1-temperature-0.5.json",
        f"vague/controls/grpo_3-lr{rate:g}-seed1-temperature-0.5.json",
        f"vague/controls/grpo_3-lr{rate:g}-seed1-towards-0.5.json",
        "vague/test/base-lr0-seed1.json",
        f"vague/test/grpo_3-lr{rate:g}-seed1.json",
        "vague/validation/base-lr0-seed0.json",
        "vague/validation/grpo_3-lr0.0001-seed0.json",
        "vague/validation/grpo_3-lr0.0002-seed0.json",
    ]
    finished = _written_at(tmp_path / "results")
    assert kept.items() <= finished.items()
    assert "max@k" in (tmp_path / "results" / "compare-main-seed1.md").read_text()
    subprocess.run(command, cwd=ROOT, check=True)
    assert _written_at(tmp_path / "results") == finished, "a finished study ran something again"
    for place, num_rollouts in ((4, 4), (-1, 2)):  # the tries are shorter
        trained = study_results.read(tmp_path / "results" / results[place])
        assert [len(values) for values in trained.curves.values()] == [num_rollouts] * len(trained.curves)
    trained = study_results.read(tmp_path / "results" / results[4])
    assert trained.max_at_k_PK.shape == (4, 4)
    contents = dict(study_report.blocks(plan, tmp_path / "results"))
    assert "GRPO" in contents["main"]
    realised = trained.values_PK("realised:agreement+public")
    assert realised.shape == (4, 4)
    np.testing.assert_allclose(realised[:, 0], trained.max_at_k_PK[:, 0])  # of one sample there is no choice
    assert (realised <= trained.max_at_k_PK + 1e-12).all()
    assert f"| `agreement+public` | {realised[:, 0].mean():.3f} (100%) |" in contents["main realised"]
    assert "| base | GRPO |" in contents["main realised by public"]
    assert "| GRPO |" in contents["main format"]
    assert re.search(
        r"\| base, temperature 0.5 \|.*\| GRPO, 50% of the base's weights \|", contents["main controls"], re.S
    )
    assert [name for name, _ in study_report.figures(plan, tmp_path / "results")] == [
        "main_curves",
        "main_differences",
        "main_entropy",
        "main_training",
        "main_temperatures",  # of fewer samples than the tests
        "vague_learning_rates",
    ]
    assert "max@4" in contents["main temperatures tests"]
    assert "max@8" not in contents["main temperatures tests"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_best_try_with_the_seed_of_a_table_is_trained_further(tmp_path: Path) -> None:
    vague = SMALL_PLAN["benchmarks"]["vague"]
    longer = {**vague, "train": {**vague["train"], "trainer.max_epochs": 4}}
    tuning = {"tuning": {"seed": 1, "num_samples": 4}, "select": "", "controls": {}, "benchmarks": {"vague": longer}}
    _write_configs(tmp_path / "configs", plan={**SMALL_PLAN, **tuning})
    subprocess.run(_study(tmp_path), cwd=ROOT, check=True)
    results = tmp_path / "results/vague"
    [test] = (study_results.read(path) for path in (results / "test").glob("grpo_3*.json"))
    tried = study_results.read(results / "validation" / f"{test.job.name}.json")
    for tag, values in tried.curves.items():
        assert (len(values), len(test.curves[tag])) == (2, 4)
        assert values == test.curves[tag][:2]
    again = [*_study(tmp_path), "--again", "grpo_3", "--seed", "1", "--table", "main"]  # four rollouts in one go
    told = subprocess.run(again, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "training curves: identical\nrewards of all samples: identical\n" in told


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_kept_job_is_run_again_elsewhere_and_compared(tmp_path: Path) -> None:
    _write_configs(tmp_path / "configs", num_rollouts=2)
    for rate, num_solved in ((1e-4, 1), (2e-4, 2)):
        _keep(tmp_path / "results", _job("grpo_3", rate, "validation"), {"test-000": num_solved})
    _keep(tmp_path / "results", _job("base", 0.0, "validation"), {"test-000": 1})
    subprocess.run(_study(tmp_path), cwd=ROOT, check=True)
    kept = _written_at(tmp_path / "results")
    again = [*_study(tmp_path), "--again", "grpo_3", "--seed", "1", "--table", "main"]
    for _ in range(2):
        told = subprocess.run(again, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        assert "training curves: identical\nrewards of all samples: identical\n" in told
        assert _written_at(tmp_path / "results") == kept
        assert (tmp_path / "directory_again/results/vague/test/grpo_3-lr0.0002-seed1.json").is_file()
    told = subprocess.run(_study(tmp_path), cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "nothing was run; --again grpo_3 --seed 1 --table main runs one job again" in told


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_policy_is_sampled_again_from_its_kept_adapter(tmp_path: Path) -> None:
    train = {"data.train.variant": "vague", "data.train.limit": 3}
    vague = {**SMALL_PLAN["benchmarks"]["vague"], "learning_rates": [1e-2], "train": train}
    main = {"benchmark": "vague", "seeds": [1], "against": [], "arms": ["grpo_3"]}
    changed = {
        "select": "",
        "keeps_adapters": True,
        "controls": {"grpo_3": {"towards": [0.5]}},
        "seen_samples": 2,
        "benchmarks": {"vague": vague},
        "tables": {"main": main},
    }
    _write_configs(tmp_path / "configs", num_rollouts=1, plan={**SMALL_PLAN, **changed})
    common = tmp_path / "configs/common.yaml"
    common.write_text(common.read_text().replace("model:\n", "model:\n  lora: {r: 4, alpha: 8}\n"))
    subprocess.run(_study(tmp_path), cwd=ROOT, check=True)
    kept = tmp_path / "results/vague/adapters/grpo_3-lr0.01-seed1"
    assert json.loads((kept / "adapter_config.json").read_text())["base_model_name_or_path"] == "builtin-vague"
    weights = load_file(kept / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert any("lora_B" in name and weight.any() for name, weight in weights.items())
    evaluations = sorted((tmp_path / "results/vague").glob("[ct]*/*.json"))
    assert [path.parent.name for path in evaluations] == ["controls", "controls", "test"]
    evaluated = [study_results.read(path) for path in evaluations]
    assert [sorted(result.rewards)[0] for result in evaluated] == ["train-000", "test-000", "test-000"]
    contents = dict(study_report.blocks(read_plan(tmp_path / "configs"), tmp_path / "results"))
    assert contents["main seen"].count("| GRPO |") == contents["main controls"].count("| GRPO |") == 1
    for path in evaluations:
        path.unlink()
    shutil.rmtree(tmp_path / "directory")
    study_results.read.cache_clear()
    subprocess.run(_study(tmp_path), cwd=ROOT, check=True)
    assert not list((tmp_path / "directory").rglob("fit.log")), "it was trained again"
    for before, path in zip(evaluated, evaluations, strict=True):
        again = study_results.read(path)
        assert (again.job, again.rewards, again.curves) == (before.job, before.rewards, before.curves)
        assert again.seconds["fit"] == before.seconds["fit"] > 0
    assert evaluated[-1].curves


def test_a_share_of_an_adapter_lies_between_the_base_and_the_trained_weights(
    random_policy: str, tmp_path: Path
) -> None:
    model = get_peft_model(load_model(random_policy), LoraConfig(r=4, target_modules="all-linear"))
    randomise(model)
    model.save_pretrained(tmp_path / "exported")
    training = study_adapters.Training(seconds=1.5, curves={"train/entropy": [0.5, 0.25]})
    study_adapters.keep_adapter(tmp_path / "exported", tmp_path / "kept", "owner/base", training)
    assert study_adapters.read_training(tmp_path / "kept") == training
    merged = {}
    for share in (0.0, 0.25, 1.0):
        study_adapters.place_adapter(tmp_path / "kept", tmp_path / f"{share}", random_policy, share)
        write_merged(str(tmp_path / f"{share}"), str(tmp_path / f"{share}-merged"))
        merged[share] = load_model(str(tmp_path / f"{share}-merged")).state_dict()
    trained = model.merge_and_unload().state_dict()
    for name, weight in load_model(random_policy).state_dict().items():
        assert torch.equal(merged[0.0][name], weight)
        torch.testing.assert_close(merged[1.0][name], trained[name], atol=0.02, rtol=0)  # kept in bfloat16
        between = 0.75 * weight + 0.25 * merged[1.0][name]
        torch.testing.assert_close(merged[0.25][name], between, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_arm_that_is_told_k_is_asked_for_every_k_and_its_numbers_are_of_those_samples(tmp_path: Path) -> None:
    arms = {"base": {"label": "base"}, "told_k": {"label": "told", "told_k": "same"}, "untold": {"label": "not told"}}
    vague = {**SMALL_PLAN["benchmarks"]["vague"], "learning_rates": [1e-4]}
    main = {"benchmark": "vague", "seeds": [1], "against": ["untold"], "arms": list(arms)}
    changed = {"select": "", "controls": {}, "arms": arms, "benchmarks": {"vague": vague}, "tables": {"main": main}}
    configs = tmp_path / "configs"
    _write_configs(configs, num_rollouts=1, plan={**SMALL_PLAN, **changed})
    for arm in ("told_k", "untold"):
        (configs / f"{arm}.yaml").write_text((ROOT / f"configs/study_rivals/{arm}.yaml").read_text())
    subprocess.run(_study(tmp_path), cwd=ROOT, check=True)
    plan, results = read_plan(configs), tmp_path / "results"
    told, untold = (
        study_results.read(results / f"vague/test/{arm}-lr0.0001-seed1.json") for arm in ("told_k", "untold")
    )
    assert list(told.told) == ["1", "2", "4", "8"]
    assert not untold.told
    out = tmp_path / "directory/vague/told_k-lr0.0001-seed1/test"
    curve = {point["k"]: point["value"] for point in json.loads((out / "told.json").read_text())["max_at_k"]}
    np.testing.assert_allclose(told.max_at_k_PK.mean(0), [curve[k] for k in (1, 2, 4, 8)], rtol=1e-12)
    assert told.rewards == told.told["8"].rewards
    contents = dict(study_report.blocks(plan, results))
    assert f"| told | 2 | {told.told_only('2').max_at_k_PK[:, 0].mean():.3f} |" in contents["main told"]
    assert "| not told | told |" in contents["main tests"]
    assert "max@k" in (results / "compare-main-seed1.md").read_text()
    again = [*_study(tmp_path), "--again", "told_k", "--seed", "1", "--table", "main"]
    said = subprocess.run(again, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "rewards of all samples: identical\n" in said


def test_different_correct_behaviours_follow_from_the_kept_counts(tmp_path: Path) -> None:
    _keep(tmp_path, _job("grpo_3", 1e-4, "test"), {"a": 3, "b": 0})
    (kept,) = study_results.read_all(tmp_path, "vague", "test")
    assert "main distinct" not in dict(study_report._curve_blocks("main", [_method(kept)], [1, 8]))
    result = replace(kept, correct={"a": [2, 1], "b": []})
    # of 8 samples 2 are right in one way and 1 in another: 1 - C(6, k) / C(8, k) + 1 - C(7, k) / C(8, k)
    expected = [3 / 8, 1 - 15 / 28 + 1 - 21 / 28, 1 - 15 / 70 + 1 - 35 / 70, 2.0]
    np.testing.assert_allclose(result.values_PK("distinct_at_k"), [expected, [0.0] * 4], rtol=1e-12)
    told = {
        "1": Told(rewards=kept.rewards, summary={}, correct={"a": [1]}),
        "2": Told(rewards=kept.rewards, summary={}, correct=result.correct),
    }
    asked = replace(result, told=told).values_PK("distinct_at_k")
    np.testing.assert_allclose(asked[0], [1 / 8, *expected[1:]], rtol=1e-12)
    blocks = dict(study_report._curve_blocks("main", [_method(result)], [1, 8]))
    assert blocks["main distinct"].startswith("| vague, distinct@k | k = 1 | k = 2 | k = 4 | k = 8 |")


def _method(result: Result) -> study_report.Method:
    return study_report.Method(name="arm", benchmark="vague", results=[result])


def test_a_told_curve_takes_every_k_from_the_samples_that_were_told_it_or_the_next_below(tmp_path: Path) -> None:
    job = _job("grpo_3", 1e-4, "test")
    _keep(tmp_path, job, {"a": 0})
    (kept,) = study_results.read_all(tmp_path, "vague", "test")
    solved = {"1": 4, "4": 2}
    told = {k: Told(rewards={"a": {"1": n, "0": 8 - n}}, summary={"distinct_rate": n / 8}) for k, n in solved.items()}
    result = replace(kept, told=told)
    study_results.write(tmp_path / "again", result)
    read = study_results.read(study_results.path_of(tmp_path / "again", job))
    assert read == result
    # k = 1 and 2 of 4 right samples among 8, k = 4 and 8 of 2
    np.testing.assert_allclose(read.max_at_k_PK[0], [4 / 8, 1 - 6 / 28, 1 - 15 / 70, 1.0], rtol=1e-12)
    np.testing.assert_allclose(read.told_only("4").pass_at_k_PK[0], [2 / 8, 1 - 15 / 28, 1 - 15 / 70, 1.0], rtol=1e-12)
    assert study_report.told_table([_method(read)], [1, 2]).splitlines()[2:] == [
        "| arm | 1 | 0.500 | 0.786 | - | 50.0% |",
        "| arm | 4 | 0.250 | 0.464 | - | 25.0% |",
    ]


@pytest.mark.parametrize(
    ("arm", "select", "sentence"),
    [
        ({"told_k": [2, 4]}, "", "`told_k` is 2,4, must be `same` or hold 1"),
        ({"told_k": "some"}, "", "--told_k is 'some'"),
        ({"told_k": "same"}, "public", "does not go with `select`"),
    ],
)
def test_a_plan_that_asks_wrongly_is_refused(tmp_path: Path, arm: dict[str, Any], select: str, sentence: str) -> None:
    arms = {**SMALL_PLAN["arms"], "grpo_1": {"label": "G1", **arm}}
    _write_configs(tmp_path / "configs", plan={**SMALL_PLAN, "arms": arms, "select": select})
    with pytest.raises(ValueError, match=sentence):
        read_plan(tmp_path / "configs")


def _plan(configs: Path = CONFIGS) -> StudyPlan:
    tables = {name: Table(**table) for name, table in SMALL_PLAN["tables"].items()}
    benchmarks = {name: Benchmark(**benchmark) for name, benchmark in SMALL_PLAN["benchmarks"].items()}
    return StudyPlan(**{**SMALL_PLAN, "select": "", "configs": configs, "tables": tables, "benchmarks": benchmarks})


def _keep(results: Path, job: Job, solved: dict[str, int]) -> None:
    """A result whose problems are solved by so many samples; the others have reward 0.5."""
    study_results.write(
        results,
        Result(
            job=job,
            commit="",
            machine={},
            seconds={"fit": 1.0, "evaluate": 1.0},
            rewards={id_: {"1": count, "0.5": job.num_samples - count} for id_, count in solved.items()},
            entropy_bins={"0": 10},
            summary={"mean_entropy": 0.1, "distinct_rate": 0.5},
        ),
    )


def _job(arm: str, rate: float, split: study_results.Split) -> Job:
    seed, num_samples = (0, 4) if split == "validation" else (1, 8)
    return Job(benchmark="vague", arm=arm, learning_rate=rate, seed=seed, split=split, num_samples=num_samples)


def _keep_study(results: Path, trained: dict[str, int]) -> None:
    for rate, solved in ((1e-4, {"test-000": 0, "test-001": 1}), (2e-4, {"test-000": 2, "test-001": 1})):
        _keep(results, _job("grpo_3", rate, "validation"), solved)
    _keep(results, _job("base", 0.0, "test"), {"test-000": 4, "test-001": 2, "test-002": 0})
    _keep(results, _job("grpo_3", 2e-4, "test"), trained)


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan", [plan for plan in PLANS if (ROOT / plan.results).is_dir()], ids=lambda p: p.configs.name
)
def test_the_page_of_a_study_says_what_is_kept(plan: StudyPlan) -> None:
    page = (ROOT / plan.page).read_text(encoding="utf-8")
    assert study_report.filled(page, dict(study_report.blocks(plan, ROOT / plan.results))) == page


def test_max_at_k_follows_from_the_kept_counts(tmp_path: Path) -> None:
    _keep_study(tmp_path, {"test-000": 8, "test-001": 4, "test-002": 0})
    result = study_results.read_all(tmp_path, "vague", "test")[1]
    # test-001: 4 of 8 samples solve it, the others have 0.5; max@2 = 1 - 0.5 * C(4,2)/C(8,2).
    np.testing.assert_allclose(result.max_at_k_PK[1], [0.75, 1 - 0.5 * 6 / 28, 1 - 0.5 / 70, 1.0], rtol=1e-12)
    np.testing.assert_allclose(result.pass_at_k_PK[2], 0.0)


def test_max_at_k_of_well_formed_samples_by_enumeration(tmp_path: Path) -> None:
    """Every ordered draw with replacement from the samples that ended and hold a program."""
    formed = {"a": {"0": 2, "0.25": 1, "1": 1}, "b": {}, "c": {"0.5": 3}}
    _keep(tmp_path, _job("grpo_3", 1e-4, "test"), {"a": 1, "b": 0, "c": 0})
    (kept,) = study_results.read_all(tmp_path, "vague", "test")
    result = replace(kept, formed=formed)
    samples = {
        id_: [float(text) for text, count in counts.items() for _ in range(count)] for id_, counts in formed.items()
    }
    for k in (1, 2, 3):
        draws = [[max(draw) for draw in itertools.product(group, repeat=k)] or [0.0] for group in samples.values()]
        expected = np.mean([np.mean(best) for best in draws])
        assert study_controls.max_at_k_if_formed(result, k) == pytest.approx(expected, rel=1e-12)


def test_a_gain_that_is_only_format_is_told() -> None:
    """The base never has a program in half of its samples, the arm always has one and is no better otherwise."""
    base = _row("base", rewards={"a": {"0": 4, "1": 4}}, formed={"a": {"1": 4}})
    arm = _row("arm", rewards={"a": {"1": 8}}, formed={"a": {"1": 8}})
    table = study_controls.format_table([base, arm], "base")
    assert table.splitlines()[-1] == "| arm | 0.0% | 0.0% | 1.000 | 1.000 | 1.000 | 100% | 100% |  |"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def f(a, b):\n    return True", True),
        ("def f(a):\n    for x in range(3):\n        pass\n    return x", True),
        ("def f(a):\n    return len(a)", False),
        ("def f(*rest):\n    return rest[0]", False),
        ("def f(a):\n    return (lambda b: a)(1)", False),
        ("def f(a):\n    print(a)\ndef g(a):\n    return 1", True),
        ("def f():\n    return 1", False),  # nothing to read
        ("def f(a):\n    pass", False),
        ("def f(a):\n    return", False),
        ("def f(a) return 1", False),
        ("x = 1", False),
        ("def f(a):\n    return " + "(" * 500 + "1" + ")" * 500, False),
    ],
)
def test_a_program_that_never_reads_its_arguments_is_blind(code: str, expected: bool) -> None:
    assert study_programs.is_blind(code) == expected


def test_blind_programs_get_nothing_in_their_table() -> None:
    row = _row("arm", rewards={"a": {"0": 4, "0.5": 4}, "b": {"1": 8}}, formed={}, blind={"a": {"0": 2, "0.5": 8}})
    assert row.results[0].rewards["a"] == {"0": 8, "0.5": 8}
    lines = study_programs.blind_table([row]).splitlines()
    assert lines[-1] == "| arm | 31.2% | 0.400 | 0.500 | 0.500 | 0.500 | 0.500 | 0.500 |"
    other = _row("arm", rewards={"a": {"0": 7, "0.5": 1}}, formed={}, blind={"a": {"0.5": 1}})
    assert study_programs.without_blind(other.results[0])["a"] == [0.0] * 14 + [0.5] + [0.0]


def _row(
    name: str,
    rewards: dict[str, dict[str, int]],
    formed: dict[str, dict[str, int]],
    blind: dict[str, dict[str, int]] | None = None,
) -> study_report.Method:
    summary = {"truncation_rate": 0.0, "no_code_rate": 0.0}
    job = replace(_job("grpo_3", 1e-4, "test"), num_samples=16)
    doubled = {id_: {text: 2 * count for text, count in counts.items()} for id_, counts in rewards.items()}
    result = Result(
        job=job,
        commit="",
        machine={},
        seconds={},
        rewards=doubled,
        entropy_bins={},
        summary=summary,
        formed=formed,
        blind=blind or {},
    )
    return study_report.Method(name=name, benchmark="vague", results=[result])


def test_the_best_try_gives_the_learning_rate(tmp_path: Path) -> None:
    plan = _plan()
    assert study_results.tuned_learning_rate(plan, tmp_path, "vague", "grpo_3") is None
    _keep_study(tmp_path, {"test-000": 8, "test-001": 4, "test-002": 0})
    assert study_results.tuned_learning_rate(plan, tmp_path, "vague", "grpo_3") == 2e-4
    assert study_results.tuned_learning_rate(plan, tmp_path, "vague", "grpo_1") == 2e-4
    assert study_results.tuned_learning_rate(plan, tmp_path, "vague", "base") == 0.0


def test_a_single_rate_needs_no_try(tmp_path: Path) -> None:
    benchmark = replace(_plan().benchmarks["vague"], learning_rates=[3e-4])
    plan = replace(_plan(), benchmarks={"vague": benchmark})
    assert [study_results.tuning_jobs(plan, "vague", arm) for arm in plan.arms] == [[], [], []]
    rates = [study_results.tuned_learning_rate(plan, tmp_path, "vague", arm) for arm in plan.arms]
    assert rates == [0.0, 3e-4, 3e-4]


def test_the_page_holds_what_the_results_say(tmp_path: Path) -> None:
    plan = _plan()
    _keep_study(tmp_path, {"test-000": 8, "test-001": 4, "test-002": 0})
    contents = dict(study_report.blocks(plan, tmp_path))
    # Gains at k = 1: (1 - 0.75, 0.75 - 0.625, 0); at k = 8 none: both have solved the first two once.
    assert "| base | GRPO | +0.125 [" in contents["main tests"]
    assert "p = 1.000" in contents["main tests"]
    page = "Text.\n<!-- main -->\nold\n<!-- end -->\nMore.\n<!-- tuning vague -->\n<!-- end -->\n"
    filled = study_report.filled(page, contents)
    assert "old" not in filled
    assert filled.startswith("Text.\n<!-- main -->\n| vague, 1 seed, max@k |")
    assert study_report.filled(filled, contents) == filled
    with pytest.raises(ValueError, match="block 'other'"):
        study_report.filled("<!-- other -->\n<!-- end -->", contents)


def test_controls_are_means_over_their_seeds(tmp_path: Path) -> None:
    main = Table(benchmark="vague", seeds=[1, 2, 3], against=[], arms=["base"])
    plan = replace(_plan(), control_seeds=2, control_samples=8, tables={"main": main})
    for seed, num_solved in ((1, 8), (2, 4), (3, 0)):
        job = replace(_job("base", 0.0, "test"), seed=seed)
        _keep(tmp_path, job, {"test-000": num_solved})
        controls = study_results.controls_of(plan, job)
        assert [control.control for control in controls] == (["temperature-0.5"] if seed < 3 else [])
        table = study_controls.control_table(plan, tmp_path, study_report.finished(plan, tmp_path, main))
        assert ("temperature" in table) == (seed == 3), "a row before all its seeds are there"
        for control in controls:
            _keep(tmp_path, control, {"test-000": num_solved // 2})
    plain, changed = table.splitlines()[2:]
    assert plain.startswith("| base | 0.875 |")  # of seeds 1 and 2: 1 and (1 + .5) / 2
    assert changed.startswith("| base, temperature 0.5 | 0.688 |")  # of 4 and 2 solved samples: 0.75 and 0.625


@pytest.mark.parametrize("against", [[], ["grpo_1"]])
def test_an_arm_is_tested_once_against_the_one_it_is_tuned_as(tmp_path: Path, against: list[str]) -> None:
    _keep_study(tmp_path, {"test-000": 8, "test-001": 4, "test-002": 0})
    _keep(tmp_path, _job("grpo_1", 2e-4, "test"), {"test-000": 8, "test-001": 4, "test-002": 8})
    plan = _plan()
    table = Table(benchmark="vague", seeds=[1], against=against, arms=["grpo_1", "grpo_3"])
    tests = study_comparisons.comparisons(plan, study_report.finished(plan, tmp_path, table), table)
    # The third problem rises from 0.5 to 1; the others are equal.
    assert [(test.arm, test.against, test.k) for test in tests] == [("grpo_1", "grpo_3", k) for k in plan.test_ks]
    assert [test.test.difference for test in tests] == pytest.approx([0.5 / 3] * len(plan.test_ks))


def test_problems_are_grouped_by_what_makes_them_hard() -> None:
    for name in VARIANTS:
        groups = study_groups.test_groups(name)
        assert set(groups.values()) == set(study_groups.GROUPS)
    (phrase,) = [phrase for phrase in VAGUE_PHRASES if phrase.text == "sort"]
    rare = Pipeline(steps=(Step("sort_down", None),), phrases=(phrase,))
    assert study_groups.group_of(rare, VAGUE) == "a less usual reading"
    usual = Pipeline(steps=(Step("sort_up", None),) * 3, phrases=(phrase,) * 3)
    right = [habit(family, phrase, VAGUE).right for family in ("start", "order", "order")]
    num_misled = sum(probability < GOOD_CONTEXT_RIGHT for probability in right)
    assert study_groups.group_of(usual, VAGUE) == study_groups.GROUPS[min(2, num_misled)]


def test_a_quick_run_that_disagrees_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = _plan()
    _keep_study(tmp_path / "kept", {"test-000": 8, "test-001": 6, "test-002": 4})
    _keep_study(tmp_path / "same", {"test-000": 8, "test-001": 6, "test-002": 4})
    _keep_study(tmp_path / "worse", {"test-000": 0, "test-001": 0, "test-002": 0})
    study_report.check_quick(plan, tmp_path / "same", tmp_path / "kept")
    assert "all differences agree" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="do not agree"):
        study_report.check_quick(plan, tmp_path / "worse", tmp_path / "kept")


def test_a_quick_run_of_tries_is_held_against_the_kept_tries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = replace(_plan(), quick={"split": "validation", "arms": ["base", "grpo_3"]})
    problems = [f"test-{number:03}" for number in range(20)]
    for name, of_base in (("kept", 0), ("same", 0), ("better", 4)):
        for rate, solved in ((1e-4, 0), (2e-4, 2)):
            _keep(tmp_path / name, _job("grpo_3", rate, "validation"), dict.fromkeys(problems, solved))
        _keep(tmp_path / name, _job("base", 0.0, "validation"), dict.fromkeys(problems, of_base))
    jobs = list(study.quick_jobs(plan, tmp_path / "kept"))
    assert jobs == [_job("base", 0.0, "validation"), _job("grpo_3", 2e-4, "validation")]
    study_report.check_quick(plan, tmp_path / "same", tmp_path / "kept")
    told = capsys.readouterr().out
    assert "GRPO - base, max@1: +0.250" in told  # half of the samples solved, where the others have half of the reward
    assert "max@8" not in told  # of four samples
    with pytest.raises(SystemExit, match="do not agree"):
        study_report.check_quick(plan, tmp_path / "better", tmp_path / "kept")


def test_a_job_that_came_out_otherwise_is_told(tmp_path: Path) -> None:
    plan, job = _plan(), _job("grpo_3", 2e-4, "test")
    _keep(tmp_path / "kept", job, {"test-000": 8, "test-001": 4})
    _keep(tmp_path / "mine", job, {"test-000": 8, "test-001": 6})
    kept, mine = (study_results.read(study_results.path_of(tmp_path / name, job)) for name in ("kept", "mine"))
    curves = {"train/max_at_k/1": [0.5, 0.25, 0.5], "train/entropy": [1.0, 1.0, 1.0]}
    kept = replace(kept, curves=curves)
    told = list(study_again.sentences(kept, kept, plan))
    assert told[-2:] == ["training curves: identical", "rewards of all samples: identical"]
    mine = replace(mine, curves={**curves, "train/max_at_k/1": [0.5, 0.375, 0.5]})
    told = list(study_again.sentences(mine, kept, plan))
    # (8 + 6 + 2 * 0.5) / 16 samples against (8 + 4 + 4 * 0.5) / 16
    assert told[2].split() == ["max@1", "0.938", "0.875", "+0.062"]
    assert told[4].split() == ["max@8", "1.000", "1.000", "+0.000"]
    assert "training curves: apart from rollout 2 of 3 on: train/max_at_k/1 is 0.375, kept 0.25" in told
    assert "rewards of all samples: apart in 1 of 2 problems" in told


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--again", "grpo_3", "--table", "main"], "--again ARM needs --seed and --table"),
        (
            ["--again", "grpo_1", "--seed", "1", "--table", "main"],
            "has no grpo_1 with seed 1; its arms are base, grpo_3",
        ),
        (["--again", "grpo_3", "--seed", "1", "--table", "main"], "the tries of its learning rate are not all under"),
        (["--again", "base", "--seed", "1", "--table", "main"], "nothing is kept of base with seed 1"),
    ],
)
def test_a_job_that_is_not_kept_cannot_be_run_again(
    words: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _write_configs(tmp_path / "configs")
    monkeypatch.setattr(sys, "argv", [*_study(tmp_path)[1:], *words])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(SystemExit) as refused:
        study.main()
    assert refused.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("key", ["arms", "against"])
def test_a_plan_with_an_unknown_arm_is_refused(tmp_path: Path, key: str) -> None:
    _write_configs(tmp_path / "configs")
    main = {"benchmark": "vague", "seeds": [1], "against": ["base"], "arms": ["base"], key: ["base", "nobody"]}
    plan = {**SMALL_PLAN, "tables": {"main": main}}
    (tmp_path / "configs" / "plan.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(ValueError, match=r"plan.yaml: tables.main: nobody is not under `arms`"):
        read_plan(tmp_path / "configs")


def test_results_say_what_the_kept_results_say() -> None:
    page = (ROOT / PLAN.page).read_text(encoding="utf-8")
    contents = dict(study_report.blocks(PLAN, ROOT / PLAN.results))
    assert study_report.filled(page, contents) == page
    assert set(re.findall(r"\]\((results/[\w/.-]+)\)", page)) <= {
        str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs" / "results").rglob("*")
    }


def test_different_correct_programs_are_those_that_differ_in_more_than_layout() -> None:
    answers = ["```python\nx = 1\n```", "```python\nx=1  # one\n```", "```python\nx = 2\n```", "```python\nx = 3\n```"]
    rewards = [1.0, 1.0, 1.0, 0.5]
    completions = [
        Completion(token_ids=(1,), logprobs=(0.0,), entropies=None, text=text, finish_reason="stop") for text in answers
    ]
    scores = [Score(reward=reward, verdicts=("passed",)) for reward in rewards]
    group = [to_sample("a", 0, completion, score) for completion, score in zip(completions, scores, strict=True)]
    assert study_programs.correct_programs({"a": group, "b": []}) == {"a": [2, 1], "b": []}


def test_correct_programs_are_tabled_and_tested(tmp_path: Path) -> None:
    _keep(tmp_path, _job("grpo_3", 1e-4, "test"), {"a": 3, "b": 0})
    (kept,) = study_results.read_all(tmp_path, "vague", "test")
    result = replace(kept, programs={"a": [2, 1], "b": []})
    expected = [3 / 8, 1 - 15 / 28 + 1 - 21 / 28, 1 - 15 / 70 + 1 - 35 / 70, 2.0]
    np.testing.assert_allclose(result.values_PK("programs_at_k"), [expected, [0.0] * 4], rtol=1e-12)
    contents = dict(study_report._curve_blocks("main", [_method(result)], [1, 8]))
    assert contents["main programs"].startswith("| vague, programs@k | k = 1 |")


def test_an_age_is_a_point_on_the_line_of_its_method(tmp_path: Path) -> None:
    _keep(tmp_path, _job("grpo_3", 1e-4, "test"), {"a": 4, "b": 0})
    (kept,) = study_results.read_all(tmp_path, "vague", "test")
    better = replace(kept, rewards={"a": {"1": 8}, "b": {"1": 8}})
    figure = study_figures.age_figure({"base": [kept], "ours, age 16": [kept], "ours, age 0": [better, kept]}, [1, 8])
    lines = [axes.get_lines() for axes in figure.axes]
    assert [len(of_panel) for of_panel in lines] == [1, 1]
    assert list(lines[0][0].get_xdata()) == [0, 16]
    value = kept.max_at_k_PK[:, 0].mean()
    np.testing.assert_allclose(lines[0][0].get_ydata(), [(1.0 + value) / 2, value])
