"""Log-probs without all logits equal those with them, gradients included.

Legend: M tokens, D hidden size, V vocabulary.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maxk_lightning.policy.projection import (
    CHUNK_LOGITS_GPU,
    MAX_CHUNK_LOGITS_GPU,
    chunk_logits_for,
    has_float32_head,
    project,
)
from tests.support.device import needs_gpu

M, D, V = 7, 5, 11


def _plain(head: nn.Module, hidden_MD: Tensor, targets_M: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    all_logprobs_MV = F.log_softmax(head(hidden_MD).float() / temperature, dim=-1)
    entropies_M = -(all_logprobs_MV.exp() * all_logprobs_MV).sum(-1)
    return all_logprobs_MV[torch.arange(len(targets_M)), targets_M], entropies_M


@pytest.mark.parametrize("num_tokens", [0, M])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("chunk_logits", [1, 2 * V, 1000])  # chunks of 1; of 2, 2, 2 and 1; of all tokens
def test_values_and_gradients_are_those_of_full_logits(
    chunk_logits: int, has_bias: bool, temperature: float, num_tokens: int
) -> None:
    torch.manual_seed(0)
    head = nn.Linear(D, V, bias=has_bias)
    hidden_MD = torch.randn(num_tokens, D).requires_grad_()
    targets_M = torch.randint(V, (num_tokens,))
    coefficients_M = torch.randn(num_tokens)
    leaves = [hidden_MD, *head.parameters()]
    ours_M, entropies_M = project(head, hidden_MD, targets_M, temperature, chunk_logits=chunk_logits)
    plain_M, plain_entropies_M = _plain(head, hidden_MD, targets_M, temperature)
    torch.testing.assert_close(ours_M, plain_M)
    torch.testing.assert_close(entropies_M, plain_entropies_M.detach())
    assert not entropies_M.requires_grad
    ours = torch.autograd.grad((ours_M * coefficients_M).sum(), leaves)
    plain = torch.autograd.grad((plain_M * coefficients_M).sum(), leaves)
    torch.testing.assert_close(ours, plain)


def test_the_backward_pass_is_the_derivative_of_the_forward_pass() -> None:
    torch.manual_seed(0)
    head = nn.Linear(D, V, bias=False, dtype=torch.float64)
    targets_M = torch.randint(V, (M,))

    def logprobs(hidden_MD: Tensor, _: Tensor) -> Tensor:
        return project(head, hidden_MD, targets_M, 0.7, chunk_logits=2 * V)[0]

    hidden_MD = torch.randn(M, D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(logprobs, (hidden_MD, head.weight))


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("chunk_logits", [1, 2 * V, 1000])
def test_entropies_have_an_exact_gradient_where_it_is_asked_for(
    chunk_logits: int, cap: float | None, has_bias: bool
) -> None:
    torch.manual_seed(0)
    head = nn.Linear(D, V, bias=has_bias, dtype=torch.float64)
    hidden_MD = torch.randn(M, D, dtype=torch.float64, requires_grad=True)
    targets_M = torch.randint(V, (M,))

    def both(*_: Tensor) -> tuple[Tensor, Tensor]:
        return project(head, hidden_MD, targets_M, 0.7, cap=cap, has_entropy_grad=True, chunk_logits=chunk_logits)

    def entropies(*_: Tensor) -> Tensor:
        return both()[1]

    inputs = (hidden_MD, *head.parameters())
    assert torch.autograd.gradcheck(both, inputs)
    assert torch.autograd.gradcheck(entropies, inputs)
    if cap is None:
        torch.testing.assert_close(entropies(), _plain_wide(head, hidden_MD, 0.7))


def _plain_wide(head: nn.Module, hidden_MD: Tensor, temperature: float) -> Tensor:
    return torch.distributions.Categorical(logits=head(hidden_MD) / temperature).entropy()


def test_a_frozen_head_gets_no_gradient() -> None:
    head = nn.Linear(D, V, bias=False).requires_grad_(False)
    hidden_MD = torch.randn(M, D, requires_grad=True)
    project(head, hidden_MD, torch.zeros(M, dtype=torch.long), 1.0)[0].sum().backward()
    assert head.weight.grad is None
    assert hidden_MD.grad is not None
    assert hidden_MD.grad.abs().sum() > 0


def test_half_precision_is_as_exact_as_its_logits() -> None:
    """Values from the same bfloat16 logits; gradients within a few of bfloat16's steps of 2^-8."""
    torch.manual_seed(0)
    head = nn.Linear(64, V, bias=False, dtype=torch.bfloat16)
    hidden_MD = torch.randn(M, 64, dtype=torch.bfloat16, requires_grad=True)
    targets_M = torch.randint(V, (M,))
    for autocast in (False, True):
        wide = nn.Linear(64, V, bias=False)
        wide.weight.data.copy_(head.weight)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            used = wide if autocast else head  # float32 weights, computed with in bfloat16, as bf16-mixed does
            ours_M, entropies_M = project(used, hidden_MD, targets_M, 1.0, chunk_logits=2 * V)
            capped_M, capped_entropies_M = project(used, hidden_MD, targets_M, 1.0, cap=1e6, chunk_logits=2 * V)
            plain_M, plain_entropies_M = _plain(used, hidden_MD, targets_M, 1.0)
        for values_M in (ours_M, entropies_M, capped_M, capped_entropies_M):
            assert values_M.dtype == torch.float32
        torch.testing.assert_close([ours_M, entropies_M], [plain_M, plain_entropies_M])
        torch.testing.assert_close([capped_M, capped_entropies_M], [plain_M, plain_entropies_M])
        leaves = [hidden_MD, used.weight]
        ours, plain = (torch.autograd.grad(values_M.sum(), leaves) for values_M in (ours_M, plain_M))
        for one, other in zip(ours, plain, strict=True):
            assert one.dtype == other.dtype
            assert (one - other).norm() <= 2**-6 * other.norm()


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("num_tokens", [0, M])
def test_half_precision_heads_of_every_kind_are_near_exact_ones(
    num_tokens: int, cap: float | None, has_bias: bool
) -> None:
    """Against float64 of the same operands: each logit is rounded once, to 2^-9 of itself."""
    torch.manual_seed(0)
    head = nn.Linear(64, V, bias=has_bias, dtype=torch.bfloat16)
    exact_head = nn.Linear(64, V, bias=has_bias, dtype=torch.float64)
    exact_head.load_state_dict(head.state_dict())
    hidden_MD = (4 * torch.randn(num_tokens, 64)).bfloat16().requires_grad_()
    exact_MD = hidden_MD.detach().double().requires_grad_()
    targets_M = torch.randint(V, (num_tokens,))
    ours_M, _ = project(head, hidden_MD, targets_M, 1.0, cap=cap, chunk_logits=2 * V)
    logits_MV = exact_head(exact_MD)
    logits_MV = logits_MV if cap is None else cap * torch.tanh(logits_MV / cap)
    exact_M = F.log_softmax(logits_MV, -1)[torch.arange(num_tokens), targets_M]
    assert ours_M.dtype == torch.float32
    torch.testing.assert_close(ours_M.double(), exact_M, atol=0.03, rtol=0)  # logits up to 8, and 2 of them matter
    ours = torch.autograd.grad(ours_M.sum(), [hidden_MD, *head.parameters()])
    exact = torch.autograd.grad(exact_M.sum(), [exact_MD, *exact_head.parameters()])
    for one, other in zip(ours, exact, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.double() - other).norm() <= 2**-5 * other.norm()


