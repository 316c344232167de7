"""A full training cycle against TRL's GRPOTrainer: rollout, a trivial reward, three PPO iterations.

    pip install -e '.[bench]'                                      # trl 1.16 and liger-kernel
    python scripts/bench_step.py --json step.json                  # a CPU: both sample with transformers; 20 minutes
    python scripts/bench_step.py --growth --repeats 1              # one size changed at a time; about 10 CPU minutes
    python scripts/bench_step.py --policy Qwen/Qwen2.5-Coder-1.5B-Instruct --vllm --prompts 8 --max_new_tokens 1024 \\
      --no-trl_at_once                                             # a GPU

Both sides train the same random Qwen2 model (its stop token cannot be sampled, so that every completion has
max_new_tokens tokens) on the same prompts, with the lengths of the paper's recipe: statements of built-in problems,
joined up to 512 tokens, n = 8, 256 new tokens. GRPO advantages, the clipped surrogate, a k3 penalty against the initial
policy, Adam, float32 (--precision; bf16-mixed on a GPU), no logging, no checkpoints. A pass holds one prompt and its n
completions on both sides (--prompts_per_pass; TRL: per_device_train_batch_size = n, the rest gradient accumulation).
TRL runs a second time with all prompts in one pass, and the faster of the two counts. Both ask the reference policy
once per rollout; TRL's other settings are its defaults, its attention is transformers' default (sdpa). TRL reads a
prompt once per completion, which is most of what is measured here.
A cycle ends with its third optimizer step; the first cycle of a process is not counted. Each measurement is a process
of its own, the sides take turns. Seconds are CPU time on a CPU, which others may use, too, and wall-clock time on a
GPU. Last of all one gradient of TRL's loss on completions that we sampled is compared with ours.

Cases (--cases): `main`, as above; `short`, prompts of at most 128 tokens; `short_bf16`, the same in bf16-mixed on both
sides; `sparse`, four prompts without a KL penalty, three of whose groups get equal rewards throughout: no credit.

Ratios: `speed_vs_trl` (seconds per cycle, TRL / ours); `speed_vs_trl_kl_old`, ours with the paper's penalty, which is
against the policy that sampled and needs no second model; `train_mfu`, model FLOPs of the training steps (a shared
prompt counts once, the reference model does not count) over what the largest matrix product reaches here;
`speed_vs_trl_CASE`; with --growth `speed_vs_trl/NAME=VALUE`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import bench_report
from bench_step_ours import HAS_GPU, run_ours, write_policy
from bench_step_trl import compare_gradients, run_trl

OURS, OURS_KL_OLD = "maxk_lightning", "maxk_lightning, KL to pi_old"
THEIRS, THEIRS_AT_ONCE = "TRL", "TRL, all prompts in one pass"
MAIN = "main"
CASES: dict[str, dict[str, Any]] = {
    "short": {"prompt_tokens": 128},
    "short_bf16": {"prompt_tokens": 128, "precision": "bf16-mixed"},
    "sparse": {"prompts": 4, "credit_every": 4, "kl_coef": 0.0},
}
"Settings beside the main ones, by the name of their ratio."
GROWTH = {"prompt_tokens": (128,), "max_new_tokens": (64, 512), "n": (4, 16), "vocab": (8192,)}

SIDES = {
    OURS: lambda args, root: run_ours(args, root, "reference"),
    OURS_KL_OLD: lambda args, root: run_ours(args, root, "old"),
    THEIRS: lambda args, root: run_trl(args, root, args.prompts_per_pass),
    THEIRS_AT_ONCE: lambda args, root: run_trl(args, root, args.prompts),
    "gradients": compare_gradients,
}


def in_a_process(side: str, args: argparse.Namespace, **changed: Any) -> dict[str, Any]:
    options = {**vars(args), **changed, "side": side, "json": None}
    done = subprocess.run([sys.executable, __file__, "--child", json.dumps(options)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def child(options: dict[str, Any]) -> None:
    warnings.simplefilter("ignore")
    args = argparse.Namespace(**options)
    with tempfile.TemporaryDirectory() as root:
        print("\n" + json.dumps(SIDES[args.side](args, root)))


def measure(args: argparse.Namespace, sides: Sequence[str], **changed: Any) -> dict[str, list[dict[str, Any]]]:
    """Every side in turn, `repeats` times, on a policy of its own size."""
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as directory:
        if args.policy is None:
            write_policy(directory, argparse.Namespace(**{**vars(args), **changed}))
            changed["policy"] = directory
        for repeat in range(args.repeats):
            for side in sides[repeat % len(sides) :] + sides[: repeat % len(sides)]:
                results[side].append(in_a_process(side, args, **changed))
    return results


def row_of(side: str, results: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    seconds = statistics.median(s for result in results for s in result["seconds"])
    row = {
        "side": side,
        **settings,
        "seconds_per_cycle": seconds,
        "tokens_per_s": statistics.median(result["tokens"] for result in results) / seconds,
        "peak_mb": statistics.median(result["peak_mb"] for result in results),
    }
    if "parts" in results[0]:
        row["parts"] = {
            name: statistics.median(result["parts"][name] for result in results) for name in results[0]["parts"]
        }
        row["mfu"] = statistics.median(result["mfu"] for result in results)
    return row


def speed(results: dict[str, list[dict[str, Any]]], ours: str) -> float:
    """Median over repeats of the ratio inside one repeat, so that a change of load hits both sides.

    Of the ways in which TRL was run, the one that is faster counts.
    """
    ratios = []
    for theirs in (THEIRS, THEIRS_AT_ONCE):
        pairs = zip(results.get(theirs, []), results[ours], strict=theirs in results)
        ratios.append([statistics.median(t["seconds"]) / statistics.median(o["seconds"]) for t, o in pairs])
    return min(statistics.median(of_one_way) for of_one_way in ratios if of_one_way)


def grow(args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """One setting changed at a time."""
    rows, ratios = [], {}
    for name, values in GROWTH.items():
        for value in values:
            results = measure(args, [OURS, THEIRS], **{name: value})
            rows += [row_of(side, results[side], **{name: value}) for side in results]
            ratios[f"speed_vs_trl/{name}={value}"] = speed(results, OURS)
            seconds = ", ".join(f"{row['side']} {row['seconds_per_cycle']:.2f} s" for row in rows[-2:])
            ratio, mfu = ratios[f"speed_vs_trl/{name}={value}"], rows[-2]["mfu"]
            print(f"{name} {value}: {seconds}, speed_vs_trl {ratio:.2f}, train_mfu {mfu:.2f}", flush=True)
    return rows, ratios


def measure_case(args: argparse.Namespace, name: str) -> tuple[list[dict[str, Any]], float]:
    """Our side and TRL's under other settings."""
    settings = CASES[name]
    prompts = settings.get("prompts", args.prompts)
    results = measure(args, [OURS, *trl_ways(args, prompts)], **settings)
    rows = [row_of(side, results[side], case=name, **settings) for side in results]
    return rows, speed(results, OURS)


