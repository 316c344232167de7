"""The entropy bonus: its loss against a plain formula, its coefficient over steps and through checkpoints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from maxk_lightning.callbacks import RolloutCheckpoint
from maxk_lightning.losses import AdaptiveEntropy, EntropyBonus
from maxk_lightning.module import PolicyModule
from maxk_lightning.objectives import GRPO
from maxk_lightning.policy import load_model
from tests.support.entropy_bonus import COEFS, SGD, Coefs, FlatReward, bonus_alone, trained
from tests.support.paths import ROOT
from tests.support.training import fit


@pytest.mark.parametrize(
    ("normalisation", "denominator"), [("token", None), ("constant", 4 * 4 * 8)], ids=["token", "constant"]
)
def test_a_step_ascends_the_entropy_of_the_policy(
    random_policy: str, tmp_path: Path, normalisation: str, denominator: int | None
) -> None:
    module = {**SGD, "objective": GRPO(), "entropy_coef": 0.3, "normalisation": normalisation}
    data = {"num_ppo_iterations": 1}
    done = fit(random_policy, tmp_path, epochs=1, reward=FlatReward(), module=module, data=data)
    model = load_model(random_policy)
    total, num_tokens = torch.zeros(()), 0
    for group in done.rollout.samples.groups:
        for completion in group.completions:
            ids = torch.tensor([group.prompt.token_ids + completion.token_ids])
            logits_TV = model(ids).logits[0, len(group.prompt.token_ids) - 1 : -1]
            logprobs_TV = F.log_softmax(logits_TV, dim=-1)
            total = total - (logprobs_TV.exp() * logprobs_TV).sum()
            num_tokens += len(completion.token_ids)
    (0.3 * total / (denominator or num_tokens)).backward()
    trained = done.weights
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        expected = parameter.detach() + 0.5 * parameter.grad
        torch.testing.assert_close(trained[name], expected, atol=1e-5, rtol=1e-4)


def test_no_group_is_idle_with_a_bonus(random_policy: str, tmp_path: Path) -> None:
    done = bonus_alone(random_policy, tmp_path, 0.1)
    assert done.module.idle(done.rollout.samples.groups) == [False] * 4
    without = PolicyModule(policy=random_policy, objective=GRPO(), kl_coef=0.0)
    without.trainer = done.trainer
    assert without.idle(done.rollout.samples.groups) == [True] * 4


def test_an_adaptive_bonus_follows_its_rule_and_resumes(random_policy: str, tmp_path: Path) -> None:
    # The target lies amid the entropies of the run, so that the coefficient goes up and down.
    probe = Coefs()
    bonus_alone(random_policy, tmp_path / "probe", 0.05, probe, epochs=1)
    coef = AdaptiveEntropy(target=probe.entropies[0] + 1e-6, initial=0.02, rate=0.02, max_coef=0.06)
    undisturbed, first, second = Coefs(), Coefs(), Coefs()
    whole = bonus_alone(random_policy, tmp_path / "whole", coef, undisturbed, epochs=3)
    expected = [coef.initial]
    for entropy in undisturbed.entropies[:-1]:
        change = 0.02 if entropy < coef.target else -0.02
        expected.append(min(0.06, max(0.0, expected[-1] + change)))
    assert undisturbed.coefs == pytest.approx(expected)
    assert len(set(undisturbed.coefs)) > 1
    saved = RolloutCheckpoint(dirpath=tmp_path, save_last=True, save_top_k=0, save_on_train_epoch_end=True)
    bonus_alone(random_policy, tmp_path / "first", coef, first, saved, epochs=1)
    resumed = bonus_alone(random_policy, tmp_path / "again", coef, second, epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert first.coefs + second.coefs == undisturbed.coefs
    for name, weight in whole.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name


@pytest.mark.slow
def test_two_ranks_have_the_bonus_of_one(random_policy: str, tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "tests" / "support" / "entropy_bonus.py"), random_policy, str(tmp_path)]
    done = subprocess.run(script, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    initial = load_model(random_policy).state_dict()
    for name, coef in COEFS.items():
        one, two = trained(random_policy, tmp_path, coef, num_ranks=1), torch.load(tmp_path / f"{name}.pt")
        assert two["coefs"] == one["coefs"] == pytest.approx([0.3] * 4 if name == "fixed" else [0.2, 0.3, 0.4, 0.4])
        assert two["entropies"] == pytest.approx(one["entropies"], rel=1e-5)  # sums in another order
        for tag, weight in one["weights"].items():
            torch.testing.assert_close(two["weights"][tag], weight, atol=1e-6, rtol=1e-4)
        assert max(float((one["weights"][tag] - initial[tag]).abs().max()) for tag in initial) > 1e-3


def test_a_step_that_is_not_finite_moves_nothing() -> None:
    bonus = EntropyBonus(AdaptiveEntropy(target=1.0, initial=0.01))
    assert bonus.after(float("nan")) == {"entropy_coef": 0.01}
    assert bonus.coef == 0.01


@pytest.mark.parametrize("coef", [-0.1, float("nan"), float("inf")])
def test_an_impossible_coefficient_is_refused(coef: float) -> None:
    with pytest.raises(ValueError, match=r"model\.entropy_coef is"):
        EntropyBonus(coef)


@pytest.mark.parametrize("wrong", [{"target": 0.0}, {"rate": 0.0}, {"initial": 0.2}, {"initial": -0.1}])
def test_an_impossible_adaptive_bonus_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"model\.entropy_coef\."):
        AdaptiveEntropy(**{"target": 1.0, **wrong})
