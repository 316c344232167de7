"""What a run needs on each GPU, item by item, from the description of the policy alone: no weight is read.

Parameters are counted on the meta device. Activations are those that autograd really saves, counted in a pass over
fake tensors, which have shapes and no memory. Optimizer states are those of one step on a small parameter.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from maxk_lightning.policy import find_policy
from maxk_lightning.policy.architectures import attention_implementation, check_architecture
from maxk_lightning.policy.lora import ALL_LINEAR, LoRA, add_adapters
from maxk_lightning.policy.projection import LOGITS_COPIES, chunk_logits_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GIB = 2**30
PROBE_ELEMENTS = 2**20
"Size of the parameter on which an optimizer's states are counted; torchao leaves small ones in full precision."


@dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """What the rollout engine holds on the same GPU."""

    weights_dtype: torch.dtype
    "Type of its copy of the weights."
    kv_cache_bytes: int
    "Size of its KV cache."
    is_asleep_in_training: bool = False
    "Whether it frees both while the policy trains."
    prefill_bytes: int = 0
    "Activations of the most tokens that it reads at once, and the logits that it draws from."
    fixed_bytes: int = 0
    "CUDA graphs and buffers of the sampler, which it never frees."
    num_shards: int = 1
    "GPUs that its copy of the weights is split over."


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The facts of a run that decide what it needs."""

    policy: str
    "Directory, hub name or `builtin`."
    lora: LoRA | None = None
    "Adapters; None: every weight trains."
    weights_dtype: torch.dtype = torch.float32
    "Type of weights and gradients."
    compute_dtype: torch.dtype = torch.float32
    "Type of matrix products."
    optimizer: Callable[[Any], torch.optim.Optimizer]
    "Function that makes the optimizer."
    has_reference: bool = False
    "Whether a second model stays for the KL penalty."
    is_checkpointing: bool = False
    "Whether decoder layers are recomputed in the backward pass."
    num_groups: int
    "Prompts of a micro-batch."
    num_completions: int
    "Completions per prompt, n."
    max_prompt_tokens: int
    "Tokens of the longest prompt."
    max_new_tokens: int
    "Tokens of the longest completion."
    max_row_tokens: int | None = None
    "Tokens that a packed row may hold; see `packing.pack`."
    num_ranks: int = 1
    "Number of GPUs."
    is_sharded: bool = False
    "Whether weights, gradients and optimizer states are split over the ranks (FSDP2)."
    has_whole_gradients: bool = False
    "Whether FSDP2 sums gradients over ranks once per step, not after each micro-batch."
    engine: EngineMemory | None = None
    "Memory of the rollout engine; None: it runs elsewhere."
    overhead_bytes: int = 0
    "Assumption for the CUDA context, library workspaces and fragmentation."
    capacity_bytes: int | None = None
    "Memory of a GPU, half of whose rest goes to the logits of a chunk; None: unknown."


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryItem:
    """One line of the table."""

    name: str
    "Name of the row."
    train_bytes: int
    "Bytes held while the policy trains."
    sample_bytes: int
    "Bytes held while completions are sampled."


def items_of(workload: Workload) -> list[MemoryItem]:
    """List everything that a GPU holds; the run needs the sum of the items.

    Raises:
        ValueError: the policy cannot be described.
    """
    model = describe(workload.policy, workload.weights_dtype, workload.lora)
    parameters = list(model.parameters())
    trained = _trained(model)
    shards = workload.num_ranks if workload.is_sharded else 1
    gradients = tensor_bytes(trained) // (1 if workload.has_whole_gradients else shards)
    states = round(state_bytes_per_element(workload.optimizer, trained[0].dtype) * _numel(trained)) // shards
    activations, recomputed = _activations(workload)
    has_second_model = workload.has_reference and workload.lora is None
    weights = tensor_bytes(parameters) // shards
    reference = weights if has_second_model else 0
    held = {  # in training, in sampling
        "weights": (weights, weights),
        "gradients": (gradients, 0),  # dropped after every step
        "optimizer states": (states, states),
        "reference policy": (reference, reference),
        "CUDA context, workspaces (assumed)": (workload.overhead_bytes, workload.overhead_bytes),
        "weights and gradients gathered": (_gathered_bytes(workload, model), 0),
        f"weights in {_dtype_name(workload.compute_dtype)}": (_cast_bytes(workload, model), 0),
        "activations": (activations, 0),
        "gradient of the head, summed": (_head_gradient_bytes(workload, model), 0),
    }
    items = [MemoryItem(name=name, train_bytes=train, sample_bytes=sample) for name, (train, sample) in held.items()]
    largest = max(parameter.numel() for parameter in parameters)
    items.append(MemoryItem(name="weight in transfer", train_bytes=0, sample_bytes=2 * 4 * largest))
    items += _engine_items(workload)
    logits = _logits_bytes(workload, model, held_bytes=sum(item.train_bytes for item in items))
    items.append(MemoryItem(name="logits of a chunk", train_bytes=logits, sample_bytes=0))
    more = max(0, recomputed - logits)  # the logits are gone by then
    items.append(MemoryItem(name="recomputed layer (above logits)", train_bytes=more, sample_bytes=0))
    return [item for item in items if item.train_bytes or item.sample_bytes]


