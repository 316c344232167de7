"""The policy: loading it, and log-probs of given completions."""

from maxk_lightning.policy.loading import (
    BUILTIN,
    build_policy,
    find_policy,
    load_model,
    load_stop_tokens,
    load_tokenizer,
    resolve_policy,
    weight_shapes,
)
from maxk_lightning.policy.policy import Policy, TokenStats

__all__ = [
    "BUILTIN",
    "Policy",
    "TokenStats",
    "build_policy",
    "find_policy",
    "load_model",
    "load_stop_tokens",
    "load_tokenizer",
    "resolve_policy",
    "weight_shapes",
]
