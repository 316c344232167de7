"""A warning where bfloat16 was asked for and the processor does not have it."""

import logging
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from maxk_lightning.callbacks.checks import check_trainer
from maxk_lightning.policy import processor
from maxk_lightning.rollouts.engines.weights import starting_dtype

PROCESSORS = {"avx512f avx512_bf16": False, "avx2": True}
"Flags -> whether bfloat16 is slow."


@pytest.fixture(params=PROCESSORS)
def is_slow(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """On a processor with such flags."""
    (tmp_path / "cpuinfo").write_text(f"flags : fpu {request.param}\n")
    monkeypatch.setattr(processor.is_bfloat16_slow, "__defaults__", (tmp_path / "cpuinfo",))
    processor.tell_of_slow_bfloat16.cache_clear()
    return PROCESSORS[request.param]


def test_an_engine_that_starts_in_bfloat16_tells(is_slow: bool, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert starting_dtype("bfloat16", on_gpu=False) == torch.bfloat16
    told = "rollout.engine.dtype asks for bfloat16, which this processor does not have: float32 is several times faster"
    assert caplog.messages == [f"{told} here"] * is_slow
    assert starting_dtype("auto", on_gpu=True) == torch.bfloat16
    assert starting_dtype("float32", on_gpu=False) == torch.float32
    assert len(caplog.messages) == is_slow


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_a_training_in_bfloat16_tells(precision: str, is_slow: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="maxk_lightning"):
        check_trainer(Trainer(accelerator="cpu", precision=precision, logger=False, enable_progress_bar=False))
    told = [message for message in caplog.messages if message.startswith("trainer.precision: bf16-mixed asks")]
    assert len(told) == (is_slow and precision == "bf16-mixed")
