"""Peak memory of log-probs, entropies and backward of one large batch of completion tokens, at a vocabulary of 152k.

    python scripts/bench_memory.py --json memory.json            # pip install trl liger-kernel for their rows
    python scripts/bench_memory.py --tokens 8192 --hidden 1536   # what a 1.5B model does; the plain side needs ~21 GB

Every side starts from the same hidden states and head, and ends with the gradients of both; each runs in a process of
its own. Peak: on a CPU the process's high-water mark (ru_maxrss) minus what it held before, inputs included, after a
warm-up on 16 tokens; on a GPU torch.cuda.max_memory_allocated, likewise. The gradients, which every side must hold, are
part of it. Seconds, of CPU time on a CPU, are those of the
same pass. Sides:
  plain                full logits, float32 log_softmax, gather
  TRL, full logits     trl.trainer.utils.selective_log_softmax and entropy_from_logits
  TRL, fused head      trl's chunked projection (add_fused_lm_head), which GRPOTrainer 1.16 uses
  Liger GRPO loss      liger_kernel.chunked_loss.LigerFusedLinearGRPOLoss, uncompiled; a loss, no entropies
  maxk_lightning       projection.project
Every side must give the plain side's norms of gradients and, except Liger's loss, its sum of log-probs.

Ratios, lower is better: `peak_vs_plain`, and `peak_vs_...` and `time_vs_...` of the other sides.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import bench_report
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maxk_lightning.policy.projection import project

OURS = "maxk_lightning"
LIGER = "Liger GRPO loss"
TEMPERATURE = 0.7
SAME = 1e-3
"Largest relative difference between sides of a sum over all tokens: float32 sums in another order."


@dataclass(frozen=True)
class Inputs:
    head: nn.Linear
    hidden_MD: Tensor
    targets_M: Tensor


def plain(inputs: Inputs) -> Tensor:
    all_logprobs_MV = F.log_softmax(inputs.head(inputs.hidden_MD).float() / TEMPERATURE, dim=-1)
    with torch.no_grad():
        (-(all_logprobs_MV.exp() * all_logprobs_MV)).sum(-1)
    return all_logprobs_MV.gather(-1, inputs.targets_M[:, None]).squeeze(-1)


def trl_full(inputs: Inputs) -> Tensor:
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    logits_MV = inputs.head(inputs.hidden_MD) / TEMPERATURE
    with torch.no_grad():
        entropy_from_logits(logits_MV)
    logprobs_M: Tensor = selective_log_softmax(logits_MV, inputs.targets_M)
    return logprobs_M


def trl_fused(inputs: Inputs) -> Tensor:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    outputs = ChunkedLogProbFunction.apply(
        *(inputs.hidden_MD, inputs.head.weight, None, inputs.targets_M, TEMPERATURE, _CHUNKED_LOGPROB_CHUNK_SIZE),
        *(None, 1.0, ("log_probs", "entropy")),
    )
    logprobs_M: Tensor = outputs[0]
    return logprobs_M


def liger(inputs: Inputs) -> Tensor:
    """-loss of one completion with advantage 1 and no KL, on-policy: its gradient is that of the mean log-prob."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(beta=0.0, compiled=False, use_ref_model=False, temperature=TEMPERATURE)
    targets_1M = inputs.targets_M[None]
    advantages = torch.ones(1, device=targets_1M.device)
    mean, _ = loss(inputs.hidden_MD[None], inputs.head.weight, targets_1M, torch.ones_like(targets_1M), advantages)
    return -mean[None] * len(inputs.targets_M)


def ours(inputs: Inputs) -> Tensor:
    return project(inputs.head, inputs.hidden_MD, inputs.targets_M, TEMPERATURE)[0]


