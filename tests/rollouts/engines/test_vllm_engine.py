"""The colocated vLLM engine against the policy's own forward pass. The engine is the real one."""

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest
import torch

from maxk_lightning.policy import Policy, load_model, load_tokenizer, resolve_policy
from maxk_lightning.policy.packing import pack
from maxk_lightning.rollouts import EngineError, VLLMEngine, VLLMServerEngine
from maxk_lightning.rollouts.engines.text import StopStrings
from maxk_lightning.rollouts.engines.vllm.arguments import HeadDtype
from maxk_lightning.rollouts.weight_sync import logprob_gap
from maxk_lightning.types import Completion, Prompt, Sampling
from tests.support.rank_processes import run_ranks

pytestmark = pytest.mark.vllm
PROMPTS = [Prompt(problem_id=str(i), token_ids=tuple(range(5, 25 + i)), seed=100 + i) for i in range(4)]
SAMPLING = Sampling(num_completions=4, max_new_tokens=48, temperature=0.8)
MAX_GAP = 1e-4
"Nats per token, the largest of some hundred tokens. Two float32 implementations of one model differ by about 5e-6."


def _engine(policy: str, timeout_s: float = 600.0, record_entropy: bool = False) -> VLLMEngine:
    return VLLMEngine(
        policy,
        dtype="float32",
        kv_cache_gib=0.0625,
        max_model_len=256,
        max_num_seqs=32,
        enforce_eager=True,
        timeout_s=timeout_s,
        record_entropy=record_entropy,
    )


@pytest.fixture(scope="module", autouse=True)
def _no_process_group_stays() -> Iterator[None]:
    """vLLM opens one of a single process in this one; tests of other files expect none."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def untied_policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The built-in policy with a head of its own."""
    directory: Path = tmp_path_factory.mktemp("untied")
    from transformers import Qwen2ForCausalLM

    tied = load_model("builtin")
    config = tied.config
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    untied = Qwen2ForCausalLM(config)
    untied.load_state_dict(tied.state_dict())
    with torch.no_grad():
        untied.lm_head.weight += 0.02 * torch.randn_like(untied.lm_head.weight)
    untied.save_pretrained(directory)
    load_tokenizer("builtin").save_pretrained(directory)
    return str(directory)


