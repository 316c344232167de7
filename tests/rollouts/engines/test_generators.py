"""Global random generators while vLLM starts."""

import random
import warnings

import numpy as np
import pytest
import torch

from maxk_lightning.rollouts.engines.vllm.engine import _undisturbed_generators


def _draws() -> list[float]:
    return [random.random(), float(np.random.random()), float(torch.rand(()))]


def test_they_are_as_before() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = _draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with _undisturbed_generators():
        random.seed(2), np.random.seed(2), torch.manual_seed(2)
    assert _draws() == expected


def test_of_several_gpus_only_the_generator_of_this_process_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch warns where it is to keep all of them. Of its own code only what asks a GPU is replaced."""
    touched = []
    monkeypatch.setattr(torch.random, "_fork_rng_warned_already", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: touched.append(device))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: touched.append(device))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with _undisturbed_generators():
            pass
    assert touched == [1, 1]
