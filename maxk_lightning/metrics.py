"""Torchmetrics on top of the estimators: O(K) float64 sums, also in a module that is cast to another type.

Shapes: P prompts, N completions per prompt, K list of k values.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchmetrics import Metric

from maxk_lightning.estimators import max_at_k
from maxk_lightning.objectives import UNKNOWN_BEHAVIOUR, distinct_correct


class _Float64Sums(Metric):
    """A metric whose states are float64 sums; moves between devices, ignores changes of dtype.

    States are replaced, not changed in place: those that `Trainer.validate` makes in inference mode could not be
    changed in a later `fit`.

    A count of 601 reads 600 after `.to(torch.bfloat16)`, and `bf16-true` precision casts the whole LightningModule, its
    metrics included: torchmetrics guards `.half()` and its like, but not `.to(dtype)`.
    """

    full_state_update = False

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> "Metric":
        def move_only(tensor: Tensor) -> Tensor:
            return tensor.to(fn(tensor).device)

        return super()._apply(move_only, exclude_state)  # type: ignore[return-value]

    def _add_sum(self, name: str, *shape: int) -> None:
        self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")


class _CurveOverK(_Float64Sums):
    """Mean over prompts of a value, with its standard error, for every k of `ks`.

    `compute` gives `{"NAME/8": mean, "NAME_stderr/8": standard error over prompts, ...}`: NaN where no group has a
    value at k (the standard error also where only one has).
    """

    name: str
    higher_is_better = True
    total_K: Tensor
    square_K: Tensor
    count_K: Tensor

    def __init__(self, ks: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not ks or min(ks) < 1 or len(set(ks)) < len(ks):
            raise ValueError(f"ks is {list(ks)}, must hold distinct positive integers")
        self.ks = sorted(ks)
        for state in ("total_K", "square_K", "count_K"):
            self._add_sum(state, len(self.ks))

    def _add(self, values_PK: Tensor) -> None:
        """Add groups with a value at each of the first ks."""
        num_ks = values_PK.shape[1]
        rest = (0, len(self.ks) - num_ks)
        self.total_K = self.total_K + pad(values_PK.sum(dim=0), rest)
        self.square_K = self.square_K + pad(values_PK.square().sum(dim=0), rest)
        self.count_K = self.count_K + pad(values_PK.new_full((num_ks,), len(values_PK)), rest)

    def compute(self) -> dict[str, Tensor]:
        """Compute means and standard errors under their log names."""
        mean_K = self.total_K / self.count_K
        # One group has no variance: 0/0 makes the NaN that says so.
        variance_K = (self.square_K / self.count_K - mean_K.square()).clamp(min=0.0) / (self.count_K - 1)
        means = {f"{self.name}/{k}": mean for k, mean in zip(self.ks, mean_K, strict=True)}
        errors = {f"{self.name}_stderr/{k}": error for k, error in zip(self.ks, variance_K.sqrt(), strict=True)}
        return means | errors


class MaxAtK(_CurveOverK):
    """Mean over prompts of the unbiased max@k, with its standard error, for every k of `ks`.

    A group with fewer than k samples (NaN marks a missing one) is left out of that k: `count_K` may differ between ks.
    `compute` gives `{"max_at_k/8": mean, "max_at_k_stderr/8": standard error over prompts, ...}`: NaN where no group
    has k samples (the standard error also where only one has).

    >>> metric = MaxAtK(ks=[1, 2])
    >>> metric.update(torch.tensor([[0.0, 1.0, float("nan")], [0.5, 0.5, 0.5]]))
    >>> {name: round(float(value), 3) for name, value in metric.compute().items() if "stderr" not in name}
    {'max_at_k/1': 0.5, 'max_at_k/2': 0.75}
    """

    name = "max_at_k"

    def update(self, rewards_PN: Tensor) -> None:
        """Add groups of rewards; NaN marks a missing sample. ValueError unless they are [P, N]."""
        if rewards_PN.ndim != 2:
            raise ValueError(f"rewards_PN has shape {tuple(rewards_PN.shape)}, must be [prompts, completions]")
        rewards_PN = rewards_PN.detach().to(self.total_K)
        num_samples_P = rewards_PN.isnan().logical_not().sum(dim=1)
        for num_samples in sorted(set(num_samples_P.tolist())):
            num_ks = sum(k <= num_samples for k in self.ks)
            if num_ks:
                self._add(max_at_k(rewards_PN[num_samples_P == num_samples], self.ks[:num_ks]))


class RealisedMaxAtK(_CurveOverK):
    """Mean over prompts of realised best-of-k, for every k of `ks`: the reward of the one of k samples that is chosen.

    >>> metric = RealisedMaxAtK(ks=[1, 2])
    >>> metric.update(torch.tensor([[0.5, 1.0], [0.0, float("nan")]]))
    >>> {name: float(value) for name, value in metric.compute().items() if "stderr" not in name}
    {'realised_max_at_k/1': 0.25, 'realised_max_at_k/2': 1.0}
    """

    name = "realised_max_at_k"

    def update(self, values_PK: Tensor) -> None:
        """Add values of groups, from `selection.realised_at_k`: [P, K], else ValueError; NaN above a group's size."""
        if values_PK.ndim != 2 or values_PK.shape[1] != len(self.ks):
            raise ValueError(f"values_PK has shape {tuple(values_PK.shape)}, must be [prompts, {len(self.ks)}]")
        values_PK = values_PK.detach().to(self.total_K)
        num_ks_P = values_PK.isnan().logical_not().sum(dim=1)
        for num_ks in sorted(set(num_ks_P.tolist())):
            self._add(values_PK[num_ks_P == num_ks, :num_ks])


