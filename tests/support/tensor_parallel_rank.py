"""One of two ranks that are one tensor-parallel engine: a script, `tensor_parallel_rank.py RANK STORE [fail]`.

Prints tokens and log-probs of its prompts: the first three on rank 0, the last on rank 1. With `fail` the reward of
rank 0 fails at the first completion of a rollout before that, and the error of every rank is printed first.
"""

import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future

import torch.distributed as dist

from maxk_lightning.policy import load_model
from maxk_lightning.rollouts import VLLMEngine
from maxk_lightning.rollouts.collect import collect
from maxk_lightning.rollouts.ranks import RankError, Ranks
from maxk_lightning.rollouts.rollout import Order
from maxk_lightning.types import Problem, Prompt, Sampling, Score

PROMPTS = [Prompt(problem_id=str(i), token_ids=tuple(range(5, 25 + i)), seed=100 + i) for i in range(4)]


class Patient:
    """Scores as completions end."""

    def submit(self, problem: Problem, text: str) -> "Future[Score]":
        """Everything is worth 1."""
        future: Future[Score] = Future()
        future.set_result(Score(reward=1.0, verdicts=()))
        return future

    def score(self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]) -> list[list[Score]]:
        """Not called where `submit` is."""
        raise NotImplementedError


class Breaking(Patient):
    """Fails amid a stream."""

    def submit(self, problem: Problem, text: str) -> "Future[Score]":
        """Fail."""
        raise OSError("the grader is gone")


def main(rank: int, store: str, is_to_fail: bool) -> None:
    """Push, sample, and print."""
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    engine = VLLMEngine(
        dtype="float32",
        kv_cache_gib=0.0625,
        max_model_len=256,
        max_num_seqs=32,
        enforce_eager=True,
        tensor_parallel_size=2,
    )
    engine.load_weights(load_model("builtin").state_dict().items(), 1)
    own = PROMPTS[:3] if rank == 0 else PROMPTS[3:]
    sampling = Sampling(num_completions=4, max_new_tokens=48, temperature=0.8)
    if is_to_fail:
        problems = [Problem(id=prompt.problem_id, prompt="", tests=()) for prompt in own]
        order = Order(index=0, problems=problems, prompts=own, sampling=sampling)
        reward = Breaking() if rank == 0 else Patient()
        try:
            Ranks(rank, 2).together(lambda: collect(engine, reward, order))
        except RankError as error:
            print(json.dumps(str(error)))
    groups = engine.generate(own, sampling)
    print(json.dumps([[(completion.token_ids, completion.logprobs) for completion in group] for group in groups]))
    dist.barrier()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], is_to_fail="fail" in sys.argv[3:])
