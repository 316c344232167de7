"""One run, four loggers: all of them hold the same numbers, pictures, samples, glossary and settings."""

import csv
import io
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers.wandb
import numpy as np
import pytest
import yaml
from lightning_utilities.core.imports import RequirementCache
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maxk_lightning.callbacks.glossary import GLOSSARY
from maxk_lightning.commands.trainer import MaxKCLI
from tests.support.tiny_run import run

Scalars = Mapping[tuple[str, int], float]
NAME = "val/max_at_k_curve"


@dataclass(frozen=True, kw_only=True)
class Logged:
    """What a logger kept."""

    scalars: Scalars
    "By tag and step."
    pictures: list[Any] = field(default_factory=list)
    "Pixels, in order of their steps."
    glossary: str
    "Its text."
    rewards: list[float]
    "Of the samples in the table."
    settings: dict[str, str]
    "Hyper-parameters, as texts."


@pytest.fixture(scope="module")
def root(random_policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all four."""
    root = tmp_path_factory.mktemp("loggers")
    place = {"save_dir": str(root)}
    loggers = [
        {"class_path": "TensorBoardLogger", "init_args": {**place, "name": "", "version": "tensorboard"}},
        {"class_path": "CSVLogger", "init_args": {**place, "name": "csv", "version": ""}},
        {"class_path": "WandbLogger", "init_args": {**place, "offline": True, "project": "test"}},
        {"class_path": "MLFlowLogger", "init_args": {"tracking_uri": f"sqlite:///{root}/mlflow.db",
                                                     "artifact_location": str(root / "artifacts")}},
    ]  # fmt: skip
    options = {"trainer.logger": json.dumps(loggers), "validate_before_fit": "true"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_SILENT", "true")
        run("fit", root, random_policy, **options)
        import wandb

        wandb.finish()
    return root


def tensorboard(root: Path) -> Logged:
    found = EventAccumulator(str(root / "tensorboard"), size_guidance={"tensors": 0, "images": 0})
    found.Reload()
    scalars = {(tag, each.step): each.value for tag in found.Tags()["scalars"] for each in found.Scalars(tag)}
    texts = [each.tensor_proto.string_val[0].decode() for each in found.Tensors("train/samples/text_summary")]
    rewards = [float(line.split()[1].strip(",")) for line in texts[0].splitlines() if line.startswith("reward ")]
    return Logged(
        scalars=scalars,
        pictures=[_pixels(image.encoded_image_string) for image in found.Images(NAME)],
        glossary=found.Tensors("glossary/text_summary")[0].tensor_proto.string_val[0].decode(),
        rewards=rewards,
        settings={},  # tests/shell/test_tensorboard.py reads its table
    )


def csv_files(root: Path) -> Logged:
    directory = root / "csv"
    with (directory / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    scalars = {
        (tag, int(row["step"])): float(value)
        for row in rows
        for tag, value in row.items()
        if value != "" and tag not in ("step", "epoch")
    }
    with (directory / "train" / "samples.csv").open() as file:
        rewards = [float(row["reward"]) for row in csv.DictReader(file)]
    return Logged(
        scalars=scalars,
        pictures=[_pixels(path.read_bytes()) for path in sorted((directory / NAME).glob("*.png"))],
        glossary=(directory / "glossary.md").read_text(),
        rewards=rewards,
        settings=_texts(yaml.safe_load((directory / "hparams.yaml").read_text())),
    )


def wandb_files(root: Path) -> Logged:
    from wandb.proto import wandb_internal_pb2

    (directory,) = (root / "wandb").glob("offline-run-*")
    scalars: dict[tuple[str, int], float] = {}
    settings: dict[str, Any] = {}
    pictures: dict[int, Any] = {}
    texts: dict[str, Any] = {}
    tables: dict[str, Any] = {}
    for data in _records_of(next(directory.glob("*.wandb")).read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for update in record.config.update:
            settings[update.key or ".".join(update.nested_key)] = json.loads(update.value_json)
        values: dict[str, Any] = {}
        for item in record.history.item:
            tag, *fields = item.nested_key or [item.key]
            value = json.loads(item.value_json)
            values[tag] = {**values.get(tag, {}), fields[0]: value} if fields else value
        step = int(values.get("trainer/global_step", -1))
        for tag, value in values.items():
            if isinstance(value, dict) and "images/separated" in value.get("_type", ""):
                pictures[step] = _pixels((directory / "files" / value["filenames"][0]).read_bytes())
            elif isinstance(value, dict) and "table" in value.get("_type", ""):
                table = json.loads((directory / "files" / value["path"]).read_text())
                (texts if tag == "glossary" else tables)[tag] = table
            elif isinstance(value, int | float) and tag not in ("trainer/global_step", "epoch") and tag[0] != "_":
                scalars[tag, step] = float(value)
    reward = tables["train/samples"]["columns"].index("reward")
    return Logged(
        scalars=scalars,
        pictures=[pictures[step] for step in sorted(pictures)],
        glossary=texts["glossary"]["data"][0][0],
        rewards=[row[reward] for row in tables["train/samples"]["data"]],
        settings=_texts(settings),
    )


def _records_of(log: bytes) -> Iterator[bytes]:
    """Records of a W&B file: LevelDB's log format behind a header of 7 bytes."""
    place, record = 7, b""
    while place + 7 <= len(log):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768  # what is left of a block takes no header
            continue
        _, length, kind = struct.unpack("<IHB", log[place : place + 7])
        record += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def mlflow_store(root: Path) -> Logged:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    (found,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    id_ = found.info.run_id
    scalars = {
        (tag, each.step): each.value
        for tag in found.data.metrics
        if tag != "epoch"
        for each in client.get_metric_history(id_, tag)
    }
    files = sorted((root / "artifacts").rglob("images/*.png"), key=lambda path: int(path.name.split("+")[2]))
    table = json.loads(next((root / "artifacts").rglob("samples.json")).read_text())
    return Logged(
        scalars=scalars,
        pictures=[_pixels(path.read_bytes()) for path in files],
        glossary=next((root / "artifacts").rglob("glossary.md")).read_text(),
        rewards=[row[table["columns"].index("reward")] for row in table["data"]],
        settings=dict(found.data.params),
    )


def _pixels(png: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _texts(settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in settings.items() if not name.startswith("_")}


@pytest.mark.slow
def test_all_loggers_hold_the_same(root: Path) -> None:
    first = tensorboard(root)
    first_scalars = {key: value for key, value in first.scalars.items() if key[0] != "epoch"}
    assert len(first.pictures) == 3  # before training, and after each rollout
    assert len(first_scalars) > 100
    assert first.rewards
    others = [csv_files(root), wandb_files(root), mlflow_store(root)]
    for other in others:
        assert other.scalars.keys() == first_scalars.keys()
        for key, value in first_scalars.items():
            assert math.isclose(other.scalars[key], value, rel_tol=1e-6, abs_tol=1e-9), key
        assert len(other.pictures) == len(first.pictures)
        for ours, theirs in zip(first.pictures, other.pictures, strict=True):
            assert np.array_equal(ours, theirs)
        assert other.glossary == GLOSSARY.read_text()
        assert other.rewards == pytest.approx(first.rewards)
        assert other.settings == others[0].settings
    assert first.glossary == GLOSSARY.read_text()
    assert others[0].settings["objective"] == "MaxAtK"


def test_a_logger_whose_package_is_missing_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # as if wandb were not installed
    monkeypatch.setattr(lightning.pytorch.loggers.wandb, "_WANDB_AVAILABLE", RequirementCache("no_such_package"))
    with pytest.raises(SystemExit) as refused:
        MaxKCLI(["fit", "--trainer.logger", "WandbLogger"])
    assert refused.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: WandbLogger needs a package: Requirement 'no_such_package' not met. HINT: Try" in last
