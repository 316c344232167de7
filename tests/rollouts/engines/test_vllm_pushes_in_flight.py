"""A real vLLM server on a CPU that is given weights, by files, while it samples."""

import threading
import time
from collections.abc import Iterator, Mapping

import psutil
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from maxk_lightning.policy import Policy, load_model, load_stop_tokens, load_tokenizer
from maxk_lightning.policy.packing import pack
from maxk_lightning.rollouts import EngineError, VLLMServerEngine
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.weight_sync import Weights, WeightSync
from maxk_lightning.types import Completion, Prompt, Sampling, Segment

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
PROMPTS = [Prompt(problem_id=str(seed), token_ids=tuple(range(5, 45)), seed=seed) for seed in range(2)]
LONG = Sampling(num_completions=4, max_new_tokens=400, temperature=1.3)
ROUNDING = 1e-4
"Nats by which two computations of a log-prob in float32 may differ; those of other weights differ by more."


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServerEngine]:
    """One for all tests, the last of which kills its server: to start one takes a minute, beside other load several."""
    engine = VLLMServerEngine(
        "builtin",
        transfer="file",
        transfer_dir=str(tmp_path_factory.mktemp("weights")),
        in_flight_weight_updates=True,
        server_args={
            "enforce-eager": True,
            "max-model-len": 512,
            "dtype": "float32",
            "kv-cache-memory-bytes": 2**26,
            "distributed-executor-backend": "uni",
        },
    )
    yield engine
    engine.close()


class Sampled:
    """A rollout that a thread samples."""

    def __init__(self, engine: VLLMServerEngine) -> None:
        self.groups: list[list[Completion]] = []
        self.error: Exception | None = None
        self._engine = engine
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        time.sleep(0.5)  # it has begun, and is not near its end

    def _run(self) -> None:
        try:
            self.groups = self._engine.generate(PROMPTS, LONG)
        except EngineError as error:
            self.error = error

    def end(self) -> None:
        self._thread.join(120)
        assert not self._thread.is_alive()


def _gaps(policy: Policy, weights: Mapping[str, Tensor], groups: list[list[Completion]]) -> list[Tensor]:
    """|told log-prob - that of the policy with these weights|, of each token, given the tokens before it."""
    policy.model.load_state_dict(weights)
    rows = pack([prompt.token_ids for prompt in PROMPTS], [[c.token_ids for c in group] for group in groups])
    with torch.no_grad():
        own_BT = policy(rows, LONG.temperature).logprobs_BT
    told = [torch.tensor(completion.logprobs) for group in groups for completion in group]
    own = own_BT[rows.mask_BT].split([len(logprobs) for logprobs in told])
    return [(a - b).abs() for a, b in zip(told, own, strict=True)]


def _endless() -> PreTrainedModel:
    """The built-in model, which hardly ever ends an answer: the logits of its stop tokens are 0."""
    model = load_model("builtin")
    stop_tokens = load_stop_tokens("builtin", load_tokenizer("builtin"))
    with torch.no_grad():
        model.get_output_embeddings().weight[list(stop_tokens)] = 0.0  # type: ignore[no-untyped-call]
    return model


def test_every_token_has_the_log_prob_of_the_weights_that_drew_it(engine: VLLMServerEngine) -> None:
    """Also behind tokens that older weights drew: their keys and values are computed anew."""
    policy = Policy(_endless())
    sync = WeightSync(engine, max_logprob_gap=1e-4)
    initial = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    versions = {step: {name: tensor * 1.01**step for name, tensor in initial.items()} for step in range(3)}

    def push(step: int) -> None:
        policy.model.load_state_dict(versions[step])
        weights = Weights(policy=policy, named_tensors=lambda: iter(policy.model.state_dict().items()), step=step)
        assert sync.refresh(weights, PROMPTS, LONG, Ranks(), num_tokens=8)

    push(0)
    sampled = Sampled(engine)
    push(1)
    push(2)
    sampled.end()
    assert sampled.error is None
    completions = [completion for group in sampled.groups for completion in group]
    assert {tuple(segment.version for segment in each.segments) for each in completions} >= {(0, 1, 2)}
    gaps = {step: _gaps(policy, weights, sampled.groups) for step, weights in versions.items()}
    for place, completion in enumerate(completions):
        assert completion.segments[0].first_token == 0
        ends = [segment.first_token for segment in completion.segments[1:]] + [len(completion.token_ids)]
        for segment, end in zip(completion.segments, ends, strict=True):
            tokens = slice(segment.first_token, end)
            assert gaps[segment.version][place][tokens].max() < ROUNDING
            for other in versions.keys() - {segment.version}:
                if end - segment.first_token > 10:
                    assert gaps[other][place][tokens].max() > 10 * ROUNDING
    (again,) = engine.generate(PROMPTS[:1], Sampling(num_completions=1, max_new_tokens=4))
    assert again[0].segments == (Segment(0, 2),)


def test_a_server_that_is_killed_amid_a_push_ends_the_sampling_too(engine: VLLMServerEngine) -> None:
    model = _endless()
    engine.load_weights(model.state_dict().items(), 3)
    sampled = Sampled(engine)
    process = engine._links[0].process
    assert process is not None
    server = psutil.Process(process._process.pid).children(recursive=True)

    def killing() -> Iterator[tuple[str, Tensor]]:
        yield from model.state_dict().items()
        for each in server:
            each.kill()

    with pytest.raises(EngineError):
        engine.load_weights(killing(), 4)
    sampled.end()
    assert isinstance(sampled.error, EngineError)
    assert engine.version is None
