"""Adapters as after some training, when B is no longer zero."""

import torch

from maxk_lightning.policy.lora import is_adapter


def randomise(model: torch.nn.Module) -> None:
    """Fill all adapters of a model with random numbers, the same every time."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
