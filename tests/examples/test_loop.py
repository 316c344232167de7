"""examples/loop.py is the method that `fit` runs: both end with the same weights."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from maxk_lightning.data import Builtin
from maxk_lightning.losses import CISPO
from maxk_lightning.objectives import MaxAtK
from maxk_lightning.rewards import UnitTestReward
from tests.support.paths import ROOT
from tests.support.training import fit

sys.path.insert(0, str(ROOT / "examples"))
import loop

NUM_ROLLOUTS = 2


def test_the_loop_trains_as_fit_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = loop.train("builtin", NUM_ROLLOUTS)
    assert capsys.readouterr().out.count("max@8") == NUM_ROLLOUTS
    trained = fit(
        "builtin",
        tmp_path,
        epochs=NUM_ROLLOUTS,
        reward=UnitTestReward(),
        sampling=loop.SAMPLING,
        module={
            "objective": MaxAtK(k=4),
            "policy_loss": CISPO(),
            "kl_coef": 0.0,
            "old_logprobs": "engine",
            "optimizer": partial(torch.optim.Adam, lr=1e-4),
        },
        data={"train": Builtin("train"), "prompts_per_rollout": loop.NUM_PROMPTS, "num_ppo_iterations": 3},
    )
    ours, untrained = policy.model.state_dict(), loop.build_policy("builtin").model.state_dict()
    for name, weight in trained.weights.items():
        # Groups without credit are left out of the passes: sums of another rounding, magnified by Adam near 0.
        torch.testing.assert_close(ours[name], weight, atol=2e-5, rtol=0.0)
    assert max(float((ours[name] - untrained[name]).abs().max()) for name in ours) > 2e-4
