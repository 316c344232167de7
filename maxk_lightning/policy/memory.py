"""What a run needs on each GPU, item by item, from the description of the policy alone: no weight is read.

Parameters are counted on the meta device. Activations are those that autograd really saves, counted in a pass over
fake tensors, which have shapes and no memory. Optimizer states are those of one step on a small parameter.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from maxk_lightning.policy import find_policy
from maxk_lightning.policy.lora import LoRA, add_adapters
from maxk_lightning.policy.projection import CHUNK_LOGITS_GPU

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GIB = 2**30
LOGITS_COPIES = 4
"float32 tensors of a chunk's logits that live at once: logits, log-probs, and the gradients of both."
PROBE_ELEMENTS = 2**20
"Size of the parameter on which an optimizer's states are counted; torchao leaves small ones in full precision."


@dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """What the rollout engine holds on the same GPU."""

    weights_dtype: torch.dtype
    "Of its copy of the weights."
    kv_cache_bytes: int
    "Of its KV cache."
    is_asleep_in_training: bool = False
    "Whether it frees both while the policy trains."


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The facts of a run that decide what it needs."""

    policy: str
    "Directory, hub name or `builtin`."
    lora: LoRA | None = None
    "Adapters; None: every weight trains."
    weights_dtype: torch.dtype = torch.float32
    "Of weights and gradients."
    compute_dtype: torch.dtype = torch.float32
    "Of matrix products."
    optimizer: Callable[[Any], torch.optim.Optimizer]
    "Makes the optimizer."
    has_reference: bool = False
    "Whether a second model stays for the KL penalty."
    is_checkpointing: bool = False
    "Whether decoder layers are recomputed in the backward pass."
    num_groups: int
    "Prompts of a micro-batch."
    num_completions: int
    "n."
    max_prompt_tokens: int
    "Longest prompt."
    max_new_tokens: int
    "Longest completion."
    max_row_tokens: int | None = None
    "See `packing.pack`."
    num_ranks: int = 1
    "GPUs."
    is_sharded: bool = False
    "FSDP2: weights, gradients and optimizer states are split over the ranks."
    has_whole_gradients: bool = False
    "FSDP2 that sums gradients over ranks once per step, not after each micro-batch."
    engine: EngineMemory | None = None
    "None: it runs elsewhere."
    overhead_bytes: int = 0
    "Assumed for the CUDA context, library workspaces and fragmentation."


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One line of the table."""

    name: str
    "What it is."
    train_bytes: int
    "While the policy trains."
    sample_bytes: int
    "While completions are sampled."


def items_of(plan: Plan) -> list[Item]:
    """Everything that a GPU holds; the run needs the sum of the items.

    Raises:
        ValueError: the policy cannot be described.
    """
    model = describe(plan.policy, plan.weights_dtype, plan.lora)
    parameters = list(model.parameters())
    trained = _trained(model)
    shards = plan.num_ranks if plan.is_sharded else 1
    gradients = tensor_bytes(trained) // (1 if plan.has_whole_gradients else shards)
    states = round(state_bytes_per_element(plan.optimizer, trained[0].dtype) * _numel(trained)) // shards
    activations, recomputed = _activations(plan)
    logits = LOGITS_COPIES * _chunk_logits(plan, model) * 4
    both = [
        ("weights", tensor_bytes(parameters) // shards),
        ("gradients", gradients),
        ("optimizer states", states),
        ("reference policy", tensor_bytes(parameters) // shards if plan.has_reference and plan.lora is None else 0),
        ("CUDA context, workspaces (assumed)", plan.overhead_bytes),
    ]
    training = [
        ("weights and gradients gathered", _gathered_bytes(plan, model) if plan.is_sharded else 0),
        (f"weights in {_name(plan.compute_dtype)}", 0 if plan.is_sharded else _cast_bytes(plan, model)),
        ("activations", activations),
        ("logits of a chunk", logits),
        ("gradient of the head, summed", _head_gradient_bytes(plan, model)),
        ("a layer recomputed, beyond that", max(0, recomputed - logits)),  # the logits are gone by then
    ]
    items = [Item(name=name, train_bytes=size, sample_bytes=size) for name, size in both]
    items += [Item(name=name, train_bytes=size, sample_bytes=0) for name, size in training]
    largest = max(parameter.numel() for parameter in parameters)
    items.append(Item(name="weight on its way to the engine", train_bytes=0, sample_bytes=2 * 4 * largest))
    if plan.engine is not None:
        plain = describe(plan.policy, plan.engine.weights_dtype)
        for name, size in (
            ("engine's weights", tensor_bytes(plain.parameters())),
            ("engine's KV cache", plan.engine.kv_cache_bytes),
        ):
            train_bytes = 0 if plan.engine.is_asleep_in_training else size
            items.append(Item(name=name, train_bytes=train_bytes, sample_bytes=size))
    return [item for item in items if item.train_bytes or item.sample_bytes]


def table(items: Sequence[Item], capacity_bytes: int | None = None) -> str:
    """The items in GiB, their sums, and whether they fit."""
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
    """The policy's model on the meta device; with `num_layers` only so many decoder layers of it.

    Raises:
        ValueError: the directory cannot be read or the hub cannot be reached.
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
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
        if lora is not None:
            add_adapters(model, lora)
    return model


