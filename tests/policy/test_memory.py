"""The memory table: its items against the model itself, and against the peak that a real step reaches."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary
from torchao.optim import Adam8bit
from transformers import AutoModelForCausalLM, Qwen2Config

from maxk_lightning.callbacks import RolloutCallback
from maxk_lightning.commands.memory_plan import Machine, remark_on, workload_of
from maxk_lightning.commands.trainer import MaxKCLI
from maxk_lightning.datamodule import PromptDataModule
from maxk_lightning.module import PolicyModule
from maxk_lightning.policy import Policy, load_model
from maxk_lightning.policy.lora import LoRA, add_adapters
from maxk_lightning.policy.memory import (
    GIB,
    EngineMemory,
    Workload,
    items_of,
    saved_bytes,
    state_bytes_per_element,
    table,
)
from maxk_lightning.policy.packing import pack
from maxk_lightning.rollouts import VLLMEngine, VLLMServerEngine
from tests.support.architectures import random_model

Sizes = dict[str, int]
UPPER_HALF = LoRA(r=8, target_modules=r".*layers\.[23]\..*proj")


@pytest.fixture(scope="module")
def small_policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Wide enough that activations weigh as much as weights."""
    directory = tmp_path_factory.mktemp("small_policy")
    config = Qwen2Config(
        vocab_size=4096,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return str(directory)


def _workload(policy: str, **options: Any) -> Workload:
    options = {
        "optimizer": partial(torch.optim.Adam, lr=1e-3),
        "num_groups": 3,
        "num_completions": 4,
        "max_prompt_tokens": 100,
        "max_new_tokens": 50,
        "max_row_tokens": 200,
    } | options
    return Workload(policy=policy, **options)


class PeakMeter(TorchDispatchMode):
    """Counts the storages that are alive after every operation."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.alive = WeakIdKeyDictionary()
        self.peak_bytes = 0
        self._count(tensors)

    def _count(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            self.alive[tensor.untyped_storage()] = tensor.untyped_storage().nbytes()
        self.peak_bytes = max(self.peak_bytes, sum(self.alive.values()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        self._count(leaf for leaf in tree_iter(results) if isinstance(leaf, torch.Tensor))
        return results


def _training(workload: Workload) -> Sizes:
    return {item.name: item.train_bytes for item in items_of(workload)}


def test_weights_gradients_and_states_are_those_of_the_model(small_policy: str) -> None:
    num_bytes = sum(4 * p.numel() for p in load_model(small_policy).parameters())
    sizes = _training(_workload(small_policy, has_reference=True))
    assert sizes["weights"] == sizes["gradients"] == sizes["reference policy"] == num_bytes
    assert sizes["optimizer states"] == 2 * num_bytes
    halved = _training(_workload(small_policy, weights_dtype=torch.bfloat16, compute_dtype=torch.bfloat16))
    assert halved["weights"] == halved["gradients"] == num_bytes // 2
    assert halved["optimizer states"] == num_bytes  # Adam's states have the weights' type


def test_ties_are_counted_once(random_policy: str) -> None:
    model = load_model(random_policy)
    assert model.config.tie_word_embeddings
    assert _training(_workload(random_policy))["weights"] == 4 * model.num_parameters()


def test_with_adapters_only_they_have_gradients_and_states(small_policy: str) -> None:
    lora = LoRA(r=4)
    model = load_model(small_policy, torch.bfloat16)
    add_adapters(model, lora)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}  # peft's own choice
    workload = _workload(small_policy, lora=lora, weights_dtype=torch.bfloat16, compute_dtype=torch.bfloat16)
    sizes = _training(replace(workload, has_reference=True))
    assert sizes["gradients"] == 4 * sum(p.numel() for p in trained)
    assert sizes["optimizer states"] == 2 * sizes["gradients"]
    assert sizes["weights"] == sum(p.numel() * p.element_size() for p in model.parameters())
    assert "reference policy" not in sizes  # the policy without its adapters


def test_shards_share_weights_gradients_and_states(small_policy: str) -> None:
    alone, eighth = (
        _training(_workload(small_policy, num_ranks=n, is_sharded=True, has_reference=True)) for n in (1, 8)
    )
    shared = ("weights", "gradients", "optimizer states", "reference policy")
    assert all(eighth[name] == alone[name] // 8 for name in shared)
    assert all(eighth[name] == alone[name] for name in alone if name not in shared)
    copies = _training(_workload(small_policy, num_ranks=8, has_reference=True))
    assert all(copies[name] == alone[name] for name in shared)
    late = _training(_workload(small_policy, num_ranks=8, is_sharded=True, has_whole_gradients=True))
    assert late["gradients"] == alone["gradients"]


@pytest.mark.parametrize(
    ("optimizer", "dtype", "expected"),
    [
        (partial(torch.optim.Adam, lr=1e-3), torch.float32, 8),
        (partial(torch.optim.AdamW, lr=1e-3), torch.bfloat16, 4),
        (partial(torch.optim.SGD, lr=1e-3), torch.float32, 0),
        (partial(torch.optim.SGD, lr=1e-3, momentum=0.9), torch.float32, 4),
        (partial(Adam8bit, lr=1e-3), torch.float32, 2 + 2 * 4 / 256),  # a code each, and a float32 scale per 256
    ],
    ids=["Adam", "AdamW bfloat16", "SGD", "momentum", "Adam8bit"],
)
def test_states_per_parameter(optimizer: Any, dtype: torch.dtype, expected: float) -> None:
    assert state_bytes_per_element(optimizer, dtype) == pytest.approx(expected, abs=0.01)  # and a table of 256 codes


@pytest.mark.parametrize("lora", [None, LoRA(r=4)], ids=["all weights", "adapters"])
@pytest.mark.parametrize("is_autocast", [False, True], ids=["float32", "autocast"])
def test_fake_passes_save_what_real_ones_save(small_policy: str, is_autocast: bool, lora: LoRA | None) -> None:
    compute_dtype = torch.bfloat16 if is_autocast else torch.float32
    workload = _workload(small_policy, lora=lora, compute_dtype=compute_dtype)
    model = load_model(small_policy).train()
    if lora is not None:
        add_adapters(model, lora)
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    width = 100 + 2 * 50
    ids, mask = torch.zeros(6, width, dtype=torch.long), torch.ones(6, 1, width, width, dtype=torch.bool)
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=is_autocast),
    ):
        outputs = model.base_model(input_ids=ids, position_ids=ids, attention_mask=mask, use_cache=False)
    assert outputs.last_hidden_state.requires_grad
    assert saved_bytes(workload, 4, 6) == sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    ("lora", "is_checkpointing"),
    [
        pytest.param(None, False, id="all weights-kept"),
        pytest.param(None, True, id="all weights-recomputed", marks=pytest.mark.slow),
        pytest.param(LoRA(r=8), False, id="adapters-kept", marks=pytest.mark.slow),
        pytest.param(LoRA(r=8), True, id="adapters-recomputed"),
        pytest.param(UPPER_HALF, False, id="adapters of some layers-kept"),
    ],
)
def test_the_total_is_near_the_peak_of_a_real_step(
    small_policy: str, is_checkpointing: bool, lora: LoRA | None
) -> None:
    """The table errs on the safe side, by less than 1.3."""
    model = load_model(small_policy)
    if is_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if lora is not None:
        add_adapters(model, lora)
    policy = Policy(model).train()
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=1e-3)
    rows = pack([[1] * 100] * 3, [[[2] * 50] * 4] * 3, 200)
    with PeakMeter(policy.parameters()) as meter:
        for _ in range(2):  # the second step has optimizer states from the start
            optimizer.zero_grad()
            policy(rows, 1.0).logprobs_BT.sum().backward()
            optimizer.step()
    total = sum(_training(_workload(small_policy, lora=lora, is_checkpointing=is_checkpointing)).values())
    print(f"{total / meter.peak_bytes:.3f}")
    assert meter.peak_bytes < total < 1.3 * meter.peak_bytes


def test_adapters_of_some_layers_count_as_of_all_where_layers_are_recomputed(small_policy: str) -> None:
    some, all_ = (
        _training(_workload(small_policy, lora=lora, is_checkpointing=True)) for lora in (UPPER_HALF, LoRA(r=8))
    )
    assert some["activations"] == all_["activations"]
    assert some["optimizer states"] < all_["optimizer states"]


def test_gradients_are_dropped_before_the_engine_works(small_policy: str) -> None:
    (gradients,) = (item for item in items_of(_workload(small_policy)) if item.name == "gradients")
    assert gradients.train_bytes > 0
    assert gradients.sample_bytes == 0


@pytest.mark.parametrize("spare_gib", [0, 2, 5, 20])
def test_chunks_of_logits_take_half_of_what_everything_else_leaves(small_policy: str, spare_gib: int) -> None:
    """With a vocabulary of 4096 a micro-batch has 2^29 logits: more than the largest chunk."""
    workload = _workload(small_policy, num_groups=2**9, max_new_tokens=64)
    logits = _training(workload)["logits of a chunk"]
    assert logits == GIB  # nothing is known of a GPU: the smallest
    others = sum(_training(workload).values()) - logits
    sizes = _training(replace(workload, capacity_bytes=others + spare_gib * GIB))
    assert sizes["logits of a chunk"] == max(1.0, min(4.0, spare_gib / 2)) * GIB
    assert sum(sizes.values()) - sizes["logits of a chunk"] <= others


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_a_mixture_of_experts_is_described_in_every_type(tmp_path: Path, compute_dtype: torch.dtype) -> None:
    random_model("gpt_oss").save_pretrained(tmp_path)
    policy = str(tmp_path)
    one, two = (saved_bytes(_workload(policy, compute_dtype=compute_dtype), n, n) for n in (1, 2))
    assert 0 < one < two
    assert sum(_training(_workload(policy, compute_dtype=compute_dtype)).values()) > one


def test_recomputation_pays_and_longer_rows_cost(small_policy: str) -> None:
    kept, recomputed = (_training(_workload(small_policy, is_checkpointing=c)) for c in (False, True))
    assert recomputed["activations"] < 0.2 * kept["activations"]
    double = _training(_workload(small_policy, num_groups=6))
    assert double["activations"] == 2 * kept["activations"]


def test_the_engine_counts_and_sleeps(small_policy: str) -> None:
    engine = EngineMemory(weights_dtype=torch.bfloat16, kv_cache_bytes=3 * GIB)
    sizes = {item.name: item for item in items_of(_workload(small_policy, engine=engine))}
    assert sizes["engine's weights"].train_bytes == 2 * load_model(small_policy).num_parameters()
    assert sizes["engine's KV cache"].sample_bytes == 3 * GIB
    asleep = {i.name: i for i in items_of(_workload(small_policy, engine=replace(engine, is_asleep_in_training=True)))}
    assert asleep["engine's weights"].train_bytes == asleep["engine's KV cache"].train_bytes == 0
    assert asleep["engine's KV cache"].sample_bytes == 3 * GIB


def test_the_table_adds_up_and_says_whether_it_fits(small_policy: str) -> None:
    workload = _workload(
        small_policy, overhead_bytes=2 * GIB, engine=EngineMemory(weights_dtype=torch.float32, kv_cache_bytes=3 * GIB)
    )
    items = items_of(workload)
    lines = table(items, 6 * GIB).splitlines()
    columns = [[float(line[start : start + 10]) for line in lines[1:-1]] for start in (36, 46)]
    for *rows, total in columns:
        assert total == pytest.approx(sum(rows), abs=0.005 * len(rows) + 0.005)  # each is rounded to 0.01
    assert columns[0][-1] == pytest.approx(sum(item.train_bytes for item in items) / GIB, abs=0.005)
    assert lines[-1] == "fits into the GPU's 6.00 GiB"
    assert table(items, 5 * GIB).splitlines()[-1] == "DOES NOT FIT into the GPU's 5.00 GiB"


def test_a_dry_run_prints_the_table_of_the_configured_run(
    random_policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--model.policy", random_policy, "--data.validation", "null", "--trainer.accelerator", "cpu"]
    args += ["--trainer.default_root_dir", str(tmp_path / "run"), "--rollout.engine.max_batch_rows", "16"]
    with pytest.raises(SystemExit) as ended:
        MaxKCLI(["fit", *args, "--dry_run", "true"])
    assert ended.value.code == 0
    module = PolicyModule(policy=random_policy)
    kv_cache_bytes = 16 * (512 + 256) * 2 * (2 * 2 * 8) * 4  # rows, tokens, K and V, layers x heads x width, float32
    engine = EngineMemory(weights_dtype=torch.float32, kv_cache_bytes=kv_cache_bytes)
    workload = _workload(random_policy, optimizer=module.optimizer_from, engine=engine, num_groups=8, num_completions=8)
    workload = replace(workload, max_prompt_tokens=512, max_new_tokens=256, max_row_tokens=2048)
    assert table(items_of(workload)) in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


class UnmeasuredEngine:
    """A user's engine, which does not tell what memory it needs."""

    def generate(self, prompts: Any, sampling: Any) -> Any:
        raise AssertionError("nothing is sampled here")

    def load_weights(self, named_tensors: Any, version: int) -> None:
        raise AssertionError("nothing is sampled here")


def test_the_workload_follows_the_configuration(small_policy: str) -> None:
    module = PolicyModule(policy=small_policy, lora=LoRA(r=4), dtype="bfloat16", prompts_per_micro_batch=3)
    data = PromptDataModule(policy=small_policy, prompts_per_rollout=64, prompts_per_step=32)
    vllm = VLLMEngine(small_policy, kv_cache_gib=2.0, sleep_while_training=True)
    machine = Machine(num_ranks=4, is_sharded=True, has_gpu=True, capacity_bytes=80 * GIB)
    workload = workload_of(module, data, RolloutCallback(vllm), machine)
    assert workload.num_groups == 3
    assert workload.has_whole_gradients  # 8 groups per rank are 3 micro-batches
    assert (workload.weights_dtype, workload.compute_dtype) == (torch.bfloat16, torch.bfloat16)
    logits = 4 * 256 * 4096  # of max_num_seqs rows
    asleep = EngineMemory(
        weights_dtype=torch.bfloat16,
        kv_cache_bytes=2 * GIB,
        is_asleep_in_training=True,
        prefill_bytes=3 * logits + 2 * 8192 * (3 * 384 + 4 * 128),
        fixed_bytes=logits + GIB,
    )
    assert workload.engine == asleep
    lean = VLLMEngine(small_policy, kv_cache_gib=2.0, enforce_eager=True, max_num_batched_tokens=1024, max_num_seqs=32)
    small = workload_of(module, data, RolloutCallback(lean), machine).engine
    assert small is not None
    assert (small.prefill_bytes, small.fixed_bytes) == (3 * logits // 8 + 2 * 1024 * 1664, logits // 8)
    eager = workload_of(module, data, RolloutCallback(vllm), replace(machine, reduces_every_micro_batch=True))
    assert not eager.has_whole_gradients
    share = VLLMEngine(small_policy, gpu_memory_utilization=0.5)
    mixed = workload_of(
        PolicyModule(policy=small_policy), data, RolloutCallback(share), replace(machine, precision="bf16-mixed")
    )
    assert mixed.compute_dtype == torch.bfloat16
    assert mixed.engine is not None
    weights = 2 * load_model(small_policy).num_parameters()
    engine = mixed.engine
    assert weights + engine.kv_cache_bytes + engine.prefill_bytes + engine.fixed_bytes == 40 * GIB
    assert mixed.capacity_bytes == 80 * GIB
    server = RolloutCallback(VLLMServerEngine(small_policy, url="http://127.0.0.1:1"))
    elsewhere = workload_of(module, data, server, machine)
    assert elsewhere.engine is None
    assert "VLLMServerEngine): on GPUs of its own" in remark_on(server, elsewhere)
    foreign = RolloutCallback(UnmeasuredEngine())
    assert "UnmeasuredEngine): unknown, and not counted" in remark_on(foreign, elsewhere)
    assert remark_on(RolloutCallback(vllm), workload) == ""