def _engine_items(workload: Workload) -> list[MemoryItem]:
    engine = workload.engine
    if engine is None:
        return []
    weights = tensor_bytes(describe(workload.policy, engine.weights_dtype).parameters()) // engine.num_shards
    awake = 0 if engine.is_asleep_in_training else 1
    return [
        MemoryItem(name="engine's weights", train_bytes=awake * weights, sample_bytes=weights),
        MemoryItem(
            name="engine's KV cache", train_bytes=awake * engine.kv_cache_bytes, sample_bytes=engine.kv_cache_bytes
        ),
        MemoryItem(name="engine's graphs and buffers", train_bytes=engine.fixed_bytes, sample_bytes=engine.fixed_bytes),
        MemoryItem(name="engine's prefill and logits", train_bytes=0, sample_bytes=engine.prefill_bytes),
    ]


def table(items: Sequence[MemoryItem], capacity_bytes: int | None = None) -> str:
    """Format the items in GiB, their sums, and whether they fit, as lines of text."""
    lines = [f"{'GiB per rank':<36}{'training':>10}{'sampling':>10}"]
    lines += [_line(item.name, item.train_bytes, item.sample_bytes) for item in items]
    totals = sum(item.train_bytes for item in items), sum(item.sample_bytes for item in items)
    lines.append(_line("total", *totals))
    if capacity_bytes is not None:
        verdict = "fits into" if max(totals) <= capacity_bytes else "DOES NOT FIT into"
        lines.append(f"{verdict} the GPU's {capacity_bytes / GIB:.2f} GiB")
    return "\n".join(lines)


def _line(name: str, *sizes: int) -> str:
    return f"{name:<36}" + "".join(f"{size / GIB:>10.2f}" for size in sizes)


def describe(
    policy: str, dtype: torch.dtype, lora: LoRA | None = None, num_layers: int | None = None
) -> "PreTrainedModel":
    """Make the policy's model on the meta device; with `num_layers` only that many decoder layers of it.

    Raises:
        ValueError: the directory cannot be read, the hub cannot be reached, or the architecture is not supported.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(find_policy(policy))
    except OSError as error:
        raise ValueError(f"model.policy: cannot load {policy}: {error}") from error
    if num_layers is not None:
        config.num_hidden_layers = num_layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:num_layers]
    with torch.device("meta"):
        attention = attention_implementation(config)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)  # type: ignore[no-untyped-call]
        check_architecture(model, policy)
        if lora is not None:
            add_adapters(model, lora)
    return model


def kv_bytes_per_token(policy: str, dtype: torch.dtype) -> int:
    """Count the bytes of the keys and values of one token in all layers."""
    config = describe(policy, dtype).config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * int(config.num_hidden_layers * config.num_key_value_heads * head_dim) * dtype.itemsize


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Count the bytes of tensors; a tensor made of tensors counts as its parts."""
    return sum(
        tensor.numel() * tensor.element_size() if type(tensor) in (Tensor, nn.Parameter) else _parts_bytes(tensor)
        for tensor in tensors
    )


def _parts_bytes(tensor: Any) -> int:
    names, _ = tensor.__tensor_flatten__()
    return tensor_bytes(getattr(tensor, name) for name in names)


