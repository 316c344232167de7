"""How much entropy is rewarded: the coefficient of a bonus that is added to the objective."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AdaptiveEntropy:
    """A coefficient that looks for the smallest bonus which keeps the policy's entropy at a target.

    After every optimizer step it rises by `rate` if the mean entropy per token was below `target`, and falls by `rate`
    if not, within [0, max_coef]; after Skywork-OR1 (arXiv:2505.22312), which also switches the bonus off at once above
    the target. Checkpoints hold its value.
    """

    target: float
    "Entropy in nats per token, of the policy at `rollout.sampling.temperature`."
    initial: float = 0.0
    "Coefficient of the first step."
    rate: float = 0.001
    "Change of the coefficient after a step."
    max_coef: float = 0.1
    "Upper bound of the coefficient."

    def __post_init__(self) -> None:
        if not self.target > 0.0:
            raise ValueError(f"model.entropy_coef.target is {self.target}, must be positive")
        if not self.rate > 0.0:
            raise ValueError(f"model.entropy_coef.rate is {self.rate}, must be positive")
        if not 0.0 <= self.initial <= self.max_coef:
            raise ValueError(
                f"model.entropy_coef.initial is {self.initial}, must be from 0 to max_coef ({self.max_coef})"
            )

    def following(self, coef: float, entropy: float) -> float:
        """Return the coefficient after a step with this mean entropy, nats per token; unchanged if that is not finite.

        >>> AdaptiveEntropy(target=0.2, rate=0.25, max_coef=1.0).following(0.5, entropy=0.1)
        0.75
        """
        if not math.isfinite(entropy):
            return coef
        moved = coef + self.rate if entropy < self.target else coef - self.rate
        return min(self.max_coef, max(0.0, moved))


class EntropyBonus:
    """The coefficient in force: fixed, or adaptive with a state."""

    def __init__(self, coef: float | AdaptiveEntropy) -> None:
        """Begin with the first coefficient; ValueError for a negative one."""
        if isinstance(coef, float | int) and not 0.0 <= coef < math.inf:
            raise ValueError(f"model.entropy_coef is {coef}, must not be negative")
        self._adaptive = coef if isinstance(coef, AdaptiveEntropy) else None
        self.coef: float = self._adaptive.initial if self._adaptive is not None else float(coef)  # type: ignore[arg-type]
        "Coefficient of the next optimizer step."

    @property
    def is_on(self) -> bool:
        """Whether any step may have a bonus."""
        return self._adaptive is not None or self.coef > 0.0

    def after(self, entropy: float) -> dict[str, float]:
        """Update the coefficient after a step with this mean entropy; return the one it had, for the log, if any."""
        used = {"entropy_coef": self.coef} if self.is_on else {}
        if self._adaptive is not None:
            self.coef = self._adaptive.following(self.coef, entropy)
        return used

    def restore(self, coef: float | None) -> None:
        """Continue with the coefficient of a checkpoint, unless it is fixed."""
        if self._adaptive is not None and coef is not None:
            self.coef = min(self._adaptive.max_coef, coef)
