"""Entropies of the distributions that vLLM samples from."""

from typing import Any

import torch
from torch import Tensor


def entropy_recorder(entropies: dict[str, dict[int, float]]) -> type:
    """Make a logits processor that changes nothing and notes the entropy of every row, by request and position.

    Args:
        entropies: Filled while vLLM samples: request -> position of the token -> nats.
    """
    from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

    class EntropyRecorder(LogitsProcessor):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
            self.rows: dict[int, tuple[str, list[int]]] = {}  # request, and the list that its tokens are added to

        def is_argmax_invariant(self) -> bool:
            return True  # vLLM then calls it behind the temperature

        def update_state(self, batch_update: Any) -> None:
            if batch_update is None:
                return
            for row in batch_update.removed:
                self.rows.pop(row, None)
            for row, parameters, _, token_ids in batch_update.added:
                self.rows[row] = parameters.extra_args["request"], token_ids
            for source, target, direction in batch_update.moved:
                displaced, moving = self.rows.pop(target, None), self.rows.pop(source, None)
                if moving is not None:
                    self.rows[target] = moving
                if displaced is not None and direction == MoveDirectionality.SWAP:
                    self.rows[source] = displaced

        def apply(self, logits: Tensor) -> Tensor:
            values = torch.special.entr(logits.float().softmax(-1)).sum(-1).tolist()
            for row, (request, token_ids) in self.rows.items():
                entropies.setdefault(request, {})[len(token_ids)] = values[row]
            return logits

    return EntropyRecorder
