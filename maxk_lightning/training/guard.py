"""Keeps an optimizer step that went wrong away from the weights, and warns when drift spoils the next ones."""

import logging
import math
from collections.abc import Mapping

from maxk_lightning.training.step import MAX_LOG_RATIO_STD

logger = logging.getLogger(__name__)
NUM_DRIFTED = 3
"Steps in a row outside the healthy range before the warning."
NUM_WITHOUT_CREDIT = 3
"Rollouts in a row in which no group had credit before the warning."
MAX_SKIPPED = 3
"Skipped steps in a row before the run stops."


class StepGuard:
    """Watches the numbers of every optimizer step."""

    def __init__(self, *, includes_ratio: bool) -> None:
        """Begin to watch; `includes_ratio` of the objective decides what the warning advises."""
        self.num_skipped = 0
        "Steps in a row that were skipped, up to the last one."
        self.spreads: list[float] = []
        "Spread of log rho at every step on the current rollout, skipped ones included."
        self._includes_ratio = includes_ratio
        self._num_drifted = 0
        self._had_credit = False
        self._num_without_credit = 0

    @property
    def is_exhausted(self) -> bool:
        """Whether so many steps in a row were skipped that training cannot continue."""
        return self.num_skipped >= MAX_SKIPPED

    def allows(self, loss: float, grad_norm: float) -> bool:
        """Whether a step with this loss and gradient may reach the weights: both are finite."""
        is_finite = math.isfinite(loss) and math.isfinite(grad_norm)
        self.num_skipped = 0 if is_finite else self.num_skipped + 1
        if not is_finite:
            logger.warning("skipped an optimizer step: its loss is %s, its gradient has the norm %s", loss, grad_norm)
        return is_finite

    def watch(self, values: Mapping[str, float]) -> None:
        """Note the numbers of a step, and warn of drift."""
        self.spreads.append(values["log_ratio_std"])
        self._had_credit |= values["zero_credit_fraction"] < 1.0
        self.watch_drift(values)

    def end_rollout(self) -> None:
        """Warn once when several rollouts in a row had no credit: such a run trains on nothing."""
        self._num_without_credit = 0 if self._had_credit else self._num_without_credit + 1
        self._had_credit = False
        if self._num_without_credit == NUM_WITHOUT_CREDIT:
            logger.warning(
                "no group of the last %s rollouts had credit: all rewards of a group were equal, or none could be "
                "scored, and nothing was learned. See train/zero_credit_fraction, train/reward and train/samples in "
                "metrics.md", NUM_WITHOUT_CREDIT,
            )  # fmt: skip

    def watch_drift(self, values: Mapping[str, float]) -> None:
        """Warn once when log rho has spread too far for several steps in a row, and say which key to change."""
        spread = values["log_ratio_std"]
        self._num_drifted = self._num_drifted + 1 if spread > MAX_LOG_RATIO_STD else 0
        if self._num_drifted == NUM_DRIFTED and self._includes_ratio:
            logger.warning(
                "log rho has spread by more than %g within groups for %s steps (%.2g now): products of sequence ratios "
                "say little there. Take model.objective: MaxAtK, which has none, with model.policy_loss: CISPO; or "
                "fewer data.num_ppo_iterations, or a smaller model.optimizer.lr",
                MAX_LOG_RATIO_STD, NUM_DRIFTED, spread,
            )  # fmt: skip
            self._includes_ratio = False  # once per run
