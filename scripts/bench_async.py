"""What sampling ahead gains: `fit` against a real vLLM server on a CPU, taking turns and at the same time.

    python scripts/bench_async.py --json bench_async.json

The server runs on one core and the training, its reward included, on another. A cycle is a rollout and the optimizer
steps on it; its halves, sampling (push of weights, its proof, sampling, scoring) and training, are measured where they
take turns. Sides: `turns` (rollouts_ahead 0), `ahead` (1), `in flight` (1, and the weights of every optimizer step are
pushed while the server samples). Ratios, of medians over cycles; the halves should be of similar length, or there is
little to gain:
  cycle_vs_longer_half             a cycle of `ahead` / the longer half; lower is better, the goal is at most 1.15
  speed_vs_turns                   a cycle of `turns` / one of `ahead`
  cycle_vs_longer_half_in_flight,  likewise of `in flight`
  speed_vs_turns_in_flight
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import bench_report
import psutil
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maxk_lightning.policy import resolve_policy
from maxk_lightning.rollouts.engines.vllm.http import Server
from maxk_lightning.rollouts.engines.vllm.launch import REQUIRED_ARGS, Launch, Process, free_port, wait_until_ready
from maxk_lightning.rollouts.engines.vllm.start import LABELLING_ARGS

ROOT = Path(__file__).resolve().parents[1]
HOST = "127.0.0.1"
START_TIMEOUT_S = 1200.0
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
ARGUMENTS = {
    **REQUIRED_ARGS,
    **LABELLING_ARGS,
    "enforce-eager": True,
    "max-model-len": 512,
    "dtype": "float32",
    "kv-cache-memory-bytes": 2**29,
    "enable-chunked-prefill": False,
    "distributed-executor-backend": "uni",
    "host": HOST,
}
SIDES: dict[str, dict[str, object]] = {
    "turns": {"rollouts_ahead": 0},
    "ahead": {"rollouts_ahead": 1},
    "in flight": {"rollouts_ahead": 1, "in_flight_weight_updates": True},
}
NUM_WARM = 2
"Cycles at the start that are not counted: the second rollout ahead is the first that training was beside."


@dataclass(frozen=True)
class Cycle:
    """Seconds."""

    side: str
    cycle_s: float
    sampling_s: float
    training_s: float


@contextmanager
def served(policy: str, core: int) -> Iterator[str]:
    """A server on one core; its URL.

    Raises:
        RuntimeError: a thread of it may run elsewhere.
    """
    own = os.sched_getaffinity(0)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = str(core)
    os.sched_setaffinity(0, {core})  # children inherit it
    port = free_port(HOST)
    arguments = {**ARGUMENTS, "port": port}
    process = Process(Launch(policy=resolve_policy(policy), arguments=arguments, gpus=None, takes_handles=False))
    os.sched_setaffinity(0, own)
    url = f"http://{HOST}:{port}"
    try:
        wait_until_ready([Server(url, START_TIMEOUT_S)], process, START_TIMEOUT_S)
        for each in psutil.Process().children(recursive=True):
            if each.cpu_affinity() != [core]:
                raise RuntimeError(f"{each.name()} may run on cores {each.cpu_affinity()}, not on {core} alone")
        yield url
    finally:
        process.close()


def train(side: str, url: str, core: int, cycles: int, overrides: Sequence[str]) -> list[Cycle]:
    """Train in a process of its own, on one core."""
    options = dict(SIDES[side])
    init_args = {"url": url, "transfer": "file", "wire_dtype": "float32"}
    if options.pop("in_flight_weight_updates", False):
        init_args["in_flight_weight_updates"] = True
    engine = {"class_path": "maxk_lightning.rollouts.VLLMServerEngine", "init_args": init_args}
    with tempfile.TemporaryDirectory() as root:
        config = Path(root) / "side.yaml"
        config.write_text(yaml.safe_dump({"rollout": {"engine": engine, **options}}))
        command = ["taskset", "-c", str(core), sys.executable, "-m", "maxk_lightning", "fit"]
        command += ["--config", "configs/tiny_vllm.yaml", "--config", str(config), "--validate_before_fit", "false"]
        command += ["--trainer.default_root_dir", root, "--trainer.max_epochs", str(NUM_WARM + cycles + 1)]
        command += ["--trainer.check_val_every_n_epoch", "100000", "--trainer.enable_progress_bar", "false", *overrides]
        subprocess.run(command, cwd=ROOT, env=os.environ | ONE_THREAD, stdout=subprocess.DEVNULL, check=True)
        return read(side, Path(root))


def read(side: str, root: Path) -> list[Cycle]:
    """The cycles that a training logged, without those that warm it up and the last, which has no rollout beside it.

    A cycle lasts from the end of one rollout's optimizer steps to the end of the next one's.
    """
    accumulator = EventAccumulator(str(root / "tensorboard"))
    accumulator.Reload()
    values = {tag: [event.value for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}
    ends = [event.wall_time for event in accumulator.Scalars("time/train_s")]
    return [
        Cycle(
            side=side,
            cycle_s=ends[place] - ends[place - 1],
            sampling_s=sum(values[f"time/{part}_s"][place] for part in ("sync", "generate", "score")),
            training_s=values["time/train_s"][place],
        )
        for place in range(NUM_WARM, len(ends) - 1)
    ]


def ratios_of(cycles: Sequence[Cycle]) -> dict[str, float]:
    """By the names in the module's docstring."""
    median = medians(cycles)
    longer_half_s = max(median["turns"].sampling_s, median["turns"].training_s)
    found = {}
    for side, suffix in (("ahead", ""), ("in flight", "_in_flight")):
        if side in median:
            found[f"cycle_vs_longer_half{suffix}"] = median[side].cycle_s / longer_half_s
            found[f"speed_vs_turns{suffix}"] = median["turns"].cycle_s / median[side].cycle_s
    return found