def _disturb(policy: Policy, seed: int) -> None:
    """Move every weight by more than any optimizer step would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


def _token_ids(groups: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in group] for group in groups]


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_logprobs_are_the_policys_after_every_push(kind: str, untied_policy: str) -> None:
    name = "builtin" if kind == "tied" else untied_policy
    policy, engine = Policy(load_model(name)), _engine(name)
    assert policy.model.config.tie_word_embeddings == (kind == "tied")
    try:
        seen = []
        for version in range(3):
            _disturb(policy, version)
            engine.load_weights(policy.model.state_dict().items(), version)
            assert engine.version == version
            groups = engine.generate(PROMPTS, SAMPLING)  # the same prompts: the prefix cache would betray old weights
            assert logprob_gap(policy, PROMPTS, groups, SAMPLING.temperature)[1] < MAX_GAP
            seen.append(_token_ids(groups))
        assert seen[0] != seen[1] != seen[2]
    finally:
        engine.close()


@pytest.fixture
def engine() -> Iterator[VLLMEngine]:
    engine = _engine("builtin")
    engine.load_weights(load_model("builtin").state_dict().items(), 7)
    yield engine
    engine.close()


def test_a_sample_depends_on_its_seed_alone(engine: VLLMEngine) -> None:
    groups = engine.generate(PROMPTS, SAMPLING)
    assert engine.generate(PROMPTS, SAMPLING) == groups
    alone = engine.generate(PROMPTS[2:3], Sampling(num_completions=2, max_new_tokens=48, temperature=0.8))
    assert _token_ids(alone) == [_token_ids(groups)[2][:2]]
    same_prompt = [Prompt(problem_id="0", token_ids=PROMPTS[0].token_ids, seed=seed) for seed in (1, 2)]
    samples = [sample for group in _token_ids(engine.generate(same_prompt, SAMPLING)) for sample in group]
    assert len(set(samples)) > len(samples) // 2  # no two share their random numbers


def test_the_groups_arrive_in_order_and_the_stream_is_the_same(engine: VLLMEngine) -> None:
    groups = engine.generate(PROMPTS, SAMPLING)
    arrived = list(engine.stream(PROMPTS, SAMPLING))
    assert len(arrived) == len(PROMPTS) * SAMPLING.num_completions
    assert all(groups[index][sample] == completion for index, sample, completion in arrived)
    lengths = [len(completion.token_ids) for _, _, completion in arrived]
    assert lengths == sorted(lengths)  # all started together: they arrive as they end


def test_completions_end_at_the_first_stop_token_or_at_the_limit(engine: VLLMEngine) -> None:
    stop = load_tokenizer("builtin").eos_token_id
    completions = [
        completion
        for limit in (6, 120)
        for group in engine.generate(PROMPTS, Sampling(num_completions=4, max_new_tokens=limit))
        for completion in group
    ]
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    for completion in completions:
        assert stop not in completion.token_ids[:-1]
        assert (completion.token_ids[-1] == stop) == (completion.finish_reason == "stop")
        assert len(completion.token_ids) == len(completion.logprobs)
        assert completion.finish_reason == "stop" or len(completion.token_ids) in (6, 120)


@pytest.mark.parametrize("kind", ["in this process", "server"])
def test_stop_strings_end_completions_as_in_the_embedded_engine(kind: str) -> None:
    engine: VLLMEngine | VLLMServerEngine = _engine("builtin")
    if kind == "server":
        arguments = {"enforce-eager": True, "max-model-len": 256, "dtype": "float32", "kv-cache-memory-bytes": 2**26}
        engine = VLLMServerEngine("builtin", transfer="file", server_args=arguments)
    sampling = Sampling(num_completions=8, max_new_tokens=60, temperature=1.2)
    try:
        free = engine.generate(PROMPTS, sampling)
        texts = sorted((completion.text for group in free for completion in group), key=len)
        stop = (texts[-1][9:11], texts[-2][20:23])
        stopped = engine.generate(PROMPTS, replace(sampling, stop=stop))
    finally:
        engine.close()
    strings = StopStrings(load_tokenizer("builtin"), stop)
    pairs = [pair for groups in zip(stopped, free, strict=True) for pair in zip(*groups, strict=True)]
    for completion, whole in pairs:
        ends = [end for end in range(1, len(whole.token_ids) + 1) if strings.end(whole.token_ids[:end])]
        end = min(ends, default=len(whole.token_ids))
        assert completion.token_ids == whole.token_ids[:end]
        assert completion.text == load_tokenizer("builtin").decode(whole.token_ids[:end], skip_special_tokens=True)
        assert completion.finish_reason == ("stop" if ends else whole.finish_reason)
        assert completion.logprobs == pytest.approx(whole.logprobs[:end], abs=MAX_GAP)
    assert {completion == whole for completion, whole in pairs} == {True, False}


def test_starting_leaves_the_trainers_random_state_alone() -> None:
    weights = load_model("builtin").state_dict()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    engine = _engine("builtin")
    engine.load_weights(weights.items(), 0)
    engine.close()
    assert torch.equal(torch.rand(3), expected)


def test_before_any_push_it_samples_from_the_weights_of_the_directory(engine: VLLMEngine) -> None:
    pushed = engine.generate(PROMPTS, SAMPLING)
    engine.close()
    assert _token_ids(engine.generate(PROMPTS, SAMPLING)) == _token_ids(pushed)


def test_the_models_generation_config_never_leaks(engine: VLLMEngine, tmp_path: Path) -> None:
    shutil.copytree(resolve_policy("builtin"), tmp_path / "policy")
    plain = engine.generate(PROMPTS, SAMPLING)
    engine.close()
    settings = {"top_k": 1, "temperature": 0.1, "repetition_penalty": 1.5, "do_sample": True, "eos_token_id": 2}
    assert load_tokenizer("builtin").eos_token_id == 2
    (tmp_path / "policy" / "generation_config.json").write_text(json.dumps(settings))
    other = _engine(str(tmp_path / "policy"))
    try:
        assert _token_ids(other.generate(PROMPTS, SAMPLING)) == _token_ids(plain)
    finally:
        other.close()


def test_bad_weights_are_refused_by_name_and_the_engine_recovers(engine: VLLMEngine) -> None:
    weights = dict(load_model("builtin").state_dict())
    before = engine.generate(PROMPTS, SAMPLING)
    head = dict(weights)
    del head["lm_head.weight"]
    with pytest.raises(ValueError, match=r"not given 1 weights, among them lm_head\.weight"):
        engine.load_weights(head.items(), 8)
    assert engine.version is None
    with pytest.raises(ValueError, match=r"weight model\.norm\.weight is not finite"):
        engine.load_weights((weights | {"model.norm.weight": torch.full((128,), torch.nan)}).items(), 8)
    with pytest.raises(ValueError, match="weight surprise is unknown"):
        engine.load_weights({"surprise": torch.zeros(1)}.items(), 8)
    engine.close()
    engine.load_weights(weights.items(), 9)
    assert engine.generate(PROMPTS, SAMPLING) == before


def test_entropies_are_those_of_the_policy() -> None:
    engine = _engine("builtin", record_entropy=True)
    sampling = Sampling(num_completions=12, max_new_tokens=60, temperature=0.8)  # more samples than run at a time
    try:
        groups = engine.generate(PROMPTS, sampling)
    finally:
        engine.close()
    completions = [[c.token_ids for c in group] for group in groups]
    with torch.no_grad():
        stats = Policy(load_model("builtin"))(pack([p.token_ids for p in PROMPTS], completions), 0.8)
    told = [entropy for group in groups for c in group for entropy in c.entropies or ()]
    mask_BT = torch.arange(stats.entropies_BT.shape[1]) < torch.tensor([[len(c)] for g in completions for c in g])
    torch.testing.assert_close(torch.tensor(told), stats.entropies_BT[mask_BT], atol=1e-4, rtol=1e-4)


def test_more_prompt_tokens_than_fit_a_step_and_more_samples_than_fit_the_cache(engine: VLLMEngine) -> None:
    prompts = [Prompt(problem_id=str(i), token_ids=(3 + i, *range(5, 195)), seed=i) for i in range(48)]
    sampling = Sampling(num_completions=2, max_new_tokens=60)
    groups = engine.generate(prompts, sampling)
    assert _token_ids(engine.generate(prompts[40:41], sampling)) == _token_ids(groups)[40:41]
    assert logprob_gap(Policy(load_model("builtin")), prompts, groups, 1.0)[1] < MAX_GAP


def test_a_prompt_that_leaves_no_room_is_refused(engine: VLLMEngine) -> None:
    with pytest.raises(ValueError, match=r"max_model_len is 256, too short for a prompt of 23 tokens and 250 new ones"):
        engine.generate(PROMPTS, Sampling(max_new_tokens=250))


def test_a_process_group_of_the_trainer_outlives_the_engine_and_its_successor(tmp_path: Path) -> None:
    if torch.distributed.is_initialized():  # vLLM's own, of a test before
        torch.distributed.destroy_process_group()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    engine = _engine("builtin")
    seen = []
    for _ in range(2):
        engine.load_weights(load_model("builtin").state_dict().items(), 0)
        seen.append(_token_ids(engine.generate(PROMPTS, SAMPLING)))
        engine.close()
        gc.collect()
        assert torch.distributed.is_initialized()
    assert seen[0] == seen[1]


def test_a_call_that_takes_too_long_is_a_failed_engine() -> None:
    engine = _engine("builtin", timeout_s=1e-3)
    try:
        with pytest.raises(EngineError, match="timeout_s"):
            engine.generate(PROMPTS, SAMPLING)
    finally:
        engine.close()


@pytest.mark.slow
def test_float32_logits_bring_a_bfloat16_engine_nearer_to_a_trainer_with_such_logits(untied_policy: str) -> None:
    """All logits stand near 100, as in real models near 20, where bfloat16 has steps of 1/2 (1/8)."""
    model = load_model(untied_policy, torch.bfloat16)
    with torch.no_grad():
        hidden_LD = model.model(torch.tensor([PROMPTS[0].token_ids])).last_hidden_state[0].float()
        direction_D = hidden_LD.mean(0) / (hidden_LD.mean(0) ** 2).sum()
        model.lm_head.weight += 100.0 * direction_D  # the same for every token: no probability changes by it
    weights = dict(model.state_dict())
    gaps = {}
    for head_dtype in get_args(HeadDtype):
        engine = VLLMEngine(
            untied_policy,
            dtype="bfloat16",
            head_dtype=head_dtype,
            kv_cache_gib=0.0625,
            max_model_len=256,
            enforce_eager=True,
        )
        try:
            engine.load_weights(weights.items(), 0)
            groups = engine.generate(PROMPTS, SAMPLING)
        finally:
            engine.close()
        gaps[head_dtype] = _gap_to_float32_logits(model, groups)
    assert gaps["float32"] < 0.5 * gaps["model"], gaps


def _gap_to_float32_logits(model: Any, groups: list[list[Completion]]) -> float:
    """Mean |difference| to log-probs of a bfloat16 body under float32 logits, nats per token."""
    differences = []
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            token_ids = torch.tensor([[*prompt.token_ids, *completion.token_ids]])
            with torch.no_grad():
                hidden = model.model(token_ids).last_hidden_state[0, len(prompt.token_ids) - 1 : -1]
                logits = hidden.float() @ model.lm_head.weight.float().T / SAMPLING.temperature
            own = logits.log_softmax(-1).gather(-1, torch.tensor(completion.token_ids).unsqueeze(-1)).squeeze(-1)
            differences.append((own - torch.tensor(completion.logprobs)).abs())
    return float(torch.cat(differences).mean())


def test_a_sleeping_engine_is_woken_before_it_is_closed(engine: VLLMEngine) -> None:
    """vLLM's allocator breaks when memory is freed that it has given back. (On a CPU sleep frees nothing.)"""
    before = engine.generate(PROMPTS, SAMPLING)
    calls = []
    executor = engine.llm.llm_engine.engine_core.engine_core.model_executor
    engine.sleep_while_training = True  # vLLM refuses to be started with it on a CPU
    for thing, name in ((executor, "sleep"), (executor, "wake_up"), (executor, "shutdown")):
        setattr(thing, name, _noting(calls, name, getattr(thing, name)))
    assert engine.sleep()
    engine.close()
    assert calls[:3] == ["sleep", "wake_up", "shutdown"]
    engine.load_weights(load_model("builtin").state_dict().items(), 8)
    assert engine.generate(PROMPTS, SAMPLING) == before