def kv_bytes_per_token(policy: str, dtype: torch.dtype) -> int:
    """Keys and values of one token in all layers."""
    config = describe(policy, dtype).config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * int(config.num_hidden_layers * config.num_key_value_heads * head_dim) * dtype.itemsize


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, of the parts of those that are made of parts."""
    return sum(
        tensor.numel() * tensor.element_size() if type(tensor) in (Tensor, nn.Parameter) else _parts_bytes(tensor)
        for tensor in tensors
    )


def _parts_bytes(tensor: Any) -> int:
    names, _ = tensor.__tensor_flatten__()
    return tensor_bytes(getattr(tensor, name) for name in names)


def state_bytes_per_element(optimizer: Callable[[Any], torch.optim.Optimizer], dtype: torch.dtype) -> float:
    """What an optimizer remembers of each number that it trains, found out by a step on a parameter of that type."""
    parameter = nn.Parameter(torch.zeros(1024, PROBE_ELEMENTS // 1024, dtype=dtype))
    parameter.grad = torch.zeros_like(parameter)
    made = optimizer([parameter])
    with torch.compiler.set_stance("force_eager"):  # torchao would compile this single step for a minute
        made.step()
    states = [value for value in made.state[parameter].values() if isinstance(value, Tensor) and value.dim() > 0]
    return tensor_bytes(states) / PROBE_ELEMENTS


def saved_bytes(plan: Plan, num_layers: int, num_rows: int) -> int:
    """What autograd saves in a pass of `num_layers` decoder layers over full rows, weights included."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    dtype = plan.compute_dtype if plan.is_sharded else plan.weights_dtype
    backbone = describe(plan.policy, dtype, plan.lora, num_layers).train().base_model
    named = dict(backbone.named_parameters()) | dict(backbone.named_buffers())
    _, width = _rows(plan)
    storages: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with (
        FakeTensorMode(),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", plan.compute_dtype, enabled=dtype != plan.compute_dtype),
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


def _activations(plan: Plan) -> tuple[int, int]:
    """Bytes of a micro-batch's activations, and of those that come and go while a layer is recomputed.

    Differences of passes over one and two layers and rows: the weights, which are saved too, drop out.
    """
    one = saved_bytes(plan, 1, 2) - saved_bytes(plan, 1, 1)
    per_layer = saved_bytes(plan, 2, 2) - saved_bytes(plan, 2, 1) - one
    num_rows, width = _rows(plan)
    config = describe(plan.policy, plan.weights_dtype).config
    if not plan.is_checkpointing:
        return num_rows * (one + (config.num_hidden_layers - 1) * per_layer), 0
    dtype = plan.compute_dtype if plan.is_sharded else plan.weights_dtype
    layer_input = width * config.hidden_size * dtype.itemsize
    return num_rows * (one - per_layer + config.num_hidden_layers * layer_input), num_rows * per_layer


def _rows(plan: Plan) -> tuple[int, int]:
    """Rows of a micro-batch and their width, when everything is as long as it may be."""
    n, room = plan.num_completions, plan.max_row_tokens
    per_row = n if room is None else min(n, max(1, (room - plan.max_prompt_tokens) // plan.max_new_tokens))
    return plan.num_groups * math.ceil(n / per_row), plan.max_prompt_tokens + per_row * plan.max_new_tokens


def _chunk_logits(plan: Plan, model: "PreTrainedModel") -> int:
    all_logits = plan.num_groups * plan.num_completions * plan.max_new_tokens * _vocabulary(model)
    return min(CHUNK_LOGITS_GPU, all_logits)


def _head_gradient_bytes(plan: Plan, model: "PreTrainedModel") -> int:
    """What `projection` adds the head's gradient up in when it computes in half precision: float32, and a copy."""
    weight: Tensor = model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
    if not weight.requires_grad or plan.compute_dtype == torch.float32:
        return 0
    return weight.numel() * (4 + plan.compute_dtype.itemsize)


def _gathered_bytes(plan: Plan, model: "PreTrainedModel") -> int:
    """FSDP2: weights of the root and of two layers, and the gradients of the largest of these as they are summed."""
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    in_layers = [_numel(layer.parameters()) for layer in layers]
    trained = [_numel(_trained(layer)) for layer in layers]
    gathered = _numel(model.parameters()) - sum(in_layers[2:])
    summed = max(_numel(_trained(model)) - sum(trained), *trained)
    return gathered * plan.compute_dtype.itemsize + summed * (plan.compute_dtype.itemsize + 4)


def _cast_bytes(plan: Plan, model: nn.Module) -> int:
    """What autocast makes of weights: kept for the step where they train, for the backward pass where they do not."""
    if plan.compute_dtype == plan.weights_dtype:
        return 0
    linear = {p for module in model.modules() if isinstance(module, nn.Linear) for p in module.parameters()}
    return _numel(p for p in linear if p.requires_grad or not plan.is_checkpointing) * plan.compute_dtype.itemsize


def _trained(module: nn.Module) -> list[Tensor]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _numel(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _vocabulary(model: "PreTrainedModel") -> int:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return int(head.weight.shape[0])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
