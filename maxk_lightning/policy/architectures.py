"""Which models can be trained, by their description, and what a model does besides its layers and its head."""

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from maxk_lightning.policy.masks import FULL, SLIDING, attention_kinds

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Attention = Literal["sdpa", "eager", "flex_attention"]
"Implementation of attention that takes a mask for packed rows."


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadScaling:
    """What a model does with the numbers that its output head makes of hidden states."""

    factor: float = 1.0
    "Number that multiplies them: `logit_scale` of Cohere, 1 / `logits_scaling` of Granite."
    cap: float | None = None
    "Limit c of c * tanh(logits / c): `final_logit_softcapping` of Gemma 2."


def head_scaling(config: "PreTrainedConfig") -> HeadScaling:
    """Read the scaling from a configuration."""
    text = config.get_text_config()
    factor = (getattr(text, "logit_scale", None) or 1.0) / (getattr(text, "logits_scaling", None) or 1.0)
    return HeadScaling(factor=factor, cap=getattr(text, "final_logit_softcapping", None))


def attention_implementation(config: "PreTrainedConfig", asked: Attention | None = None) -> Attention | None:
    """Choose the implementation of a model's attention; None: the default of transformers.

    Raises:
        ValueError: `sdpa` was asked for, which leaves out the cap on attention scores of Gemma 2.
    """
    has_cap = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    if asked == "sdpa" and has_cap:
        raise ValueError("model.attn_implementation: sdpa leaves out this model's cap on scores, set it to null")
    return asked or ("eager" if has_cap else None)


def check_architecture(model: "PreTrainedModel", policy: str) -> None:
    """Refuse a model whose completions cannot share a packed row behind one copy of their prompt.

    Raises:
        ValueError: the model has something else; the message says what.
    """
    reason = _obstacle(model)
    if reason is not None:
        raise ValueError(f"model.policy: {policy} ({type(model).__name__}) is not supported: {reason}")


def _obstacle(model: "PreTrainedModel") -> str | None:
    config, text = model.config, model.config.get_text_config()
    kinds = attention_kinds(config) - {FULL, SLIDING} | {"local"} & set(getattr(text, "attention_layers", ()))
    if config.is_encoder_decoder or getattr(text, "add_cross_attention", False):
        return "it has an encoder or cross-attention"
    if getattr(model, "_is_stateful", False):
        return "it has recurrent layers, whose state runs through all tokens of a row"
    if kinds:
        return f"it has layers of the kind {', '.join(sorted(kinds))}, not only {FULL} and {SLIDING}"
    if not getattr(text, "is_causal", True) or getattr(text, "use_bidirectional_attention", None):
        return "its attention looks ahead"
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return "it takes no position_ids, and positions restart with every completion"
    if not isinstance(getattr(model.get_output_embeddings(), "weight", None), Tensor):  # type: ignore[no-untyped-call]
        return "it has no output head of the form of a matrix"
    return None


def remove_noise(model: nn.Module) -> None:
    """Set every dropout rate and router jitter to 0, in place: the policy that trains must be the one that samples.

    Evaluation mode would do the same, but in it transformers recomputes no activations.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(module, name, 0.0)


def max_positions(model: nn.Module) -> int | None:
    """Return the number of positions up to which rotary frequencies stay the same; None: they always do.

    Beyond it, the kinds `longrope` and `dynamic` of transformers take them from the longest sequence of a batch, so the
    log-probs of a completion would depend on the others.
    """
    limits = []
    for module in model.modules():
        kinds = getattr(module, "rope_type", "default")
        names = set(kinds.values() if isinstance(kinds, dict) else [kinds])
        if any("dynamic" in str(name) for name in names):
            limits.append(int(module.original_max_seq_len))  # type: ignore[arg-type]
        elif "longrope" in names:
            limits.append(int(module.config.rope_parameters["original_max_position_embeddings"]))  # type: ignore
    return min(limits, default=None)
