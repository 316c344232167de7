"""One of two ranks that are one tensor-parallel engine: a script, `tensor_parallel_rank.py RANK STORE`.

Prints tokens and log-probs of its prompts: the first three on rank 0, the last on rank 1.
"""

import json
import os
import sys

import torch.distributed as dist

from maxk_lightning.policy import load_model
from maxk_lightning.rollouts import VLLMEngine
from maxk_lightning.types import Prompt, Sampling

PROMPTS = [Prompt(problem_id=str(i), token_ids=tuple(range(5, 25 + i)), seed=100 + i) for i in range(4)]


def main(rank: int, store: str) -> None:
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
    groups = engine.generate(own, Sampling(num_completions=4, max_new_tokens=48, temperature=0.8))
    print(json.dumps([[(completion.token_ids, completion.logprobs) for completion in group] for group in groups]))
    dist.barrier()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