class PassAtK(MaxAtK):
    """Mean over prompts of the unbiased pass@k: the max@k of the indicator `reward >= correct_at`.

    `correct_at` is the reward of a fully correct completion, 1.0 for the share of tests passed.
    """

    name = "pass_at_k"

    def __init__(self, ks: Sequence[int], correct_at: float = 1.0, **kwargs: Any) -> None:
        super().__init__(ks, **kwargs)
        self.correct_at = correct_at

    def update(self, rewards_PN: Tensor) -> None:
        """Add groups of rewards; NaN marks a missing sample."""
        is_correct_PN = (rewards_PN >= self.correct_at).double()
        super().update(is_correct_PN.masked_fill(rewards_PN.isnan(), torch.nan))


class WeightedMean(_Float64Sums):
    """Weighted mean of all values that it was given; NaN values have no weight; NaN if nothing has a weight.

    `torchmetrics.MeanMetric` sums in float32 and follows its module to bfloat16.
    """

    total: Tensor
    weight: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._add_sum("total")
        self._add_sum("weight")

    def update(self, values: Tensor | float, weights: Tensor | float = 1.0) -> None:
        """Add values of any shape; `weights` broadcasts to it."""
        values = torch.as_tensor(values).detach().to(self.total)
        weights = torch.as_tensor(weights).to(self.total).broadcast_to(values.shape).masked_fill(values.isnan(), 0.0)
        self.total = self.total + (values.nan_to_num(nan=0.0) * weights).sum()
        self.weight = self.weight + weights.sum()

    def compute(self) -> Tensor:
        """Compute the mean."""
        return self.total / self.weight


NUM_KS = 12
"Curves are computed for k = 1, 2, 4, ..., 2048; those above the group size have no value."


def powers_of_two(num_samples: int) -> list[int]:
    """List 1, 2, 4, ... up to the samples per problem."""
    return [2**exponent for exponent in range(num_samples.bit_length())]


class RolloutMetrics(nn.Module):
    """Everything that is logged about a set of scored groups, in training and in validation alike.

    `compute` gives `reward`, `max_at_k/<k>`, `pass_at_k/<k>` for every k that a group reached, `distinct_correct`, the
    mean over groups of the different behaviours among their correct completions, and the mean over completions of each
    tag. All of it is a sum over ranks divided by a sum over ranks.
    """

    def __init__(self, tags: Iterable[str]) -> None:
        """Prepare for values of these tags, one per completion."""
        super().__init__()
        ks = [2**exponent for exponent in range(NUM_KS)]
        self.max_at_k = MaxAtK(ks)
        self.pass_at_k = PassAtK(ks)
        self.distinct_correct = WeightedMean()
        self.means = nn.ModuleDict({tag: WeightedMean() for tag in tags})

    def update(self, rewards_PN: Tensor, values: Mapping[str, Tensor], behaviours_PN: Tensor) -> None:
        """Add groups: their rewards, NaN = missing, the values of every tag, one per completion, and behaviours.

        A group whose behaviours are all unknown is left out of `distinct_correct`.
        """
        self.max_at_k.update(rewards_PN)
        self.pass_at_k.update(rewards_PN)
        is_known_P = (behaviours_PN > UNKNOWN_BEHAVIOUR).any(1)
        self.distinct_correct.update(distinct_correct(rewards_PN, behaviours_PN), is_known_P)
        for tag, mean in self._tagged_means:
            mean.update(values[tag])

    def compute(self) -> dict[str, float]:
        """Compute the values by tag; those without any sample are left out."""
        values = {**self.max_at_k.compute(), **self.pass_at_k.compute()}
        values = {tag: value for tag, value in values.items() if "stderr" not in tag}
        values["reward"] = values["max_at_k/1"]
        values["distinct_correct"] = self.distinct_correct.compute()
        values |= {tag: mean.compute() for tag, mean in self._tagged_means}
        return {tag: float(value) for tag, value in values.items() if not value.isnan()}

    def reset(self) -> None:
        """Forget everything."""
        for metric in (self.max_at_k, self.pass_at_k, self.distinct_correct, *(mean for _, mean in self._tagged_means)):
            metric.reset()

    @property
    def _tagged_means(self) -> list[tuple[str, WeightedMean]]:
        return cast("list[tuple[str, WeightedMean]]", list(self.means.items()))  # a ModuleDict forgets the type
