"""Weights between two policies: what fine-tuning changed, taken back in part (WiSE-FT, arXiv:2109.01903)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_interpolation(towards: str | None, by: float | None, adapter: bool) -> None:
    """Refuse options of `export` that do not go together.

    Raises:
        ValueError: one of the two is missing, the share is not between 0 and 1, or only an adapter is asked for.
    """
    if (towards is None) != (by is None):
        raise ValueError("--towards and --by belong together: a policy, and the share of its weights")
    if by is not None and not 0.0 < by < 1.0:
        raise ValueError(f"--by is {by}, must be between 0 (the checkpoint's policy) and 1 (that of --towards)")
    if towards is not None and adapter:
        raise ValueError("--adapter: weights between two policies are no adapter")


def interpolate(model: "PreTrainedModel", towards: str, by: float) -> None:
    """Move a model's weights towards those of another policy, in place: (1 - by) x its own + by x the other's.

    Raises:
        ValueError: the other policy has other weights, by name or shape.
    """
    import torch

    from maxk_lightning.policy import load_model

    own, other = model.state_dict(), load_model(towards).state_dict()
    shapes = [{name: weight.shape for name, weight in weights.items()} for weights in (own, other)]
    differing = sorted(
        name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name)
    )
    if differing:
        raise ValueError(f"--towards: {towards} has other weights than the checkpoint's policy, first {differing[0]}")
    moved = {name: torch.lerp(weight.double(), other[name].double(), by) for name, weight in own.items()}
    model.load_state_dict({name: moved[name].to(weight.dtype) for name, weight in own.items()})
