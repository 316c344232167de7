"""Trainings in which the entropy bonus alone has a gradient; as a script, `entropy_bonus.py POLICY ROOT`, on two ranks.

The script leaves `ROOT/NAME.pt` for each of `COEFS`: what `trained` gives.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback

from maxk_lightning.losses import AdaptiveEntropy
from maxk_lightning.objectives import GRPO
from tests.support.training import Fit, fit

SGD = {"optimizer": partial(torch.optim.SGD, lr=0.5), "max_grad_norm": None, "kl_coef": 0.0}
"A weight moves by its gradient, whose scale Adam would hide."
COEFS = {
    "fixed": 0.3,
    # From .2 to .4 over the four steps: the entropy of random weights is below its target.
    "adaptive": AdaptiveEntropy(target=20.0, initial=0.2, rate=0.1, max_coef=0.4),
}
UNEVEN = {"prompts_per_rollout": 3, "num_ppo_iterations": 2}
"Of two ranks one has two groups, the other one."


class FlatReward:
    """All rewards are equal: no credit, so that the bonus alone trains."""

    def score(self, problems: Any, completions: Any) -> Any:
        from maxk_lightning.types import Score

        return [[Score(reward=0.5, verdicts=()) for _ in group] for group in completions]


class Coefs(Callback):
    """Notes the coefficient and the mean entropy of every step."""

    def __init__(self) -> None:
        self.coefs: list[float] = []
        self.entropies: list[float] = []

    def on_train_batch_end(self, trainer: Any, *_: object) -> None:
        self.coefs.append(float(trainer.callback_metrics["train/entropy_coef"]))
        self.entropies.append(float(trainer.callback_metrics["train/entropy"]))


def bonus_alone(policy: str, root: Path, coef: float | AdaptiveEntropy, *callbacks: Callback, **options: Any) -> Fit:
    """Train with this coefficient."""
    module = {**SGD, "objective": GRPO(), "entropy_coef": coef}
    return fit(policy, root, reward=FlatReward(), module=module, callbacks=callbacks, **options)


def trained(policy: str, root: Path, coef: float | AdaptiveEntropy, num_ranks: int) -> dict[str, Any]:
    """Weights, and the coefficient and the mean entropy of every step, after two rollouts."""
    noted = Coefs()
    done = bonus_alone(policy, root, coef, noted, data=UNEVEN, num_ranks=num_ranks)
    return {"weights": done.weights, "coefs": noted.coefs, "entropies": noted.entropies}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, coef in COEFS.items():
        values = trained(sys.argv[1], Path(sys.argv[2]), coef, num_ranks=2)
        if torch.distributed.get_rank() == 0:
            torch.save(values, Path(sys.argv[2]) / f"{name}.pt")