def _noting(calls: list[str], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def noting(*args: Any, **options: Any) -> Any:
        calls.append(name)
        return call(*args, **options)

    return noting


def test_an_engine_that_cannot_be_woken_is_the_last_of_its_process(
    engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maxk_lightning.rollouts.engines.vllm.engine.ABANDONED", [])
    engine.sleep_while_training = True
    assert engine.sleep()
    llm = engine.llm
    with monkeypatch.context() as patched:
        patched.setattr(llm, "wake_up", lambda tags: 1 / 0)
        engine.close()
    with pytest.raises(EngineError, match="only a new process can start another"):
        engine.load_weights(load_model("builtin").state_dict().items(), 8)
    monkeypatch.undo()
    engine.llm = llm  # the memory is there: close it after all


def test_a_push_that_fails_halfway_can_be_repeated(engine: VLLMEngine) -> None:
    """Also from asleep: vLLM wakes weights only once."""
    weights = load_model("builtin").state_dict()
    before = engine.generate(PROMPTS, SAMPLING)
    engine.sleep_while_training = True
    assert engine.sleep()
    with pytest.raises(ValueError, match="is not finite"):
        engine.load_weights((weights | {"model.norm.weight": torch.full((128,), torch.nan)}).items(), 8)
    with pytest.raises(EngineError, match=r"(sleeps|halfway): load weights before the next sample"):
        engine.generate(PROMPTS, SAMPLING)
    engine.load_weights(weights.items(), 9)
    assert engine.generate(PROMPTS, SAMPLING) == before


def test_two_ranks_are_one_engine_and_sample_what_one_would(engine: VLLMEngine, tmp_path: Path) -> None:
    """Each rank gives other prompts, of other number, and gets the answers to its own."""
    expected = engine.generate(PROMPTS, SAMPLING)
    ends = run_ranks("tensor_parallel_rank.py", tmp_path / "store")
    assert [end.returncode for end in ends] == [0, 0], "".join(end.err[-3000:] for end in ends)
    told = [json.loads(end.out.splitlines()[-1]) for end in ends]
    assert [len(groups) for groups in told] == [3, 1]
    sampled = [completion for groups in told for group in groups for completion in group]
    own = [completion for group in expected for completion in group]
    assert [tuple(tokens) for tokens, _ in sampled] == [completion.token_ids for completion in own]
    for (_, logprobs), completion in zip(sampled, own, strict=True):
        assert logprobs == pytest.approx(completion.logprobs, abs=MAX_GAP)


def test_a_reward_that_fails_amid_the_stream_leaves_no_peer_waiting(engine: VLLMEngine, tmp_path: Path) -> None:
    """Both ranks tell the error, and the engine that they form can sample on."""
    expected = engine.generate(PROMPTS, SAMPLING)
    ends = run_ranks("tensor_parallel_rank.py", tmp_path / "store", ["fail"], timeout_s=200.0)
    assert [end.returncode for end in ends] == [0, 0], "".join(end.err[-3000:] for end in ends)
    told = [[json.loads(line) for line in end.out.splitlines() if line[:1] in '["'] for end in ends]
    assert [error for error, _ in told] == ["rank 0: OSError: the grader is gone"] * 2
    tokens = [tuple(tokens) for _, groups in told for group in groups for tokens, _ in group]
    assert tokens == [completion.token_ids for group in expected for completion in group]


def test_a_server_that_dies_while_weights_are_on_their_way_is_a_failed_engine() -> None:
    arguments = {"enforce-eager": True, "max-model-len": 256, "dtype": "float32", "kv-cache-memory-bytes": 2**26}
    engine = VLLMServerEngine("builtin", transfer="file", server_args=arguments, timeout_s=120.0)
    weights = load_model("builtin").state_dict()

    def deadly() -> Iterator[tuple[str, torch.Tensor]]:
        for index, item in enumerate(weights.items()):
            if index == 3:
                family = psutil.Process().children(recursive=True)
                (server,) = [process for process in family if "api_server" in " ".join(process.cmdline()[:4])]
                server.kill()
            yield item

    try:
        engine.load_weights(weights.items(), 1)
        before = engine.generate(PROMPTS[:1], SAMPLING)
        with pytest.raises(EngineError, match="does not answer collective_rpc"):
            engine.load_weights(deadly(), 2)
        assert engine.version is None
        engine.close()
        engine.load_weights(weights.items(), 3)
        assert _token_ids(engine.generate(PROMPTS[:1], SAMPLING)) == _token_ids(before)
        assert logprob_gap(Policy(load_model("builtin")), PROMPTS[:1], before, SAMPLING.temperature).largest < MAX_GAP
    finally:
        engine.close()