def medians(cycles: Sequence[Cycle]) -> Mapping[str, Cycle]:
    """Of every side, number by number."""
    by_side = {side: [cycle for cycle in cycles if cycle.side == side] for side in SIDES}
    return {
        side: Cycle(
            side=side,
            cycle_s=statistics.median(cycle.cycle_s for cycle in of_side),
            sampling_s=statistics.median(cycle.sampling_s for cycle in of_side),
            training_s=statistics.median(cycle.training_s for cycle in of_side),
        )
        for side, of_side in by_side.items()
        if of_side
    }


def main() -> None:
    """Train by turns, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="builtin")
    parser.add_argument("--cycles", type=int, default=8, help="that are counted, per training")
    parser.add_argument("--repeats", type=int, default=2, help="trainings per side")
    parser.add_argument("--without_in_flight", action="store_true")
    bench_report.add_json_option(parser)
    args, overrides = parser.parse_known_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("this takes two cores")
    overrides = ["--model.policy", args.policy, *overrides]
    sides = [side for side in SIDES if side != "in flight" or not args.without_in_flight]
    cycles: list[Cycle] = []
    with served(args.policy, cores[1]) as url:
        for repeat in range(args.repeats):
            for side in sides[repeat % len(sides) :] + sides[: repeat % len(sides)]:
                print("training:", side, file=sys.stderr)
                cycles += train(side, url, cores[0], args.cycles, overrides)
    bench_report.print_table(
        f"fit against a vLLM server on another core, medians of {args.repeats} x {args.cycles} cycles",
        ("side", "cycle s", "sampling s", "training s"),
        [
            (side, f"{median.cycle_s:.2f}", f"{median.sampling_s:.2f}", f"{median.training_s:.2f}")
            for side, median in medians(cycles).items()
        ],
    )
    bench_report.print_ratios(ratios_of(cycles))
    bench_report.write_json(args.json, [asdict(cycle) for cycle in cycles], ratios_of(cycles))


if __name__ == "__main__":
    main()
