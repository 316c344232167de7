"""How fast rollouts are: VLLMEngine against bare LLM.generate and TransformersEngine; a weight sync against a copy.

    python scripts/bench_rollouts.py --json rollouts.json              # a CPU, the built-in policy
    python scripts/bench_rollouts.py --policy Qwen/Qwen2.5-Coder-1.5B-Instruct --dtype bfloat16 --cuda_graphs

All sides run in one process, interleaved, in turning order. Bare LLM.generate uses the same vLLM, prompts,
n, seeds per prompt and sampled-token log-probs, and decodes nothing; ours also decodes texts, gives every completion a
seed of its own and hands completions out as they end.

Ratios: `speed_vs_llm_generate` (tokens per second, ours / bare), `speed_vs_transformers`, `sync_time_vs_copy` (seconds
of a weight sync / seconds of copying the same bytes into tensors that exist; lower is better).
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

import bench_report
import torch

from maxk_lightning.data import Builtin, PromptTemplate
from maxk_lightning.policy import load_model, load_tokenizer
from maxk_lightning.rollouts import TransformersEngine, VLLMEngine
from maxk_lightning.types import Prompt, Sampling

Work = Callable[[], int]


class Bench:
    """Seconds and tokens of every side, repeat by repeat."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.prompts = prompts(args.policy, args.prompts)
        self.sampling = Sampling(num_completions=args.num_completions, max_new_tokens=args.max_new_tokens)
        self.weights = dict(load_model(args.policy).to("cuda" if torch.cuda.is_available() else "cpu").state_dict())
        self.copies = {name: torch.empty_like(tensor) for name, tensor in self.weights.items()}
        self.vllm = VLLMEngine(
            args.policy,
            dtype=args.dtype,
            kv_cache_gib=args.kv_cache_gib,
            max_model_len=args.max_model_len,
            enforce_eager=not args.cuda_graphs,
            sleep_while_training=args.sleep,
        )
        self.transformers = TransformersEngine(args.policy)
        self.vllm.load_weights(self.weights.items(), 0)
        self.transformers.load_weights(self.weights.items(), 0)
        self.works: dict[str, Work] = {
            "VLLMEngine": lambda: num_tokens(self.vllm.generate(self.prompts, self.sampling)),
            "LLM.generate": self._bare,
            "weight sync": lambda: self._sync(0),
            "copy of the same bytes": self._copy,
        }
        if not args.without_transformers:
            self.works["TransformersEngine"] = lambda: num_tokens(
                self.transformers.generate(self.prompts, self.sampling)
            )
        self.seconds: dict[str, list[float]] = {name: [] for name in self.works}
        self.tokens: dict[str, list[int]] = {name: [] for name in self.works}

    def repeat(self, index: int) -> None:
        """One turn of every side."""
        names = list(self.works)
        for name in names[index % len(names) :] + names[: index % len(names)]:
            _wait()
            started = time.perf_counter()
            tokens = self.works[name]()
            _wait()
            self.seconds[name].append(time.perf_counter() - started)
            self.tokens[name].append(tokens)

    def rows(self) -> list[dict[str, Any]]:
        """Medians."""
        return [
            {
                "side": name,
                "seconds": statistics.median(self.seconds[name]),
                "tokens": statistics.median(self.tokens[name]),
                "tokens_per_s": self._speed(name) if self.tokens[name][0] else None,
            }
            for name in self.works
        ]

    def ratios(self) -> dict[str, float]:
        """By the names in the module's docstring; medians over repeats of the ratio inside one repeat."""

        def ratio(ours: str, theirs: str) -> float:
            return statistics.median(a / b for a, b in zip(self._speeds(ours), self._speeds(theirs), strict=True))

        found = {"speed_vs_llm_generate": ratio("VLLMEngine", "LLM.generate")}
        if "TransformersEngine" in self.works:
            found["speed_vs_transformers"] = ratio("VLLMEngine", "TransformersEngine")
        syncs = zip(self.seconds["weight sync"], self.seconds["copy of the same bytes"], strict=True)
        return found | {"sync_time_vs_copy": statistics.median(sync / copy for sync, copy in syncs)}

    def _speeds(self, name: str) -> list[float]:
        return [tokens / s for tokens, s in zip(self.tokens[name], self.seconds[name], strict=True)]

    def _speed(self, name: str) -> float:
        return statistics.median(self._speeds(name))

    def _bare(self) -> int:
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                n=self.sampling.num_completions,
                seed=prompt.seed,
                temperature=1.0,
                max_tokens=self.sampling.max_new_tokens,
                stop_token_ids=self.vllm.stop_tokens,
                logprobs=0,
                detokenize=False,
            )
            for prompt in self.prompts
        ]
        requests = [{"prompt_token_ids": list(prompt.token_ids)} for prompt in self.prompts]
        outputs = self.vllm.llm.generate(requests, parameters, use_tqdm=False)
        return sum(len(completion.token_ids) for output in outputs for completion in output.outputs)

    def _sync(self, version: int) -> int:
        self.vllm.load_weights(self.weights.items(), version)
        return 0

    def _copy(self) -> int:
        for name, tensor in self.weights.items():
            self.copies[name].copy_(tensor)
        return 0


def prompts(policy: str, number: int) -> list[Prompt]:
    """Prompts of the built-in benchmark, one after the other and from the start again."""
    tokenizer, template = load_tokenizer(policy), PromptTemplate()
    problems = list(Builtin("train").load())
    return [template.render(problems[i % len(problems)], tokenizer, seed=1000 * i) for i in range(number)]


def num_tokens(groups: list[list[Any]]) -> int:
    return sum(len(completion.token_ids) for group in groups for completion in group)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    bench_report.add_json_option(parser)
    parser.add_argument("--policy", default="builtin")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--num_completions", type=int, default=8)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float16", "float32"])
    parser.add_argument("--kv_cache_gib", type=float, default=0.25)
    parser.add_argument("--max_model_len", type=int, default=512)
    parser.add_argument("--cuda_graphs", action="store_true")
    parser.add_argument("--sleep", action="store_true", help="start vLLM with sleep mode")
    parser.add_argument("--without_transformers", action="store_true")
    args = parser.parse_args()
    bench = Bench(args)
    for name, work in bench.works.items():
        print("warming up:", name, file=sys.stderr)
        work()
    for index in range(args.repeats):
        bench.repeat(index)
    speeds = ["" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:.0f}" for row in bench.rows()]
    bench_report.print_table(
        f"{args.prompts} prompts x {args.num_completions} completions, medians of {args.repeats}",
        ("side", "seconds", "tokens", "tokens/s"),
        [
            (row["side"], f"{row['seconds']:.3f}", f"{row['tokens']:.0f}", speed)
            for row, speed in zip(bench.rows(), speeds, strict=True)
        ],
    )
    bench_report.print_ratios(bench.ratios())
    bench_report.write_json(args.json, bench.rows(), bench.ratios())
    bench.vllm.close()


if __name__ == "__main__":
    main()
