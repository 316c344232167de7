"""The reference policy is asked once per rollout, and training is what it would be if it were asked every time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from maxk_lightning.module import PolicyModule
from maxk_lightning.objectives import MaxAtK
from maxk_lightning.policy.lora import LoRA
from tests.training.test_step import SAMPLING, train

EPOCHS, PROMPTS = 2, 4


class Passes(Callback):
    """Counts forward passes of the reference policy; a forgetful one makes it compute at every step."""

    def __init__(self, *, is_forgetful: bool) -> None:
        self.is_forgetful = is_forgetful
        self.number = 0

    def on_train_start(self, trainer: Trainer, pl_module: PolicyModule) -> None:  # type: ignore[override]
        assert pl_module.reference is not None
        pl_module.reference.policy.register_forward_hook(self._count)

    def on_train_batch_start(self, trainer: Trainer, pl_module: PolicyModule, *_: Any) -> None:  # type: ignore[override]
        if self.is_forgetful:
            assert pl_module.reference is not None
            pl_module.reference.forget()

    def _count(self, *_: Any) -> None:
        self.number += not torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("options", "num_passes"),
    [
        pytest.param({}, 1, marks=pytest.mark.slow),
        ({"prompts_per_micro_batch": 3}, 2),
        ({"tokens_per_micro_batch": 1}, PROMPTS * SAMPLING.num_completions),
        ({"lora": LoRA(r=2)}, 1),
    ],
    ids=["at once", "whole groups", "split groups", "adapters"],
)
def test_training_is_bit_for_bit_that_with_a_reference_asked_every_time(
    random_policy: str, tmp_path: Path, options: dict[str, Any], num_passes: int
) -> None:
    options = {"objective": MaxAtK(k=2, baseline="loo1"), "kl_target": "reference", "kl_coef": 1.0, **options}
    asking, remembering = Passes(is_forgetful=True), Passes(is_forgetful=False)
    expected = train(random_policy, tmp_path, epochs=EPOCHS, callbacks=[asking], module=options).weights
    weights = train(random_policy, tmp_path, epochs=EPOCHS, callbacks=[remembering], module=options).weights
    for name, weight in expected.items():
        assert torch.equal(weights[name], weight), name
    assert asking.number - remembering.number == EPOCHS * num_passes  # the second of two PPO iterations
