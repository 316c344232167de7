"""Time and memory of every objective, how they grow with n and k, and their share of a training step of
configs/tiny.yaml.

    python scripts/bench_objectives.py [--json FILE] [--repeats 5] [--device cpu] [--step_seconds S] [--quick]

All sides are measured in one run, interleaved; times are medians over repeats. Memory is the peak above what was held
before (the process's high-water mark on a CPU, which sees nothing below the allocator's reserve; allocated bytes on
CUDA). The training step is one forward, backward and Adam update of the built-in policy on P * n = 64 rows;
`--step_seconds` replaces it by a time you measured. `share_of_step` is the slowest objective's, lower is better.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import bench_report
import torch
from torch import Tensor

from maxk_lightning.objectives import (
    GRPO,
    NSR,
    RLOO,
    RSGRPO,
    BonMaxMean,
    BonMaxSecond,
    DistinctMaxAtK,
    DrGRPO,
    Entropic,
    ExactMaxAtK,
    ExactRatios,
    GroupFacts,
    MaxAtK,
    MaxRL,
    Objective,
    OffPolicyMaxAtK,
    PassKTraining,
    PlugInMaxAtK,
    TopMMean,
    UniquenessWeighted,
    WReinforce,
    credits_of,
    group_diagnostics,
)

TINY = (8, 8, 4)  # (P, n, k) of configs/tiny.yaml
SIZES = [TINY, (64, 8, 4), (64, 64, 8), (64, 256, 8), (64, 1024, 8), (64, 1024, 128), (64, 1024, 512)]
QUICK_SIZES = [TINY, (64, 64, 8)]
PROMPT_TOKENS, COMPLETION_TOKENS = 64, 64  # of a row of the training step; shorter rows would make the share larger
Credits = Callable[[Tensor, Tensor], object]
Row = dict[str, Any]


def objectives(k: int) -> dict[str, Credits]:
    """Every objective, by the name it is printed under, and the diagnostics that training logs beside them."""
    chosen: list[Objective] = [GRPO(), DrGRPO(), RLOO(), BonMaxMean(), BonMaxSecond(), MaxRL(), RSGRPO()]
    chosen += [NSR(), WReinforce(), Entropic()]
    named: dict[str, Credits] = {type(objective).__name__: objective for objective in chosen}
    named["PassKTraining"] = PassKTraining(k)
    named |= {"PlugInMaxAtK replacement": PlugInMaxAtK(k), "PlugInMaxAtK urn": PlugInMaxAtK(k, "urn")}
    named |= {f"MaxAtK {b}": MaxAtK(k, b) for b in ("none", "loo1", "centred", "zscore")}
    named |= {f"OffPolicyMaxAtK {b}": OffPolicyMaxAtK(k, b) for b in ("none", "loo1", "mean", "zscore")}
    named |= {f"ExactMaxAtK {b}": ExactMaxAtK(k, b) for b in ("none", "loo1", "centred")}
    named["TopMMean"] = TopMMean(k, max(1, k // 2))
    named["ExactRatios TopMMean"] = ExactRatios(TopMMean(k, max(1, k // 2)))
    named["DistinctMaxAtK"] = partial(with_behaviours, DistinctMaxAtK(k))
    named["ExactRatios DistinctMaxAtK"] = partial(with_behaviours, ExactRatios(DistinctMaxAtK(k)))
    named["UniquenessWeighted"] = partial(with_behaviours, UniquenessWeighted())
    named["group_diagnostics"] = lambda rewards_PN, log_ratios_PN: group_diagnostics(rewards_PN, log_ratios_PN, k)
    return named


def with_behaviours(objective: Objective, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
    """Credits where the samples of a group behave in four ways by turns."""
    behaviours_N = torch.arange(rewards_PN.shape[1], device=rewards_PN.device) % 4
    facts = GroupFacts(behaviours_PN=behaviours_N.expand_as(rewards_PN))
    return credits_of(objective, rewards_PN, log_ratios_PN, facts)


def groups(num_prompts: int, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Binary rewards (all objectives take them) and log-ratios with a standard deviation of 0.3."""
    generator = torch.Generator().manual_seed(n)
    rewards_PN = (torch.rand(num_prompts, n, generator=generator) < 0.3).float()
    return rewards_PN.to(device), (0.3 * torch.randn(num_prompts, n, generator=generator)).to(device)


def measure(sizes: list[tuple[int, int, int]], repeats: int, device: torch.device) -> list[Row]:
    """Median time and peak memory of every objective at every size; repeats go round over all of them."""
    cases = [(size, name, credits) for size in sizes for name, credits in objectives(size[2]).items()]
    seconds: dict[tuple[object, str], list[float]] = {(size, name): [] for size, name, _ in cases}
    peaks = {(size, name): peak_bytes(credits, groups(*size[:2], device), device) for size, name, credits in cases}
    for _ in range(repeats):
        for size, name, credits in cases:
            seconds[size, name].append(time_once(credits, groups(*size[:2], device), device))
    return [
        {
            "P": size[0],
            "n": size[1],
            "k": size[2],
            "objective": name,
            "ms": 1e3 * statistics.median(seconds[size, name]),
            "peak_mib": peaks[size, name] / 2**20,
        }
        for size, name, _ in cases
    ]


