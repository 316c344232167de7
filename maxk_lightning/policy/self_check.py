"""A policy is compared with its model once, before it trains: packed completions against each completion alone.

This finds what a model does in its own forward pass and `Policy` does not (another scale of logits, attention of its
own, layers that count tokens of a row), whatever its name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from maxk_lightning.policy.packing import pack
from maxk_lightning.policy.policy import Policy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NUM_PROMPT_TOKENS, COMPLETION_TOKENS = 5, (3, 4)
WINDOW = 3
"Sliding window during the check, shorter than its sequences, so that windows are checked too."
MAX_DEVIATION, MAX_DEVIATION_HALF = 0.01, 0.2
"""Mean difference in nats per token above which a policy is refused, by type of its weights. Rounding makes 1e-7 to
1e-4 in float32 and up to .05 in half types; a part of the computation left out makes .1 and more."""


def checked_policy(model: "PreTrainedModel", name: str) -> Policy:
    """Make the policy of a model.

    Raises:
        ValueError: its log-probs, with all that training switches on, are not those of the model's own forward pass.
    """
    ids = _some_tokens(model.config.get_text_config().vocab_size)
    prompt, rest = ids[:NUM_PROMPT_TOKENS], ids[NUM_PROMPT_TOKENS:]
    completions = [rest[: COMPLETION_TOKENS[0]], rest[COMPLETION_TOKENS[0] :]]
    was_training = model.training
    try:
        # A few tokens are not worth compiling `flex_attention` for.
        with torch.no_grad(), _short_window(model), torch.compiler.set_stance("force_eager"):
            model.eval()  # type: ignore[no-untyped-call]
            alone_M = torch.cat([_logprobs_alone(model, prompt, completion) for completion in completions])
            policy = Policy(model).train()
            rows = pack([prompt], [completions]).to(model.device)
            stats = policy(rows, 1.0)
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
        raise ValueError(f"{_refusal(name, model)}: its forward pass takes no packed rows ({error})") from error
    policy.train(was_training)
    deviation = float((stats.logprobs_BT[rows.mask_BT] - alone_M).abs().mean())
    limit = MAX_DEVIATION if model.dtype.itemsize >= 4 else MAX_DEVIATION_HALF
    if not deviation <= limit:
        raise ValueError(
            f"{_refusal(name, model)}: log-probs of completions that share a prompt are {deviation:.2g} nats per "
            f"token away from those of its own forward pass"
        )
    return policy


def _refusal(name: str, model: "PreTrainedModel") -> str:
    return f"model.policy: {name} ({type(model).__name__}) is not supported"


def _some_tokens(vocabulary: int) -> list[int]:
    """Different tokens, not the first of the vocabulary, which are often special."""
    return [(vocabulary // 3 + 7 * index) % vocabulary for index in range(NUM_PROMPT_TOKENS + sum(COMPLETION_TOKENS))]


def _logprobs_alone(model: "PreTrainedModel", prompt: list[int], completion: list[int]) -> Tensor:
    ids_1L = torch.tensor([prompt + completion], device=model.device)
    logits_TV: Tensor = model(input_ids=ids_1L, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    return logits_TV.log_softmax(-1).gather(1, ids_1L[0, len(prompt) :, None]).squeeze(1)


@contextmanager
def _short_window(model: "PreTrainedModel") -> Iterator[None]:
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if window is not None:
        config.sliding_window = min(window, WINDOW)
    try:
        yield
    finally:
        if window is not None:
            config.sliding_window = window