SIDES: dict[str, Callable[[Inputs], Tensor]] = {
    "plain": plain,
    "TRL, full logits": trl_full,
    "TRL, fused head": trl_fused,
    LIGER: liger,
    OURS: ours,
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One pass of one side."""

    side: str
    peak_mb: float = float("nan")
    seconds: float = float("nan")
    logprob_sum: float = float("nan")
    hidden_grad_norm: float = float("nan")
    head_grad_norm: float = float("nan")
    note: str = ""


def make_inputs(args: argparse.Namespace, num_tokens: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    dtype, device = getattr(torch, args.dtype), torch.device(args.device)
    head = nn.Linear(args.hidden, args.vocab, bias=False, device=device, dtype=dtype)
    with torch.no_grad():
        head.weight.normal_(std=args.hidden**-0.5)
    hidden_MD = torch.randn(num_tokens, args.hidden, generator=generator).to(device, dtype).requires_grad_()
    targets_M = torch.randint(args.vocab, (num_tokens,), generator=generator).to(device)
    return Inputs(head, hidden_MD, targets_M)


def run(side: str, inputs: Inputs) -> float:
    logprobs = SIDES[side](inputs)
    logprobs.sum().backward()
    return float(logprobs.sum())


def measure(side: str, args: argparse.Namespace) -> Measured:
    """The work of a child process."""
    torch.manual_seed(0)
    inputs = make_inputs(args, args.tokens)
    try:
        run(side, Inputs(inputs.head, inputs.hidden_MD[:16].detach().requires_grad_(), inputs.targets_M[:16]))
    except ImportError as error:
        return Measured(side=side, note=f"not available: {str(error).splitlines()[0]}")
    inputs.head.weight.grad = None
    before, started = held_mb(inputs, reset=True), seconds_s(args.device)
    logprob_sum = run(side, inputs)
    peak, ended = held_mb(inputs, reset=False), seconds_s(args.device)
    assert inputs.hidden_MD.grad is not None
    assert inputs.head.weight.grad is not None
    return Measured(
        side=side,
        peak_mb=peak - before,
        seconds=ended - started,
        logprob_sum=logprob_sum,
        hidden_grad_norm=float(inputs.hidden_MD.grad.float().norm()),
        head_grad_norm=float(inputs.head.weight.grad.float().norm()),
    )


def held_mb(inputs: Inputs, *, reset: bool) -> float:
    """Memory held at this moment (`reset`), or the most that was held since."""
    if inputs.head.weight.is_cuda:
        torch.cuda.synchronize()
        if reset:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated() / 1e6
        return torch.cuda.max_memory_allocated() / 1e6
    if reset:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def seconds_s(device: str) -> float:
    """CPU time on a CPU, which others may use, too; wall-clock time on a GPU."""
    return time.process_time() if device == "cpu" else time.perf_counter()


def in_a_process(side: str, arguments: list[str]) -> Measured:
    command = [sys.executable, __file__, *arguments, "--side", side]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return Measured(side=side, note=f"failed: {(done.stderr.strip() or str(done.returncode)).splitlines()[-1]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def check_same(measured: Measured, other: Measured) -> None:
    for name in ("logprob_sum", "hidden_grad_norm", "head_grad_norm"):
        one, two = getattr(measured, name), getattr(other, name)
        is_same = abs(one - two) <= SAME * abs(two) or (name == "logprob_sum" and measured.side == LIGER)
        assert is_same, f"{name} of {measured.side} is {one}, of {other.side} {two}"


def ratios(rows: list[Measured]) -> dict[str, float]:
    """Ours over each of the others."""
    by_side = {row.side: row for row in rows if not row.note}
    names = {
        "plain": "plain",
        "TRL, full logits": "trl_full",
        "TRL, fused head": "trl_fused",
        LIGER: "liger",
    }
    found = {}
    for side, name in names.items():
        if side in by_side and OURS in by_side:
            found[f"peak_vs_{name}"] = by_side[OURS].peak_mb / by_side[side].peak_mb
            found[f"time_vs_{name}"] = by_side[OURS].seconds / by_side[side].seconds
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    bench_report.add_json_option(parser)
    parser.add_argument("--tokens", type=int, default=2048, help="completion tokens of a micro-batch")
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--side", default=None, choices=list(SIDES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side is not None:
        print(json.dumps(asdict(measure(args.side, args))))
        return
    rows = [in_a_process(side, sys.argv[1:]) for side in SIDES]
    for row in rows:
        if not row.note and args.dtype == "float32":
            check_same(row, rows[0])
    title = f"{args.tokens} tokens, vocabulary {args.vocab}, hidden {args.hidden}, {args.dtype}"
    numbers = [("", "") if row.note else (f"{row.peak_mb:.0f}", f"{row.seconds:.1f}") for row in rows]
    lines = [(row.side, *pair, row.note) for row, pair in zip(rows, numbers, strict=True)]
    bench_report.print_table(title, ("side", "peak MB", "seconds", ""), lines)
    bench_report.print_ratios(ratios(rows), digits=3)
    bench_report.write_json(args.json, [asdict(row) for row in rows], ratios(rows))


if __name__ == "__main__":
    main()