def time_once(credits: Credits, inputs: tuple[Tensor, Tensor], device: torch.device) -> float:
    """Seconds of one call; small ones are averaged over enough calls for the clock."""
    calls = 20 if inputs[0].numel() <= 4096 else 1
    synchronise(device)
    start = time.perf_counter()
    for _ in range(calls):
        credits(*inputs)
    synchronise(device)
    return (time.perf_counter() - start) / calls


def synchronise(device: torch.device) -> None:
    """Wait for the device's queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(credits: Credits, inputs: tuple[Tensor, Tensor], device: torch.device) -> float:
    """Peak memory of one call above what is held before it; NaN where the system does not tell. Also warms up."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        credits(*inputs)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark, Linux
    except OSError:
        credits(*inputs)
        return math.nan
    before = status_bytes("VmRSS")
    credits(*inputs)
    return max(status_bytes("VmHWM") - before, 0)


def status_bytes(key: str) -> int:
    """A field of /proc/self/status in bytes."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key + ":")]
    return int(line.split()[1]) * 1024


def training_step(device: torch.device) -> Callable[[], None]:
    """A step on the rows of configs/tiny.yaml: forward, score-function loss, backward, Adam."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(files("maxk_lightning") / "data" / "builtin" / "policy"))
    model = AutoModelForCausalLM.from_config(config).to(device)  # type: ignore[no-untyped-call]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    num_rows = TINY[0] * TINY[1]
    tokens_BL = torch.randint(config.vocab_size, (num_rows, PROMPT_TOKENS + COMPLETION_TOKENS), device=device)

    def step() -> None:
        logits_BLV = model(input_ids=tokens_BL[:, :-1]).logits.float()
        logprobs_BL = logits_BLV.log_softmax(-1).gather(-1, tokens_BL[:, 1:, None]).squeeze(-1)
        (-logprobs_BL[:, PROMPT_TOKENS - 1 :].mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronise(device)

    return step


def time_training_step(repeats: int, device: torch.device) -> float:
    """Median seconds of a training step, after one to warm up."""
    step = training_step(device)
    step()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def growth(rows: list[Row]) -> dict[str, float]:
    """Exponents of time in n (at k = 8) and in k (at n = 1024) of the exact form, between the two largest sizes."""
    ms = {
        (row["n"], row["k"]): row["ms"] for row in rows if row["objective"] == "ExactMaxAtK centred" and row["P"] == 64
    }
    exponents = {}
    if (256, 8) in ms and (1024, 8) in ms:
        exponents["exact_exponent_in_n"] = math.log(ms[1024, 8] / ms[256, 8], 4)
    if (1024, 128) in ms and (1024, 512) in ms:
        exponents["exact_exponent_in_k"] = math.log(ms[1024, 512] / ms[1024, 128], 4)
    return exponents


def table(rows: list[Row]) -> str:
    """Objectives down, sizes across, milliseconds and MiB."""
    sizes = list(dict.fromkeys((row["P"], row["n"], row["k"]) for row in rows))
    cells = {(row["objective"], (row["P"], row["n"], row["k"])): row for row in rows}
    lines = [
        "| ms (MiB) at P, n, k | " + " | ".join(str(size) for size in sizes) + " |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for name in dict.fromkeys(row["objective"] for row in rows):
        values = [f"{cells[name, size]['ms']:.2f} ({cells[name, size]['peak_mib']:.0f})" for size in sizes]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    bench_report.add_json_option(parser)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--step_seconds", type=float, help="a measured training step, instead of timing one here")
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    arguments = parser.parse_args()
    device = arguments.device
    rows = measure(QUICK_SIZES if arguments.quick else SIZES, arguments.repeats, device)
    step_s = arguments.step_seconds or time_training_step(arguments.repeats, device)
    for row in rows:
        if (row["P"], row["n"], row["k"]) == TINY:
            row["share_of_step"] = row["ms"] / 1e3 / step_s
    shares = {row["objective"]: row["share_of_step"] for row in rows if "share_of_step" in row}
    slowest = max(shares, key=lambda name: shares[name])
    ratios = {
        "share_of_step": shares[slowest],
        "share_of_step_tiny_yaml": shares["OffPolicyMaxAtK loo1"],
        **growth(rows),
    }
    print(table(rows))
    print(f"training step {step_s * 1e3:.0f} ms; slowest objective {slowest}: {100 * shares[slowest]:.2f} % of it")
    bench_report.print_ratios(ratios, digits=4)
    bench_report.write_json(arguments.json, rows, ratios, step_s=step_s)


if __name__ == "__main__":
    main()
