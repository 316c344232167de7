"""Forward and backward of a policy over groups, with the usual attention and with `flex_attention`, by prompt length.

    python scripts/bench_attention.py --policy DIR               # on a GPU, in bfloat16
    python scripts/bench_attention.py --policy builtin --prompts 32 64 --completion 16 --forward   # on a CPU, forward

The usual attention copies every completion behind its prompt into a row of its own, so a prompt attends once per
completion. `flex_attention` stays on the packed rows, where it attends once. Both log-probs must agree.

Ratios: `flex_speed_PROMPT`, the time of the usual attention over that of `flex_attention`; above 1 it pays.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import bench_report
import torch

from maxk_lightning.policy import Policy, build_policy
from maxk_lightning.policy.packing import PackedRows, pack

SIDES = {"usual": None, "flex": "flex_attention"}
AGREE = 0.05
"Largest mean difference of log-probs between both sides, in nats per token: bfloat16 rounds in other places."


def group(prompt: int, completion: int, num_completions: int, num_groups: int) -> PackedRows:
    """Groups of random tokens, one row each."""
    generator = torch.Generator().manual_seed(prompt)

    def tokens(length: int) -> list[int]:
        return torch.randint(5, 200, (length,), generator=generator).tolist()

    prompts = [tokens(prompt) for _ in range(num_groups)]
    return pack(prompts, [[tokens(completion) for _ in range(num_completions)] for _ in prompts])


def seconds(step: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median time of a step, after one that compiles."""
    times = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="builtin", help="directory, see scripts/random_policy.py")
    parser.add_argument("--prompts", nargs="+", type=int, default=[256, 512, 2048, 8192], help="tokens of a prompt")
    parser.add_argument("--completion", type=int, default=256, help="tokens of a completion")
    parser.add_argument("--completions", type=int, default=8, help="of a group")
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--forward", action="store_true", help="no backward pass: torch has none on a CPU")
    bench_report.add_json_option(parser)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if device.type == "cpu":
        torch.compiler.set_stance("force_eager")  # its compiler for CPUs fails on changing lengths (torch 2.13)
    rows, ratios = [], {}
    for prompt in args.prompts:
        packed = group(prompt, args.completion, args.completions, args.groups).to(device)
        taken, logprobs = {}, {}
        for side, attention in SIDES.items():
            policy: Policy = build_policy(args.policy, dtype, attention=attention).to(device).train()  # type: ignore[arg-type]
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})

            def step(policy: Policy = policy, packed: PackedRows = packed) -> torch.Tensor:
                with torch.set_grad_enabled(not args.forward):
                    logprobs_BT = policy(packed, 1.0).logprobs_BT
                if not args.forward:
                    logprobs_BT.sum().backward()
                    policy.zero_grad()
                return logprobs_BT.detach()

            taken[side] = seconds(step, args.repeats, device)
            logprobs[side] = step()[packed.mask_BT]
            del policy
        gap = float((logprobs["usual"] - logprobs["flex"]).abs().mean())
        if gap > AGREE:
            raise SystemExit(f"log-probs differ by {gap} nats per token at prompts of {prompt} tokens")
        ratios[f"flex_speed_{prompt}"] = taken["usual"] / taken["flex"]
        rows.append({"prompt_tokens": prompt, **{f"{side}_seconds": taken[side] for side in SIDES}, "gap": gap})
    cells = [
        (str(row["prompt_tokens"]), f"{row['usual_seconds']:.4f}", f"{row['flex_seconds']:.4f}", f"{row['gap']:.1e}")
        for row in rows
    ]
    bench_report.print_table("attention", ("prompt tokens", "usual, s", "flex, s", "nats apart"), cells)
    bench_report.print_ratios(ratios)
    bench_report.write_json(args.json, rows, ratios)


if __name__ == "__main__":
    main()