def test_who_has_a_float32_head() -> None:
    assert has_float32_head(torch.float32, "cpu")
    assert has_float32_head(torch.bfloat16, "cuda")
    assert not has_float32_head(torch.bfloat16, "cpu")


@pytest.mark.parametrize("free_gib", [0, 1, 2, 5, 8, 9, 100])
def test_chunks_take_at_most_half_of_what_is_left_unless_they_are_the_smallest(free_gib: int) -> None:
    size = chunk_logits_for(free_gib * 2**30)
    assert CHUNK_LOGITS_GPU <= size <= MAX_CHUNK_LOGITS_GPU
    assert size == CHUNK_LOGITS_GPU or 4 * 4 * size <= free_gib * 2**30 / 2
    assert (size == MAX_CHUNK_LOGITS_GPU) == (free_gib >= 8)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["matrix", "bias", "cap"])
def test_a_gpu_leaves_logits_of_half_precision_in_float32(kind: str) -> None:
    """Logits of up to 30 and more: rounded to bfloat16 they would be 0.06 off."""
    torch.manual_seed(0)
    head = nn.Linear(512, 4096, bias=kind == "bias", dtype=torch.bfloat16, device="cuda")
    hidden_MD = (16 * torch.randn(64, 512, device="cuda")).bfloat16()
    targets_M = torch.randint(4096, (64,), device="cuda")
    cap = 50.0 if kind == "cap" else None
    ours_M, _ = project(head, hidden_MD, targets_M, 1.0, cap=cap)
    logits_MV = F.linear(hidden_MD.double(), head.weight.double(), None if head.bias is None else head.bias.double())
    logits_MV = logits_MV if cap is None else cap * torch.tanh(logits_MV / cap)
    exact_M = F.log_softmax(logits_MV, -1)[torch.arange(64, device="cuda"), targets_M]
    rounded_M = F.log_softmax(logits_MV.bfloat16().double(), -1)[torch.arange(64, device="cuda"), targets_M]
    assert (ours_M.double() - exact_M).abs().max() < 1e-3
    assert (rounded_M - exact_M).abs().max() > 1e-2
    hidden_MD.requires_grad_()
    nothing, everything = (project(head, hidden_MD[:n], targets_M[:n], 1.0, cap=cap)[0].sum() for n in (0, 64))
    hidden_grads, weight_grads = torch.autograd.grad(nothing + everything, [hidden_MD, head.weight])
    assert hidden_grads.isfinite().all()
    assert weight_grads.isfinite().all()
