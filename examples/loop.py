"""The whole method in one loop, without Lightning: sample groups, score them, credit for max@k, a gradient step.

    python examples/loop.py        # built-in policy and problems, a few minutes on one core

What `fit` adds to this: resuming, ranks, shards, vLLM, checks after every push of weights, metrics, evaluation.
"""

import argparse

import torch

from maxk_lightning.data import Builtin, PromptStream, PromptTemplate
from maxk_lightning.estimators import max_at_k
from maxk_lightning.losses import CISPO
from maxk_lightning.losses.normalisation import weights_by_constant
from maxk_lightning.objectives import MaxAtK
from maxk_lightning.policy import Policy, build_policy, load_tokenizer
from maxk_lightning.rewards import UnitTestReward
from maxk_lightning.rollouts import TransformersEngine
from maxk_lightning.rollouts.collect import collect
from maxk_lightning.rollouts.rollout import Order
from maxk_lightning.seeds import derive_seed
from maxk_lightning.training.batch import to_batch
from maxk_lightning.types import Sampling

SEED = 42
NUM_PROMPTS = 12
"Prompts P of a rollout."
NUM_PPO_ITERATIONS = 3
"Optimizer steps on each rollout. From the second on the policy is no longer the one that sampled."
SAMPLING = Sampling(num_completions=8, max_new_tokens=128)


def train(name: str, num_rollouts: int) -> Policy:
    """Train a policy, to the weights that `fit` gives it with the same settings."""
    problems, tokenizer, template = Builtin("train").load(), load_tokenizer(name), PromptTemplate()
    stream = PromptStream(num_problems=len(problems), seed=SEED)
    engine, reward = TransformersEngine(name), UnitTestReward()
    policy = build_policy(name)
    objective, policy_loss = MaxAtK(k=4), CISPO()
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-4)

    for index in range(num_rollouts):
        # 1. The engine gets the weights, and samples a group of n completions for every prompt.
        engine.load_weights(policy.model.state_dict().items(), version=index)
        places = range(index * NUM_PROMPTS, (index + 1) * NUM_PROMPTS)
        asked = [problems[stream.index(place)] for place in places]
        prompts = [
            template.render(p, tokenizer, derive_seed(SEED, "fit", place))
            for p, place in zip(asked, places, strict=True)
        ]
        rollout = collect(engine, reward, Order(index=index, problems=asked, prompts=prompts, sampling=SAMPLING))

        # 2. Rewards [P, n] become credits: what multiplies grad log pi. On-policy all log-ratios are 0.
        rewards_PN = rollout.samples.rewards_PN
        credits_PN = objective(rewards_PN, torch.zeros_like(rewards_PN))

        # 3. A few steps on the same samples; the loss corrects every token by its bounded ratio to the old policy.
        batch = to_batch(rollout.samples.groups)
        for _ in range(NUM_PPO_ITERATIONS):
            logprobs_BT = policy(batch.rows, SAMPLING.temperature).logprobs_BT
            old_BT, mask_BT = batch.behaviour_logprobs_BT, batch.mask_BT
            terms = policy_loss(logprobs_BT, old_BT, credits_PN.flatten(), mask_BT)
            loss = (terms.loss_BT * weights_by_constant(mask_BT, NUM_PROMPTS, SAMPLING.max_new_tokens)).sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        best_of_1, best_of_8 = max_at_k(rewards_PN, [1, 8]).mean(0).tolist()
        print(f"rollout {index}: max@1 {best_of_1:.3f}, max@8 {best_of_8:.3f}, loss {loss.item():.4f}", flush=True)
    return policy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="builtin", help="policy directory or a built-in one")
    parser.add_argument("--rollouts", type=int, default=20)
    arguments = parser.parse_args()
    train(arguments.policy, arguments.rollouts)
