"""Log-probs of given tokens from hidden states, without all logits at once.

Legend: M tokens, C a chunk of them, D hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 2**24
"Logits computed at a time on a CPU, tokens times vocabulary: 64 MiB in float32."
CHUNK_LOGITS_GPU = 2**26
"""The fewest on a GPU, which reads the head once per chunk: 441 tokens of a vocabulary of 152k. An H200 does about 400
bf16 FMAs per number read from memory."""
MAX_CHUNK_LOGITS_GPU = 2**28
"""The most on a GPU: 1766 tokens of that vocabulary. The backward pass reads and writes the head's gradient once per
chunk, which at 441 tokens takes as long as the products."""
LOGITS_COPIES = 4
"float32 tensors of a chunk's logits that live at once: logits, log-probs, and the gradients of both."
HALF = (torch.bfloat16, torch.float16)


def has_float32_head(dtype: torch.dtype, device_type: str) -> bool:
    """Whether matrix products of this type on such a device give logits that are not rounded to it.

    Logits of 16 to 32 are 0.125 apart in bfloat16: hundredths of a nat per token, which add up over a completion. A GPU
    leaves the sums of its products in float32 at no cost. A CPU has no such product, and one of float32 takes 3 to 4
    times as long. An engine has to compute its logits in the same way.
    """
    return dtype not in HALF or device_type == "cuda"


def chunk_logits_for(free_bytes: int) -> int:
    """Return the number of logits at a time on a GPU with `free_bytes` left: they take half of it, within bounds.

    >>> [chunk_logits_for(gib * 2**30) / 2**26 for gib in (1, 4, 80)]
    [1.0, 2.0, 4.0]
    """
    return min(max(free_bytes // (2 * LOGITS_COPIES * 4), CHUNK_LOGITS_GPU), MAX_CHUNK_LOGITS_GPU)


def project(
    head: nn.Module,
    hidden_MD: Tensor,
    targets_M: Tensor,
    temperature: float,
    *,
    cap: float | None = None,
    has_entropy_grad: bool = False,
    chunk_logits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute logprobs_M and entropies_M of targets under softmax(head(hidden) / temperature), float32, nats.

    Entropies have a gradient with `has_entropy_grad` only: it needs more memory. With `cap` the logits are
    cap * tanh(head(hidden) / cap), before the temperature.

    `chunk_logits` logits are computed at a time, and again in the backward pass. A plain matrix has a backward pass of
    its own, which adds up the head's gradient in place; anything else (a bias, adapters, a cap) goes through activation
    checkpointing.
    """
    vocabulary: int = head.weight.shape[0]  # type: ignore[assignment, index]
    chunk_logits = chunk_logits or _chunk_logits(hidden_MD.device)
    chunk_tokens = max(1, chunk_logits // vocabulary)
    if type(head) is nn.Linear and getattr(head, "bias", None) is None and cap is None:
        dtype = _compute_dtype(hidden_MD)
        logprobs_M, entropies_M = _Projection.apply(  # type: ignore[no-untyped-call]
            hidden_MD.to(dtype), head.weight.to(dtype), targets_M, temperature, chunk_tokens
        )
        return logprobs_M, entropies_M if has_entropy_grad else entropies_M.detach()
    chunks = [
        checkpoint(_head_stats, head, hidden_CD, targets_C, temperature, cap, has_entropy_grad, use_reentrant=False)
        for hidden_CD, targets_C in _chunks(chunk_tokens, hidden_MD, targets_M)
    ]
    logprobs, entropies = zip(*chunks, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


class _Projection(torch.autograd.Function):
    """The backward pass starts with the last chunk: its log-probs are kept, those of the others computed again."""

    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor, temperature: float, chunk_tokens: int
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies = [], []
        for hidden_CD, targets_C in _chunks(chunk_tokens, hidden_MD, targets_M):
            all_logprobs_CV = _all_logprobs(_logits(hidden_CD, weight_VD), temperature)
            logprobs.append(_chosen(all_logprobs_CV, targets_C))
            entropies.append(_entropies(all_logprobs_CV))
        ctx.save_for_backward(hidden_MD, weight_VD, targets_M)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        # A tensor of its own, not of the graph; kept here because it has to be released before the next chunk.
        ctx.last_logprobs_CV = all_logprobs_CV if any(ctx.needs_input_grad) else None
        ctx.set_materialize_grads(False)
        return torch.cat(logprobs), torch.cat(entropies)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grads_M: Tensor | None, entropy_grads_M: Tensor | None
    ) -> tuple[Tensor, Tensor | None, None, None, None]:
        """d log softmax(z / T)_y / dz = (1[y] - p) / T, and dH / dz = -p (log p + H) / T."""
        hidden_MD, weight_VD, targets_M = ctx.saved_tensors
        if grads_M is None:
            if entropy_grads_M is None:
                return torch.zeros_like(hidden_MD), None, None, None, None
            grads_M = torch.zeros_like(entropy_grads_M)
        has_entropy_grad = entropy_grads_M is not None
        entropy_grads_M = grads_M if entropy_grads_M is None else entropy_grads_M / ctx.temperature  # or not read
        hidden_grads_MD = torch.empty_like(hidden_MD)
        weight_grad_VD = None
        if ctx.needs_input_grad[1]:
            weight_grad_VD = torch.zeros_like(weight_VD, dtype=torch.promote_types(weight_VD.dtype, torch.float32))
        chunks = _chunks(
            ctx.chunk_tokens, hidden_MD, targets_M, grads_M / ctx.temperature, entropy_grads_M, hidden_grads_MD
        )
        for hidden_CD, targets_C, grads_C, entropy_grads_C, hidden_grads_CD in reversed(chunks):
            if ctx.last_logprobs_CV is None:
                logprobs_CV = _all_logprobs(_logits(hidden_CD, weight_VD), ctx.temperature)
            else:
                logprobs_CV, ctx.last_logprobs_CV = ctx.last_logprobs_CV, None
            if has_entropy_grad:
                factors_CV = (logprobs_CV + _entropies(logprobs_CV)[:, None]).mul_(entropy_grads_C[:, None])
                logit_grads_CV = logprobs_CV.exp_().mul_(factors_CV.add_(grads_C[:, None]).neg_())
            else:
                logit_grads_CV = logprobs_CV.exp_().mul_(-grads_C[:, None])
            logit_grads_CV.scatter_add_(1, targets_C[:, None], grads_C[:, None])
            logit_grads_CV = logit_grads_CV.to(weight_VD.dtype)
            torch.mm(logit_grads_CV, weight_VD, out=hidden_grads_CD)
            if weight_grad_VD is None:
                continue
            if weight_grad_VD.dtype == weight_VD.dtype:
                weight_grad_VD.addmm_(logit_grads_CV.T, hidden_CD)
            else:
                weight_grad_VD += logit_grads_CV.T @ hidden_CD  # half precision inside a chunk only
        weight_grad_VD = None if weight_grad_VD is None else weight_grad_VD.to(weight_VD.dtype)
        return hidden_grads_MD, weight_grad_VD, None, None, None


class _HalfProduct(torch.autograd.Function):
    """hidden weight^T of half precision, with float32 results."""

    @staticmethod
    def forward(ctx: Any, hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_CD, weight_VD)
        return _logits(hidden_CD, weight_VD).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads_CV: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden_CD, weight_VD = ctx.saved_tensors
        grads_CV = grads_CV.to(weight_VD.dtype)
        return (
            grads_CV @ weight_VD if ctx.needs_input_grad[0] else None,
            grads_CV.T @ hidden_CD if ctx.needs_input_grad[1] else None,
        )


def _logits(hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
    """Logits, float32 where `has_float32_head` says so; of half precision elsewhere."""
    is_half = hidden_CD.dtype in HALF and len(hidden_CD) > 0
    if is_half and has_float32_head(hidden_CD.dtype, hidden_CD.device.type):
        return torch.mm(hidden_CD, weight_VD.T, out_dtype=torch.float32)
    return F.linear(hidden_CD, weight_VD)


def _logits_of(head: nn.Module, hidden_CD: Tensor) -> Tensor:
    """Logits of any head, by the product of `_logits` where it is a matrix."""
    dtype = _compute_dtype(hidden_CD)
    if type(head) is not nn.Linear or dtype not in HALF:
        logits_CV: Tensor = head(hidden_CD)
        return logits_CV
    logits_CV = _HalfProduct.apply(hidden_CD.to(dtype), head.weight.to(dtype))  # type: ignore[no-untyped-call]
    return logits_CV if head.bias is None else logits_CV + head.bias.float()


def _head_stats(
    head: nn.Module,
    hidden_CD: Tensor,
    targets_C: Tensor,
    temperature: float,
    cap: float | None,
    has_entropy_grad: bool,
) -> tuple[Tensor, Tensor]:
    logits_CV = _logits_of(head, hidden_CD)
    if cap is not None:
        logits_CV = cap * torch.tanh(logits_CV / cap)
    all_logprobs_CV = _all_logprobs(logits_CV, temperature)
    entropies_C = _entropies(all_logprobs_CV if has_entropy_grad else all_logprobs_CV.detach())
    return _chosen(all_logprobs_CV, targets_C), entropies_C


def _all_logprobs(logits_CV: Tensor, temperature: float) -> Tensor:
    wide_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    if temperature != 1.0:
        wide_CV = wide_CV / temperature if wide_CV.requires_grad else wide_CV.div_(temperature)
    return F.log_softmax(wide_CV, dim=-1)


def _chosen(all_logprobs_CV: Tensor, targets_C: Tensor) -> Tensor:
    return all_logprobs_CV.gather(-1, targets_C[:, None]).squeeze(-1)


def _entropies(all_logprobs_CV: Tensor) -> Tensor:
    with torch.autocast(all_logprobs_CV.device.type, enabled=False):  # it would round both factors to half precision
        dots_C: Tensor = torch.linalg.vecdot(all_logprobs_CV.exp(), all_logprobs_CV)
    return -dots_C


def _chunks(size: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(torch.split(tensor, size) for tensor in tensors), strict=True))


def _chunk_logits(device: torch.device) -> int:
    if device.type != "cuda":
        return CHUNK_LOGITS
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return chunk_logits_for(free + cached)


def _compute_dtype(hidden_MD: Tensor) -> torch.dtype:
    kind = hidden_MD.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_MD.dtype
