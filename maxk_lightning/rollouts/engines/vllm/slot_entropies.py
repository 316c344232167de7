"""Entropies kept on the device, by the slot that a request has in vLLM's batch. Torch only.

Legend: R rows of logits in this step, V vocabulary.
"""

import torch
from torch import Tensor


def entropies_of(logits_RV: Tensor) -> Tensor:
    """Entropy of each row's softmax, nats, [R]."""
    entropies_R: Tensor = torch.special.entr(logits_RV.float().softmax(-1)).sum(-1)
    return entropies_R


class SlotEntropies:
    """A row of entropies per slot, one value per sampled token. Nothing waits for the device before `take`."""

    def __init__(self, num_slots: int, num_tokens: int, device: torch.device) -> None:
        self._rows = torch.zeros(num_slots, num_tokens + 1, device=device)  # the last column takes what is not wanted
        self._temperatures = torch.ones(num_slots, device=device)
        self._starts = torch.zeros(num_slots, dtype=torch.long, device=device)
        self._requests: dict[int, str] = {}  # by slot
        self._left: dict[str, Tensor] = {}  # rows of requests that lost their slot and were not taken

    def add(self, slot: int, request: str | None, temperature: float, num_prompt_tokens: int) -> None:
        """Give a slot to a request; one that vLLM had preempted keeps the row it had.

        Args:
            slot: Its number; the request that had it before is over, or preempted.
            request: Name of the request; None: its entropies are not wanted.
            temperature: Divides its logits; 0 (greedy): nothing does.
            num_prompt_tokens: Tokens of its prompt.
        """
        self._leave(slot)
        self._temperatures[slot] = temperature or 1.0
        self._starts[slot] = num_prompt_tokens
        if request is None:
            return
        for other in [other for other, name in self._requests.items() if name == request]:
            self._leave(other)
        if request in self._left:
            self._rows[slot] = self._left.pop(request)
        self._requests[slot] = request

    def note(self, logits_RV: Tensor, slots_R: Tensor, lengths_R: Tensor) -> None:
        """Write the entropy of each row.

        Args:
            logits_RV: Before the temperature.
            slots_R: Slot of each row, long.
            lengths_R: Tokens of the request before the one that is drawn, long. If they are fewer than its prompt has,
                a part of the prompt was computed, and the token is not kept.
        """
        values_R = entropies_of(logits_RV / self._temperatures[slots_R].unsqueeze(-1))
        unwanted = self._rows.shape[1] - 1
        numbers_R = lengths_R - self._starts[slots_R]
        is_wanted_R = (numbers_R >= 0) & (numbers_R < unwanted)
        self._rows.index_put_((slots_R, torch.where(is_wanted_R, numbers_R, unwanted)), values_R)

    def take(self, request: str, num_tokens: int) -> tuple[float, ...]:
        """Return the first entropies of a request in nats, and forget it."""
        for slot in [slot for slot, name in self._requests.items() if name == request]:
            self._leave(slot)
        return tuple(self._left.pop(request)[:num_tokens].tolist())

    def clear(self) -> None:
        """Forget all requests."""
        self._requests.clear()
        self._left.clear()

    def _leave(self, slot: int) -> None:
        request = self._requests.pop(slot, None)
        if request is not None:
            self._left[request] = self._rows[slot].clone()