def state_bytes_per_element(optimizer: Callable[[Any], torch.optim.Optimizer], dtype: torch.dtype) -> float:
    """Measure the bytes that an optimizer keeps per trained number, by one step on a parameter of that type."""
    parameter = nn.Parameter(torch.zeros(1024, PROBE_ELEMENTS // 1024, dtype=dtype))
    parameter.grad = torch.zeros_like(parameter)
    made = optimizer([parameter])
    with torch.compiler.set_stance("force_eager"):  # torchao would compile this single step for a minute
        made.step()
    states = [value for value in made.state[parameter].values() if isinstance(value, Tensor) and value.dim() > 0]
    return tensor_bytes(states) / PROBE_ELEMENTS


def saved_bytes(workload: Workload, num_layers: int, num_rows: int) -> int:
    """Count the bytes that autograd saves in a pass of `num_layers` decoder layers over full rows, weights included."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    dtype = workload.compute_dtype if workload.is_sharded else workload.weights_dtype
    backbone = describe(workload.policy, dtype, workload.lora, num_layers).train().base_model
    named = dict(backbone.named_parameters()) | dict(backbone.named_buffers())
    _, width = _rows_and_width(workload)
    storages: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with (
        FakeTensorMode(),
        _GroupedProducts(),  # type: ignore[no-untyped-call]
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", workload.compute_dtype, enabled=dtype != workload.compute_dtype),
    ):
        weights = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
            for name, tensor in named.items()
        }
        ids_RL = torch.zeros(num_rows, width, dtype=torch.long)
        mask_R1LL = torch.ones(num_rows, 1, width, width, dtype=torch.bool)
        inputs = {"input_ids": ids_RL, "position_ids": ids_RL, "attention_mask": mask_R1LL, "use_cache": False}
        outputs = torch.func.functional_call(backbone, weights, kwargs=inputs)
    assert outputs is not None  # alive until here, and with it everything that was saved
    return sum(storage.nbytes() for storage in storages.values())


class _GroupedProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets fake tensors of every type through the product of a mixture of experts, as a real device does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._grouped_mm.default:
            rows, experts = args[:2]
            return rows.new_empty(len(rows), experts.shape[-1])
        return func(*args, **(kwargs or {}))


def _activations(workload: Workload) -> tuple[int, int]:
    """Bytes of a micro-batch's activations, and of those that come and go while a layer is recomputed.

    Differences of passes over one and two layers and rows: the weights, which are saved too, drop out. Adapters that
    need not be in every layer take passes over all of them, and count as if in every layer where layers are recomputed.
    """
    num_rows, width = _rows_and_width(workload)
    config = describe(workload.policy, workload.weights_dtype).config
    lora = workload.lora
    if lora is not None and lora.target_modules != ALL_LINEAR:
        if not workload.is_checkpointing:
            every = config.num_hidden_layers
            return num_rows * (saved_bytes(workload, every, 2) - saved_bytes(workload, every, 1)), 0
        workload = replace(workload, lora=replace(lora, target_modules=ALL_LINEAR))
    one = saved_bytes(workload, 1, 2) - saved_bytes(workload, 1, 1)
    per_layer = saved_bytes(workload, 2, 2) - saved_bytes(workload, 2, 1) - one
    if not workload.is_checkpointing:
        return num_rows * (one + (config.num_hidden_layers - 1) * per_layer), 0
    dtype = workload.compute_dtype if workload.is_sharded else workload.weights_dtype
    layer_input = width * config.hidden_size * dtype.itemsize
    return num_rows * (one - per_layer + config.num_hidden_layers * layer_input), num_rows * per_layer


def _rows_and_width(workload: Workload) -> tuple[int, int]:
    """Rows of a micro-batch and tokens of a row, when everything is as long as it may be."""
    n, room = workload.num_completions, workload.max_row_tokens
    per_row = n if room is None else min(n, max(1, (room - workload.max_prompt_tokens) // workload.max_new_tokens))
    return workload.num_groups * math.ceil(n / per_row), workload.max_prompt_tokens + per_row * workload.max_new_tokens


def _logits_bytes(workload: Workload, model: "PreTrainedModel", held_bytes: int) -> int:
    """Bytes of a chunk's logits on a GPU on which everything else takes `held_bytes`."""
    all_logits = workload.num_groups * workload.num_completions * workload.max_new_tokens * _vocabulary(model)
    free_bytes = max(0, (workload.capacity_bytes or 0) - held_bytes)
    return LOGITS_COPIES * 4 * min(chunk_logits_for(free_bytes), all_logits)


def _head_gradient_bytes(workload: Workload, model: "PreTrainedModel") -> int:
    """Buffers in which `projection` sums the head's gradient in half precision: float32, and a copy."""
    weight: Tensor = model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
    if not weight.requires_grad or workload.compute_dtype == torch.float32:
        return 0
    return weight.numel() * (4 + workload.compute_dtype.itemsize)


def _gathered_bytes(workload: Workload, model: "PreTrainedModel") -> int:
    """Under FSDP2: weights of the root and two layers, and gradients of the largest of these as they are summed."""
    if not workload.is_sharded:
        return 0
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    in_layers = [_numel(layer.parameters()) for layer in layers]
    trained = [_numel(_trained(layer)) for layer in layers]
    gathered = _numel(model.parameters()) - sum(in_layers[2:])
    summed = max(_numel(_trained(model)) - sum(trained), *trained)
    return gathered * workload.compute_dtype.itemsize + summed * (workload.compute_dtype.itemsize + 4)


def _cast_bytes(workload: Workload, model: nn.Module) -> int:
    """Copies that autocast makes: kept for the step of weights that train, for the backward pass of others."""
    if workload.is_sharded or workload.compute_dtype == workload.weights_dtype:
        return 0
    linear = {p for module in model.modules() if isinstance(module, nn.Linear) for p in module.parameters()}
    kept = (weight for weight in linear if weight.requires_grad or not workload.is_checkpointing)
    return _numel(kept) * workload.compute_dtype.itemsize


def _trained(module: nn.Module) -> list[Tensor]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _numel(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _vocabulary(model: "PreTrainedModel") -> int:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return int(head.weight.shape[0])


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
