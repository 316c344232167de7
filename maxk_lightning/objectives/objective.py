"""The interface between rewards and the loss: credits, which multiply grad log pi.

Shapes: P prompts, N completions per prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

# jsonargparse 4.53 takes a Protocol whose `__call__` returns a class for a *factory* of that class, and would refuse
# every objective given by class path; it also wants the annotations of an implementation to be identical. With Any at
# run time both go away (a user's class need not be annotated), and type checkers still see tensors.
if TYPE_CHECKING:
    AnyTensor = Tensor
else:
    AnyTensor = Any


UNKNOWN_BEHAVIOUR = -1
"Behaviour of a sample whose behaviour is not known."


class Objective(Protocol):
    """Turns the rewards of each group into credits. Users plug in their own class by class path.

    A class need not inherit from this one, but those that do can be named without their module on the command line.
    Dataclasses of this kind have no slots: jsonargparse reads the `vars` of an instance used as a default.

    An objective whose attribute `needs_behaviours` is True is called with a third argument, which must have a default:
    `behaviours_PN`, int64, equal for samples of a group with the same outputs on all tests, -1 where they are not
    known. An objective whose attribute `told_ks: Sequence[int]` is not empty is called with the keyword `told_ks_P`,
    int64: the number that was drawn from `told_ks` for each group. See `GroupFacts`.
    """

    @property
    def includes_ratio(self) -> bool:
        """Whether credits contain rho_i and multiply grad log pi directly; else they are advantages for a surrogate."""
        ...

    def __call__(self, rewards_PN: AnyTensor, log_ratios_PN: AnyTensor, /) -> AnyTensor:
        """Compute the credits of all samples: credits_PN, float64, without gradient.

        Args:
            rewards_PN: any float type; NaN marks a missing sample, whose credit is 0.
            log_ratios_PN: log pi(y|x) - log pi_old(y|x) summed over the completion; zeros on-policy.

        A credit is what multiplies grad log pi(y_i|x) *summed* over the group in an estimate of the gradient, so the
        published advantage of a method whose loss averages over the n samples is divided by n here.
        """
        ...


def needs_behaviours(objective: Objective) -> bool:
    """Whether an objective is called with the behaviours of its samples."""
    return bool(getattr(objective, "needs_behaviours", False))


def told_ks(objective: Objective) -> Sequence[int]:
    """Return the numbers of tries of which an objective needs one drawn for every group; empty: it needs none."""
    ks: Sequence[int] = getattr(objective, "told_ks", ())
    return ks


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFacts:
    """What some objectives need to know of groups, besides rewards and ratios; None: not known."""

    behaviours_PN: Tensor | None = None
    "Behaviours, int64: equal for samples of a group with the same outputs on all tests, -1 where they are not known."
    told_ks_P: Tensor | None = None
    "Number of tries that was drawn for each group, int64; 0 where none was."

    def moved(self, move: Callable[[Tensor], Tensor]) -> "GroupFacts":
        """Return the same facts with `move` applied to each tensor, for example a move to a device."""
        behaviours_PN, told_ks_P = (
            None if fact is None else move(fact) for fact in (self.behaviours_PN, self.told_ks_P)
        )
        return GroupFacts(behaviours_PN=behaviours_PN, told_ks_P=told_ks_P)


NO_FACTS = GroupFacts()
"For objectives that need none."


def credits_of(objective: Objective, rewards_PN: Tensor, log_ratios_PN: Tensor, facts: GroupFacts = NO_FACTS) -> Tensor:
    """Compute the credits of any objective, with the facts that it needs: credits_PN; see `Objective`."""
    ask: Any = objective
    behaviours = [facts.behaviours_PN] if needs_behaviours(objective) else []
    told = {"told_ks_P": facts.told_ks_P} if told_ks(objective) else {}
    credits_PN: Tensor = ask(rewards_PN, log_ratios_PN, *behaviours, **told)
    return credits_PN


def given_behaviours(objective: Objective, rewards_PN: Tensor, behaviours_PN: Tensor | None) -> Tensor:
    """Return the behaviours of the samples: behaviours_PN, int64; all unknown if none were given.

    Raises:
        ValueError: none were given to an objective that needs them, or they have another shape than the rewards.
    """
    if behaviours_PN is None:
        if needs_behaviours(objective):
            raise ValueError(f"{type(objective).__name__} needs `behaviours_PN`, see `Objective`")
        return torch.full_like(rewards_PN, UNKNOWN_BEHAVIOUR, dtype=torch.int64)
    if behaviours_PN.shape != rewards_PN.shape:
        raise ValueError(f"behaviours have shape {tuple(behaviours_PN.shape)}, rewards {tuple(rewards_PN.shape)}")
    return behaviours_PN


def is_alike(is_counted_PN: Tensor, behaviours_PN: Tensor) -> Tensor:
    """Whether two samples both count and are known to behave alike, itself included: is_alike_PNN."""
    is_known_PN = is_counted_PN & (behaviours_PN > UNKNOWN_BEHAVIOUR)
    is_equal_PNN = behaviours_PN.unsqueeze(2) == behaviours_PN.unsqueeze(1)
    return is_equal_PNN & is_known_PN.unsqueeze(2) & is_known_PN.unsqueeze(1)
