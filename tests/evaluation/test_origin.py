"""Policy, training and seeds of a run: kept by `export` and `evaluate`, shown by `compare`, absent in older outputs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from maxk_lightning.checkpoints import Configuration
from maxk_lightning.commands.compare import compare
from maxk_lightning.commands.export.model_card import training_of
from maxk_lightning.evaluation.origin import Origin, Training, read_training, write_training
from maxk_lightning.evaluation.runs import load
from maxk_lightning.evaluation.summary import write_summary
from tests.support.builders import make_run, make_samples

TRAINED = Training(started_from="builtin", steps=6, objective="MaxAtK(k=8)", optimizer="Adam(lr=0.0001)", seed=7)
ORIGIN = Origin(policy="runs/k8/last.ckpt", seed=42, temperature=0.8, training=TRAINED)


def configuration(step: int, k: int) -> Configuration:
    objective = {"class_path": "maxk_lightning.objectives.MaxAtK", "init_args": {"k": k, "baseline": None}}
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-4, "betas": [0.9, 0.95]}}
    config = {"seed_everything": 7, "model": {"objective": objective, "optimizer": optimizer}}
    return Configuration(step=step, text=yaml.safe_dump(config))


def test_what_was_changed_amid_a_run_is_said() -> None:
    history = [configuration(0, 8), configuration(3, 8), configuration(6, 4)]
    config = yaml.safe_load(history[-1].text)
    assert training_of("builtin", 6, config, history[:1], None) == TRAINED
    changed = training_of("builtin", 9, config, history, "0.5 of the weights of `builtin` mixed in")
    assert changed.objective == "MaxAtK(k=8), from step 6 MaxAtK(k=4)"
    assert changed.optimizer == "Adam(lr=0.0001)"
    assert changed.started_from == "builtin, 0.5 of the weights of `builtin` mixed in"


def test_without_a_configuration_steps_are_all_that_is_known() -> None:
    assert training_of("builtin", 3, None, [], None) == Training(started_from="builtin", steps=3)


def test_a_policy_directory_says_how_it_was_trained(tmp_path: Path) -> None:
    assert read_training(tmp_path) is None
    write_training(TRAINED, tmp_path)
    assert read_training(tmp_path) == TRAINED
    (tmp_path / "maxk_training.json").write_text('{"lr": 1}')
    with pytest.raises(ValueError, match=r"maxk_training\.json: not what `export` wrote"):
        read_training(tmp_path)


def test_compare_shows_the_runs_and_older_outputs_still_load(tmp_path: Path) -> None:
    rewards = {"x": [0.0, 1.0], "y": [0.5, 0.0]}
    old, new = (make_run(tmp_path / name, make_samples(rewards)) for name in ("old", "new"))
    write_summary(replace(new.summary, origin=ORIGIN), new.path / "summary.json")
    record = json.loads((old.path / "summary.json").read_text())
    del record["origin"]  # as it was written before there were any
    (old.path / "summary.json").write_text(json.dumps(record))
    assert [run.summary.origin for run in load(old.path, new.path)] == [None, ORIGIN]

    compare(str(old.path), str(new.path), out=str(tmp_path / "out"))
    cells = ["new", "runs/k8/last.ckpt", "builtin", "MaxAtK(k=8)", "Adam(lr=0.0001)", "6", "7", "0.8", "42"]
    markdown, html = ((tmp_path / "out" / name).read_text() for name in ("report.md", "report.html"))
    assert f"| {' | '.join(cells)} |" in markdown
    assert f"| {' | '.join(['old'] + ['-'] * 8)} |" in markdown
    assert all(f'data-value="{cell}">{cell}</td>' in html for cell in cells)
    assert "<h3>Runs</h3>" in html

    compare(str(old.path), out=str(tmp_path / "without"))
    assert "## Runs" not in (tmp_path / "without" / "report.md").read_text()
    assert "<h3>Runs</h3>" not in (tmp_path / "without" / "report.html").read_text()
