"""The proof that an engine has the policy's weights: of engines with several parts, every one must have them."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from maxk_lightning.policy import Policy, load_model
from maxk_lightning.rollouts import TransformersEngine
from maxk_lightning.rollouts.engine import Part
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.weight_sync import Weights, WeightSync, logprob_gap, logprob_gaps
from maxk_lightning.types import Completion, Prompt, Sampling

PROMPTS = [Prompt(problem_id=str(seed), token_ids=(5, 6, seed), seed=seed) for seed in range(7, 10)]
SAMPLING = Sampling(num_completions=1, max_new_tokens=12)
BOUND = 1e-4


class Two:
    """Two engines as one, of which the second may keep weights that nobody gave it."""

    def __init__(self, *, is_second_deaf: bool) -> None:
        self.parts = {"first": TransformersEngine(), "second": TransformersEngine()}
        self.is_second_deaf = is_second_deaf

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        weights = dict(named_tensors)
        moved = {name: tensor * (1.3 if self.is_second_deaf else 1.0) for name, tensor in weights.items()}
        self.parts["first"].load_weights(weights.items(), version)
        self.parts["second"].load_weights(moved.items(), version)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        return self.parts["first"].generate(prompts, sampling)

    def sample_each(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Part]:
        shares = {"first": prompts[:2], "second": prompts[2:]}
        return [
            Part(name=name, prompts=shares[name], groups=engine.generate(shares[name], sampling))
            for name, engine in self.parts.items()
        ]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(load_model("builtin"))


@pytest.mark.parametrize("is_second_deaf", [False, True])
def test_one_part_with_other_weights_stops_the_run(
    policy: Policy, is_second_deaf: bool, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Two(is_second_deaf=is_second_deaf)
    sync = WeightSync(engine, BOUND)
    weights = Weights(policy=policy, named_tensors=lambda: iter(policy.model.state_dict().items()), step=3)
    if not is_second_deaf:
        assert sync.refresh(weights, PROMPTS, SAMPLING, Ranks())
        assert sync.version == 3
        assert sync.gap.largest < BOUND
        assert caplog.messages == []
        return
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match="differ from the trainer's"):
        sync.refresh(weights, PROMPTS, SAMPLING, Ranks())
    assert sync.version is None
    (warning,) = caplog.messages
    assert warning.startswith("second: log-probs differ by")


def test_the_gaps_of_parts_are_those_that_each_has_alone(policy: Policy) -> None:
    engine = TransformersEngine()
    engine.load_weights(policy.model.state_dict().items(), 0)
    groups = engine.generate(PROMPTS, replace(SAMPLING, num_completions=3))
    shifted = [
        [replace(c, logprobs=tuple(p - 0.1 * (i + 1) for p in c.logprobs)) for c in group]
        for i, group in enumerate(groups)
    ]
    parts = [
        Part(name="two", prompts=PROMPTS[:2], groups=shifted[:2]),
        Part(name="one", prompts=PROMPTS[2:], groups=shifted[2:]),
    ]
    gaps = logprob_gaps(policy, parts, 1.0)
    for gap, part in zip(gaps, parts, strict=True):
        alone = logprob_gap(policy, part.prompts, part.groups, 1.0)
        torch.testing.assert_close(torch.tensor(gap), torch.tensor(alone), atol=1e-5, rtol=1e-5)  # float32
    assert gaps[1].mean == pytest.approx(0.3, abs=BOUND)
    lengths = torch.tensor([len(c.token_ids) for c in shifted[2]], dtype=torch.float64)
    assert gaps[1].of_sums == pytest.approx(float(0.3 * lengths.mean()), abs=1e-3)  # twelve tokens of float32
