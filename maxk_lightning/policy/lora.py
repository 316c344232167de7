"""Low-rank adapters (LoRA, arXiv:2106.09685) on a policy, through peft; and the plain weights that they result in."""

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from maxk_lightning.checkpoints import CheckpointMismatchError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASE, DOWN, UP = ".base_layer.", ".lora_A.default.", ".lora_B.default."
"peft's infixes for the wrapped layer, A and B."
ALL_LINEAR = "all-linear"
"peft's name for all linear layers but the output head."


@dataclass(frozen=True, kw_only=True)  # no slots: see `types.Sampling`
class LoRA:
    """Train W + alpha / r * B A instead of W, with A and B of rank r.

    There is no dropout: log-probs of the policy being trained must be those of the policy that samples.
    """

    r: int = 32
    "Rank of the adapters."
    alpha: float = 64.0
    "Numerator of the scale alpha / r of the adapters."
    target_modules: str | list[str] = ALL_LINEAR
    "Names of the linear layers that get an adapter; `all-linear`: all but the output head."

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"model.lora.r is {self.r}, must be at least 1")
        if not self.alpha > 0:
            raise ValueError(f"model.lora.alpha is {self.alpha}, must be positive")
        if importlib.util.find_spec("peft") is None:
            raise ValueError("model.lora needs peft: pip install 'maxk-lightning[lora]'")

    @property
    def scaling(self) -> float:
        """The factor of B A."""
        return self.alpha / self.r


def add_adapters(model: "PreTrainedModel", lora: LoRA) -> None:
    """Freeze the model and give it adapters, in place; B is zero, so it computes what it computed before.

    Adapters are float32 whatever the type of the weights: they are what trains.

    Raises:
        ValueError: `target_modules` names no layer, or one that is no plain linear layer: `merged` knows no others.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    targets = lora.target_modules
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=targets, task_type="CAUSAL_LM")  # type: ignore[arg-type]
    try:
        model.add_adapter(config)
    except ValueError as error:  # peft finds no such layer, or one of a type that takes no adapter
        raise ValueError(f"model.lora.target_modules is {targets}: {error}") from error
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[no-untyped-call]
    if any(hasattr(layer, "base_layer") for layer in embeddings):
        raise ValueError(f"model.lora.target_modules is {targets}: embeddings and the output head take no adapter")
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and not isinstance(layer.base_layer, nn.Linear):
            raise ValueError(
                f"model.lora.target_modules is {targets}: {name} is a {type(layer.base_layer).__name__}, no plain "
                "linear layer, whose adapter cannot be merged into the weights that engines load; name other layers, "
                "such as [q_proj, k_proj, v_proj, o_proj]"
            )


def is_adapter(name: str) -> bool:
    """Whether a weight of this name belongs to an adapter."""
    return DOWN in name or UP in name


def merged(named_tensors: Iterable[tuple[str, Tensor]], scaling: float) -> Iterator[tuple[str, Tensor]]:
    """Yield the plain weights of a model with adapters merged in, under the names they have without adapters.

    Holds one adapted weight at a time and changes none: W and its A and B must come before the next adapted W, as
    they do in a `state_dict`. The sum is computed in A's type and rounded to W's.
    """
    base: tuple[str, Tensor] | None = None
    down: Tensor | None = None
    for name, tensor in named_tensors:
        if DOWN in name:
            down = tensor
        elif UP in name:
            assert base is not None, f"{name} comes before the weight that it adapts"
            assert down is not None, f"{name} comes before its A"
            yield base[0], (base[1].to(tensor.dtype) + scaling * (tensor @ down)).to(base[1].dtype)
            base = down = None
        elif BASE in name and name.endswith(".weight"):
            assert base is None, f"{base and base[0]} has no adapter"
            base = name.replace(BASE, "."), tensor
        else:
            yield name.replace(BASE, "."), tensor
    assert base is None, f"{base and base[0]} has no adapter"


def keep_adapters(checkpoint: dict[str, Any], lora: LoRA, *, has_frozen_weights: bool) -> None:
    """Note in a checkpoint which adapters it holds, and drop the frozen weights unless it is to keep them, in place."""
    checkpoint["lora"] = asdict(lora)
    if not has_frozen_weights:
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: weights[name] for name in weights if is_adapter(name)}


def check_adapters(checkpoint: dict[str, Any], lora: LoRA | None) -> None:
    """Refuse a checkpoint that was written with other adapters, or none.

    Raises:
        CheckpointMismatchError: adapters differ; the message says how.
    """
    wanted = None if lora is None else asdict(lora)
    if checkpoint.get("lora") != wanted:
        raise CheckpointMismatchError(
            f"model.lora is {wanted}, but the checkpoint was written with {checkpoint.get('lora')}"
        )


@contextmanager
def without_adapters(model: "PreTrainedModel") -> Iterator[None]:
    """Switch the adapters off inside a `with` block."""
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()