def trl_ways(args: argparse.Namespace, prompts: int) -> list[str]:
    return [THEIRS, THEIRS_AT_ONCE] if args.trl_at_once and args.prompts_per_pass < prompts else [THEIRS]


def compare(args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """All cases, one after the other; in each the sides take turns."""
    rows, ratios = measure_main(args) if MAIN in args.cases else ([], {})
    for name in args.cases:
        if name != MAIN:
            more, ratios[f"speed_vs_trl_{name}"] = measure_case(args, name)
            print(
                f"{name}: " + ", ".join(f"{row['side']} {row['seconds_per_cycle']:.2f} s" for row in more), flush=True
            )
            rows += more
    bench_report.print_ratios(ratios, digits=4)
    return rows, ratios


def measure_main(args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """All sides in turn, and their gradients."""
    results = measure(args, [OURS, OURS_KL_OLD, *trl_ways(args, args.prompts)])
    gradients = measure(argparse.Namespace(**{**vars(args), "repeats": 1}), ["gradients"])["gradients"][0]
    rows = [row_of(side, results[side]) for side in results]
    bench_report.print_table(
        f"{args.prompts} prompts x {args.n} completions x {args.max_new_tokens} tokens",
        ("side", "s / cycle", "tokens / s", "peak MB"),
        [(r["side"], f"{r['seconds_per_cycle']:.2f}", f"{r['tokens_per_s']:.0f}", f"{r['peak_mb']:.0f}") for r in rows],
    )
    parts = rows[0]["parts"]
    for name, seconds in parts.items():
        print(f"  {name}: {seconds:.2f} s, {seconds / sum(parts.values()):.0%} of our cycle")
    ratios = {
        "speed_vs_trl": speed(results, OURS),
        "speed_vs_trl_kl_old": speed(results, OURS_KL_OLD),
        "train_mfu": rows[0]["mfu"],
        "train_mfu_kl_old": rows[1]["mfu"],
        "gradient_cosine": gradients["cosine"],
        "gradient_norm_ratio": gradients["norm_ratio"],
    }
    return rows, ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    bench_report.add_json_option(parser)
    parser.add_argument("--policy", default=None, help="a directory or hub name; none: a random model")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--prompt_tokens", type=int, default=512, help="of a prompt, at most")
    parser.add_argument("--prompts_per_pass", type=int, default=1, help="of a forward and backward pass, on both sides")
    parser.add_argument("--trl_at_once", action=argparse.BooleanOptionalAction, default=True, help=THEIRS_AT_ONCE)
    parser.add_argument("--n", type=int, default=8, help="completions per prompt")
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--cycles", type=int, default=1, help="counted cycles per process")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vllm", action="store_true", help="both sides sample with vLLM (colocated)")
    parser.add_argument("--growth", action="store_true", help="change one size at a time instead, TRL at equal passes")
    parser.add_argument("--cases", nargs="*", default=[MAIN, *CASES], choices=[MAIN, *CASES])
    parser.add_argument("--kl_coef", type=float, default=0.01)
    parser.add_argument("--credit_every", type=int, default=1, help="one group in so many gets credit")
    parser.add_argument("--precision", default="bf16-mixed" if HAS_GPU else "32-true", help="of both sides")
    parser.add_argument("--model_options", default="{}", help="JSON, more arguments of our PolicyModule")
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        child(json.loads(args.child))
        return
    rows, ratios = grow(args) if args.growth else compare(args)
    bench_report.write_json(args.json, rows, ratios)


if __name__ == "__main__":
    main()
