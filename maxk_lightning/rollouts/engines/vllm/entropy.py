"""Entropies of the distributions that vLLM samples from, noted by its own interface for logits processors.

vLLM has two model runners, each with an interface of its own; `entropy_recorder` makes the one that vLLM will load.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from maxk_lightning.rollouts.engines.vllm.slot_entropies import SlotEntropies, entropies_of

REQUEST, PROMPT_TOKENS = "request", "prompt_tokens"
"Arguments of a request that give the recorder its name, and the length of its prompt."


class Entropies:
    """Entropies by request, filled while vLLM samples."""

    def __init__(self) -> None:
        self.by_position: dict[str, dict[int, float]] = {}
        "Request -> position of the token -> nats; written by the first model runner."
        self.slots: SlotEntropies | None = None
        "Written by the second model runner."

    def take(self, request: str, num_tokens: int) -> tuple[float, ...]:
        """Return the entropies of the tokens of a request that has ended, in nats, and forget them."""
        if self.slots is not None:
            return self.slots.take(request, num_tokens)
        noted = self.by_position.pop(request)
        return tuple(noted[position] for position in range(num_tokens))

    def clear(self) -> None:
        """Forget all requests."""
        self.by_position.clear()
        if self.slots is not None:
            self.slots.clear()


def entropy_recorder(entropies: Entropies, arguments: Mapping[str, Any]) -> type:
    """Make the logits processor that an engine started with `arguments` will load; it changes nothing.

    vLLM itself is asked which model runner it takes: the second needs Triton, so a CPU build takes the first.
    """
    from vllm import EngineArgs

    config = EngineArgs(**arguments).create_engine_config()
    is_second = getattr(config, "use_v2_model_runner", False)
    return _second_runners(entropies) if is_second else _first_runners(entropies)


def _second_runners(entropies: Entropies) -> type:
    """The recorder for model runner V2, whose rows change places at every step while a request keeps its slot."""
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

    class EntropyRecorder(LogitsProcessor):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, req_states: Any) -> None:
            num_tokens = vllm_config.model_config.max_model_len
            self.slots = entropies.slots = SlotEntropies(req_states.max_num_reqs, num_tokens, req_states.device)

        def add_request(self, req_idx: int, sampling_params: Any) -> bool:
            told = sampling_params.extra_args or {}  # nothing in vLLM's own test of memory
            self.slots.add(req_idx, told.get(REQUEST), sampling_params.temperature, told.get(PROMPT_TOKENS, 0))
            return True  # else `apply` would not be called for a batch without other work on its logits

        def apply(self, logits: Tensor, ctx: Any) -> Tensor:
            # `pos` counts the tokens before the one that was fed; the one drawn now comes after that.
            self.slots.note(logits, ctx.expanded_idx_mapping.long(), ctx.pos.long() + 1)
            return logits

    return EntropyRecorder


def _first_runners(entropies: Entropies) -> type:
    """The recorder for model runner V1."""
    from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

    class EntropyRecorder(LogitsProcessor):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
            self.rows: dict[int, tuple[str, list[int]]] = {}  # request, and the list that its tokens are added to

        def is_argmax_invariant(self) -> bool:
            return True  # vLLM then calls it after the temperature

        def update_state(self, batch_update: Any) -> None:
            if batch_update is None:
                return
            for row in batch_update.removed:
                self.rows.pop(row, None)
            for row, parameters, _, token_ids in batch_update.added:
                self.rows[row] = parameters.extra_args[REQUEST], token_ids
            for source, target, direction in batch_update.moved:
                displaced, moving = self.rows.pop(target, None), self.rows.pop(source, None)
                if moving is not None:
                    self.rows[target] = moving
                if displaced is not None and direction == MoveDirectionality.SWAP:
                    self.rows[source] = displaced

        def apply(self, logits: Tensor) -> Tensor:
            values = entropies_of(logits).tolist()
            for row, (request, token_ids) in self.rows.items():
                entropies.by_position.setdefault(request, {})[len(token_ids)] = values[row]
            return logits

    return EntropyRecorder
