"""Tabular policies of whole sequences whose max@k and its gradient are known exactly, for `sequence_study.py`.

A policy is a table of logits, one row per *context*, and a completion has T tokens. In family `independent` the context
of a token is its position: tokens do not know each other. In family `markov` it is the token before, one table for all
positions: a change of one row moves tokens everywhere, and what a token is worth depends on what follows.

A token scores a point where `hits` says so. The reward is a rising function of the points, so their distribution, by
dynamic programming, gives max@k = E[best of k] exactly, and autograd its gradient.

Shapes: R replicates (toys, or toys times batches), S sequences, T tokens, C contexts, V symbols, M = T + 1 scores.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Family = Literal["independent", "markov"]
NUM_SYMBOLS = 8
NUM_HIT_POSITIONS = 8
"Positions of `independent` that count, each for one of its symbols; all others are noise to log rho."
NUM_HIT_PAIRS = 10
"Pairs of neighbours that count in `markov`."


@dataclass(frozen=True, slots=True, kw_only=True)
class Toys:
    """R policies of one family."""

    family: Family
    "What the context of a token is."
    num_tokens: int
    "T."
    logits_RCV: Tensor
    "The policies that sample, float64."
    hits_RCV: Tensor
    "1.0 where a symbol scores a point in a context."

    def repeat(self, times: int) -> "Toys":
        """Every toy so many times in a row."""
        return Toys(
            family=self.family,
            num_tokens=self.num_tokens,
            logits_RCV=self.logits_RCV.repeat_interleave(times, 0),
            hits_RCV=self.hits_RCV.repeat_interleave(times, 0),
        )


def make_toys(family: Family, num_toys: int, num_tokens: int, generator: torch.Generator) -> Toys:
    """Toys with standard normal logits (1.6 nats per token) and points at random places."""
    num_contexts = num_tokens if family == "independent" else NUM_SYMBOLS + 1  # the first token has no predecessor
    shape = (num_toys, num_contexts, NUM_SYMBOLS)
    logits_RCV = torch.randn(shape, dtype=torch.float64, generator=generator)
    hits_RCV = torch.zeros(shape, dtype=torch.float64)
    for hits_CV in hits_RCV:
        if family == "independent":
            positions = torch.randperm(num_tokens, generator=generator)[:NUM_HIT_POSITIONS]
            symbols = torch.randint(NUM_SYMBOLS, positions.shape, generator=generator)
            hits_CV[positions, symbols] = 1.0
        else:
            pairs = torch.randperm(NUM_SYMBOLS**2, generator=generator)[:NUM_HIT_PAIRS]
            hits_CV[pairs // NUM_SYMBOLS, pairs % NUM_SYMBOLS] = 1.0
    return Toys(family=family, num_tokens=num_tokens, logits_RCV=logits_RCV, hits_RCV=hits_RCV)


def sample(toys: Toys, num_sequences: int, generator: torch.Generator) -> Tensor:
    """Sequences as cells of the table, context * V + symbol: cells_RST."""
    num_toys, _, num_symbols = toys.logits_RCV.shape
    bounds_RCV = toys.logits_RCV.softmax(-1).cumsum(-1)[..., :-1]
    context_RS = torch.full((num_toys, num_sequences), num_symbols)  # the start, in `markov`
    cells = []
    for position in range(toys.num_tokens):
        if toys.family == "independent":
            context_RS = torch.full_like(context_RS, position)
        draws_RS1 = torch.rand(num_toys, num_sequences, 1, dtype=torch.float64, generator=generator)
        bounds_RSV = bounds_RCV.gather(1, context_RS.unsqueeze(-1).expand(-1, -1, num_symbols - 1))
        symbol_RS = (draws_RS1 > bounds_RSV).sum(-1)
        cells.append(context_RS * num_symbols + symbol_RS)
        context_RS = symbol_RS
    return torch.stack(cells, dim=-1)


def at_cells(table_RCV: Tensor, cells_RST: Tensor) -> Tensor:
    """Entries of a table at the tokens of the sequences."""
    return table_RCV.flatten(1).gather(1, cells_RST.flatten(1)).view(cells_RST.shape)


def score_distribution(toys: Toys, logits_RCV: Tensor) -> Tensor:
    """P(points = m) under these logits, for m = 0..T: [R, M]."""
    policy_RCV = logits_RCV.softmax(-1)
    scores = [toys.num_tokens + 1]
    if toys.family == "independent":
        hit_RC = (policy_RCV * toys.hits_RCV).sum(-1)
        mass_RM = torch.nn.functional.one_hot(torch.zeros(len(hit_RC), dtype=torch.long), *scores).double()
        for hit_R in hit_RC.unbind(1):
            mass_RM = mass_RM * (1 - hit_R.unsqueeze(-1)) + shifted(mass_RM) * hit_R.unsqueeze(-1)
        return mass_RM
    hit_RCV, miss_RCV = policy_RCV * toys.hits_RCV, policy_RCV * (1 - toys.hits_RCV)
    start_RVM = torch.zeros(*policy_RCV.shape[:1], policy_RCV.shape[2], *scores, dtype=torch.float64)
    mass_RVM = torch.nn.functional.pad(miss_RCV[:, -1].unsqueeze(-1), (0, scores[0] - 1)) + start_RVM
    mass_RVM = mass_RVM + shifted(torch.nn.functional.pad(hit_RCV[:, -1].unsqueeze(-1), (0, scores[0] - 1)))
    for _ in range(toys.num_tokens - 1):
        mass_RVM = miss_RCV[:, :-1].mT @ mass_RVM + shifted(hit_RCV[:, :-1].mT @ mass_RVM)
    return mass_RVM.sum(1)


def shifted(mass_M: Tensor) -> Tensor:
    """One point more."""
    return torch.nn.functional.pad(mass_M[..., :-1], (1, 0))


def dense_rewards(toys: Toys) -> Tensor:
    """Reward of every number of points: their share of T, [R, M]."""
    steps_M = torch.linspace(0, 1, toys.num_tokens + 1, dtype=torch.float64)
    return steps_M.expand(len(toys.logits_RCV), -1)


def sparse_rewards(toys: Toys, success_rate: float = 0.05) -> Tensor:
    """1 from the number of points on that at most this share of sequences reaches, else 0: [R, M]."""
    at_least_RM = score_distribution(toys, toys.logits_RCV).flip(-1).cumsum(-1).flip(-1)
    return (at_least_RM <= success_rate).double()


def max_at_k(toys: Toys, logits_RCV: Tensor, rewards_RM: Tensor, k: int) -> Tensor:
    """E[best of k sequences] under these logits, for rewards that rise with the points: [R]."""
    up_to_RM = score_distribution(toys, logits_RCV).cumsum(-1).clamp(max=1.0)
    below_RM = torch.nn.functional.pad(up_to_RM[:, :-1], (1, 0))
    return (rewards_RM * (up_to_RM**k - below_RM**k)).sum(-1)


def true_gradient(toys: Toys, logits_RCV: Tensor, rewards_RM: Tensor, k: int) -> Tensor:
    """Gradient of max@k with respect to the logits, by autograd through the dynamic programme."""
    logits_RCV = logits_RCV.detach().requires_grad_()
    return torch.autograd.grad(max_at_k(toys, logits_RCV, rewards_RM, k).sum(), logits_RCV)[0]


def weighted_scores(logits_RCV: Tensor, cells_RST: Tensor, weights_RST: Tensor) -> Tensor:
    """sum of weight times grad log pi(token | context) over all tokens, with respect to the logits."""
    sums_RCV = torch.zeros_like(logits_RCV).flatten(1)
    sums_RCV = sums_RCV.scatter_add(
        1, cells_RST.flatten(1), weights_RST.reshape(len(logits_RCV), -1).to(logits_RCV.dtype)
    )
    sums_RCV = sums_RCV.view_as(logits_RCV)
    return sums_RCV - sums_RCV.sum(-1, keepdim=True) * logits_RCV.softmax(-1)
