"""Seconds of an optimizer step on a real model, for as many groups with credit, against an earlier commit.

    python scripts/bench_useful_step.py --policy "$(scripts/get_smollm2.sh)" --mbpp MBPP.jsonl --json out.json

MBPP.jsonl is MBPP as published (google-research). Both versions make the same optimizer steps: the earlier one is taken
from this repository's history into a temporary directory, and each measurement is a process of its own that imports one
of them; they take turns. Same prompts, same completions (published solutions: real code, and the time of a step depends
on lengths alone), same rewards: in a group with credit they differ, in the others all are 0. MaxAtK(k=4, centred),
CISPO, no KL penalty, Adam, one prompt per pass, bf16-mixed, which the earlier commit has on CPUs too; each side is
what its PolicyModule makes of that. Sampling, scoring and loading are not counted: a step is the time from Lightning's
on_train_batch_start to on_train_batch_end. Seconds are CPU time, because others use the processors, too.

The earlier commit takes every group through forward and backward passes, the present one those with credit. A second
case holds only groups with credit: what the passes themselves have gained.

Ratios, seconds of the earlier commit over ours, medians over repeats of the ratio inside one: `useful_step_speed`;
`useful_step_speed_all_useful`.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import bench_report

ROOT = Path(__file__).parents[1]
OURS = "this commit"
MAX_NEW_TOKENS = 128
ONE_REWARD = 1.0


def render_groups(args: argparse.Namespace, num_groups: int) -> list[dict[str, Any]]:
    """Token ids of prompts, and of n published solutions each."""
    from maxk_lightning.data import MBPP, PromptTemplate
    from maxk_lightning.policy import load_tokenizer

    tokenizer: Any = load_tokenizer(args.policy)
    problems = MBPP(path=str(args.mbpp), config="full", mode="function", limit=num_groups).load()
    prompts = [PromptTemplate().render(problem, tokenizer, seed=0).token_ids for problem in problems]
    lines = args.mbpp.read_text(encoding="utf-8").splitlines()
    codes = (f"```python\n{json.loads(line)['code']}\n```" for line in lines)
    solutions = (tokenizer(code).input_ids[:MAX_NEW_TOKENS] for code in codes)
    return [{"prompt": list(prompt), "completions": list(itertools.islice(solutions, args.n))} for prompt in prompts]


def check_out(commit: str, directory: str) -> str:
    """Unpack a commit of this repository; where it lies."""
    archive = subprocess.run(["git", "-C", ROOT, "archive", commit], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(directory, filter="data")
    return directory


def in_a_process(root: str, job: dict[str, Any]) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": root}
    command = [sys.executable, __file__, "--child", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    if done.returncode:
        raise RuntimeError(f"{root} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert Path(result["package"]).is_relative_to(root), f"{result['package']} was measured, not {root}"
    return result


def child(job: dict[str, Any]) -> None:
    """Train on one rollout with the package that PYTHONPATH names."""
    warnings.simplefilter("ignore")
    import maxk_lightning

    print("\n" + json.dumps({**run(job), "package": maxk_lightning.__file__}))


def run(job: dict[str, Any]) -> dict[str, Any]:
    import torch
    from lightning import Callback, LightningDataModule, Trainer
    from torch.utils.data import DataLoader

    from maxk_lightning.losses import CISPO
    from maxk_lightning.module import PolicyModule
    from maxk_lightning.objectives import MaxAtK

    class Clock(Callback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_train_batch_start(self, *_: object) -> None:
            self.started = time.process_time()

        def on_train_batch_end(self, *_: object) -> None:
            self.seconds.append(time.process_time() - self.started)

    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(filled_buffer(job, module), batch_size=None)

        def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
            return batch

    module = PolicyModule(
        policy=job["policy"],
        objective=MaxAtK(k=4, baseline="centred"),
        policy_loss=CISPO(),
        kl_coef=0.0,
        optimizer=lambda params: torch.optim.Adam(params, lr=1e-5),
        prompts_per_micro_batch=1,
    )
    clock = Clock()
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", precision=job["precision"], callbacks=[clock], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, Data())
    return {"seconds": clock.seconds}


def filled_buffer(job: dict[str, Any], module: Any) -> Any:
    """One rollout in the types of the package that is measured, read once per PPO iteration."""
    from maxk_lightning.types import Completion, Problem, Prompt, Sampling, Score, TestCase

    def group_parts(number: int, group: dict[str, Any]) -> dict[str, Any]:
        is_useful = number < job["num_useful"]
        rewards = [ONE_REWARD if is_useful and place % 3 == 0 else 0.0 for place in range(len(group["completions"]))]
        return {
            "problem": Problem(id=str(number), prompt="", tests=[TestCase(input="", output="")]),
            "prompt": Prompt(problem_id=str(number), token_ids=tuple(group["prompt"]), seed=number),
            "completions": [
                Completion(
                    token_ids=tuple(ids), logprobs=(-1.0,) * len(ids), entropies=None, text="", finish_reason="stop"
                )
                for ids in group["completions"]
            ],
            "scores": [Score(reward=reward, verdicts=()) for reward in rewards],
        }

    parts = [group_parts(number, group) for number, group in enumerate(job["groups"])]
    sampling = Sampling(num_completions=len(job["groups"][0]["completions"]), max_new_tokens=MAX_NEW_TOKENS)
    return _buffer(parts, sampling, job["num_steps"], module)


def _buffer(parts: Sequence[dict[str, Any]], sampling: Any, num_steps: int, module: Any) -> Any:
    """The rollout buffer, whose place and arguments have changed since the earlier commit."""
    try:
        from maxk_lightning.rollouts.buffer import RolloutBuffer
        from maxk_lightning.rollouts.rollout import Group, Rollout, Samples
    except ImportError:
        return _earlier_buffer(parts, sampling, num_steps)
    buffer = RolloutBuffer(len(parts), len(parts), num_steps)
    samples = Samples(groups=[Group(**part) for part in parts], sampling=sampling)
    buffer.fill(Rollout(samples=samples, generate_s=0.0, score_s=0.0), idle=module.idle)
    return buffer


def _earlier_buffer(parts: Sequence[dict[str, Any]], sampling: Any, num_steps: int) -> Any:
    from maxk_lightning.experience import Group, Rollout

    from maxk_lightning.datamodule import RolloutBuffer

    buffer: Any = RolloutBuffer(len(parts), len(parts), num_steps)
    groups = [Group(**part) for part in parts]
    buffer.fill(Rollout(groups=groups, sampling=sampling, generate_s=0.0, score_s=0.0))
    return buffer


def measure(args: argparse.Namespace, earlier: str, num_groups: int) -> list[dict[str, Any]]:
    """Both versions in turn, `repeats` times; one row per measurement."""
    job = {
        "policy": args.policy,
        "precision": args.precision,
        "num_steps": args.steps,
        "num_useful": args.useful,
        "groups": render_groups(args, num_groups),
    }
    sides = {args.commit: earlier, OURS: str(ROOT)}
    rows = []
    for repeat in range(args.repeats):
        for side in list(sides)[:: 1 if repeat % 2 == 0 else -1]:
            steps = in_a_process(sides[side], job)["seconds"]
            tokens = sum(len(c) for group in job["groups"] for c in group["completions"])
            rows.append(
                {"side": side, "repeat": repeat, "groups": num_groups, "useful": args.useful, "n": args.n}
                | {"completion_tokens": tokens, "seconds_per_step": statistics.median(steps), "steps": steps}
            )
            print(
                f"{side}: {num_groups} groups, {args.useful} useful, steps {[round(s, 1) for s in steps]} s", flush=True
            )
    return rows


def speed(rows: Sequence[dict[str, Any]], commit: str) -> float:
    """Median over repeats of the ratio inside one repeat, so that a change of load hits both sides."""
    by_side = {(row["side"], row["repeat"]): row["seconds_per_step"] for row in rows}
    repeats = {row["repeat"] for row in rows}
    return statistics.median(by_side[commit, repeat] / by_side[OURS, repeat] for repeat in repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    bench_report.add_json_option(parser)
    parser.add_argument("--policy", default=None, help="a policy directory")
    parser.add_argument("--mbpp", type=Path, default=None, help="file of the published problems")
    parser.add_argument("--commit", default="963eac0", help="the earlier commit")
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--useful", type=int, default=2, help="groups with credit among them")
    parser.add_argument("--n", type=int, default=8, help="completions per prompt")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps on the same rollout")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--precision", default="bf16-mixed", choices=["32-true", "bf16-mixed"])
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        child(json.loads(args.child))
        return
    with tempfile.TemporaryDirectory() as directory:
        earlier = check_out(args.commit, directory)
        mixed, useful = measure(args, earlier, args.groups), measure(args, earlier, args.useful)
    ratios = {
        "useful_step_speed": speed(mixed, args.commit),
        "useful_step_speed_all_useful": speed(useful, args.commit),
    }
    columns = ("side", "groups", "useful", "CPU s per step")
    lines = [(r["side"], str(r["groups"]), str(r["useful"]), f"{r['seconds_per_step']:.2f}") for r in mixed + useful]
    bench_report.print_table(f"{args.n} completions per prompt, {args.precision}", columns, lines)
    bench_report.print_ratios(ratios)
    bench_report.write_json(args.json, mixed + useful, ratios)


if __name__ == "__main__":
    main()
