"""Find a policy on disk or on the hub, and load its model, tokenizer and stop tokens."""

import ssl
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from maxk_lightning.policy.adapter import is_adapter_directory
from maxk_lightning.policy.architectures import Attention, attention_implementation, check_architecture
from maxk_lightning.policy.lora import LoRA, add_adapters
from maxk_lightning.policy.policy import Policy
from maxk_lightning.policy.self_check import checked_policy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BUILTIN = {
    path.parent.name.replace("_", "-"): str(path)
    for path in sorted((Path(__file__).parents[1] / "data").glob("builtin*/policy"))
}
"Name -> directory of the tiny policies shipped with this package, one per variant of the built-in benchmark."
HUB_TIMEOUT_S = 10.0
"Longest time that the hub may take to answer at all."


def resolve_policy(policy: str) -> str:
    """Return the directory or hub name behind the config key `model.policy`.

    `builtin` and `builtin-vague` are the tiny policies shipped with this package. A hub name has the form `owner/name`
    and is not looked up here.

    Raises:
        ValueError: it is no built-in policy, no policy directory and no hub name.
    """
    if policy in BUILTIN:
        return BUILTIN[policy]
    path = Path(policy)
    if path.is_dir():
        if is_adapter_directory(policy):
            raise ValueError(
                f"model.policy: {policy} holds an adapter, not a policy; `evaluate` and `best` take it as --policy"
            )
        if not (path / "config.json").is_file():
            raise ValueError(f"model.policy: {policy} is not a policy directory: it has no config.json")
        if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
            raise ValueError(f"model.policy: {policy} is not a policy directory: it has no weights (*.safetensors)")
        return policy
    is_hub_name = policy.count("/") == 1 and not policy.startswith((".", "/", "~")) and not path.parent.is_dir()
    if not is_hub_name:
        raise ValueError(f"model.policy: {policy} is neither a directory, a hub name (owner/name), nor `builtin`")
    return policy


def find_policy(policy: str) -> str:
    """Return the directory or hub name behind `model.policy`, for libraries that download what is not in their cache.

    Raises:
        ValueError: a hub name is not cached and the hub cannot be reached. Raised at once, where the libraries would
            first try again for a minute per file.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    source = resolve_policy(policy)
    if Path(source).is_dir() or isinstance(try_to_load_from_cache(source, "config.json"), str):
        return source
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_TIMEOUT_S)
    except urllib.error.HTTPError:
        pass  # it answers; the library reports what it says
    except OSError as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if not isinstance(reason, ssl.SSLError):  # the library reports problems with certificates
            raise ValueError(
                f"model.policy: {policy} is not in the local cache, and {constants.ENDPOINT} cannot be reached "
                f"({reason}): give a directory as model.policy, or fill the cache on a machine with network "
                f"(`hf download {policy}`), bring it here as HF_HOME and set HF_HUB_OFFLINE=1"
            ) from error
    return source


def load_model(
    policy: str, dtype: torch.dtype = torch.float32, *, has_weights: bool = True, attention: Attention | None = None
) -> "PreTrainedModel":
    """Load the causal language model of a policy directory or hub name.

    Without weights the model is only described: its parameters are made on the current default device and not read.
    Without `attention` it has that of `attention_implementation`.

    Raises:
        ValueError: the directory cannot be read, the hub cannot be reached, or the architecture or its attention is not
            supported.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    source = find_policy(policy)
    model: PreTrainedModel
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.policy: cannot load {policy}: {_first_line(error)}") from error
    settings = {"dtype": dtype, "attn_implementation": attention_implementation(config, attention)}
    try:
        if has_weights:
            model = AutoModelForCausalLM.from_pretrained(source, config=config, **settings)
        else:
            model = AutoModelForCausalLM.from_config(config, **settings)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:  # ValueError: transformers knows no causal language model of this kind
        raise ValueError(f"model.policy: cannot load {policy}: {_first_line(error)}") from error
    check_architecture(model, policy)
    return model


def build_policy(
    policy: str,
    dtype: torch.dtype = torch.float32,
    lora: LoRA | None = None,
    gradient_checkpointing: bool = False,
    has_weights: bool = True,
    attention: Attention | None = None,
) -> Policy:
    """Load a policy to train, and compare its log-probs with those of its model.

    Args:
        policy: Directory, hub name or `builtin`.
        dtype: Type of the weights.
        lora: Adapters to train instead of the weights.
        gradient_checkpointing: Recompute activations in the backward pass.
        has_weights: False: only describe it; see `load_model`.
        attention: Implementation of attention; None: what the model needs, `sdpa` as a rule.

    Raises:
        ValueError: the policy cannot be loaded, or its log-probs are not those of its model.
    """
    model = load_model(policy, dtype, has_weights=has_weights, attention=attention)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if lora is not None:
        add_adapters(model, lora)
    return Policy(model) if model.device.type == "meta" else checked_policy(model, policy)


def load_tokenizer(policy: str) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a policy; it must have a stop token.

    Raises:
        ValueError: the tokenizer cannot be read, or has no stop token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(find_policy(policy))
    except OSError as error:
        raise ValueError(f"model.policy: cannot load the tokenizer of {policy}: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"model.policy: the tokenizer of {policy} has no stop token (eos_token)")
    return tokenizer


def load_stop_tokens(policy: str, tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Collect the tokens that end a completion: the tokenizer's stop token and those of generation_config."""
    from transformers import GenerationConfig

    try:
        configured = GenerationConfig.from_pretrained(find_policy(policy)).eos_token_id
    except OSError:  # a policy needs none
        configured = None
    stop_tokens = {configured} if isinstance(configured, int) else set(configured or ())
    return stop_tokens | {tokenizer.eos_token_id}


@cache
def weight_shapes(policy: str) -> dict[str, torch.Size]:
    """List names and shapes of all weights of a policy, tied ones included, in their order; no weight is read."""
    with torch.device("meta"):
        model = load_model(policy, has_weights=False)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
