"""The policy behind an adapter directory that peft wrote: its base with the adapter merged in."""

import json
from pathlib import Path

CONFIG = "adapter_config.json"
"What peft calls the file that names the base."


def is_adapter_directory(policy: str) -> bool:
    """Whether a directory holds an adapter, and no policy of its own."""
    directory = Path(policy)
    return (directory / CONFIG).is_file() and not (directory / "config.json").is_file()


def write_merged(adapter: str, out: str) -> None:
    """Write the policy that a peft adapter makes of its base, as a Hugging Face directory with the base's tokenizer.

    Raises:
        ValueError: peft is missing, the adapter has no weights or cannot be read, or its base is not named or cannot
            be loaded.
    """
    from maxk_lightning.policy.loading import load_model, load_tokenizer

    try:
        from peft import PeftModel
    except ImportError as error:
        raise ValueError(f"{adapter} holds an adapter, which needs peft: pip install 'maxk-lightning[lora]'") from error
    try:
        base = json.loads((Path(adapter) / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except json.JSONDecodeError as error:
        raise ValueError(f"{adapter}/{CONFIG}: not JSON ({error})") from error
    if not any(Path(adapter).glob("adapter_model.*")):  # peft would ask the hub for them
        raise ValueError(f"{adapter} has no weights (adapter_model.safetensors)")
    if not base:
        raise ValueError(f"{adapter}/{CONFIG} names no base (base_model_name_or_path)")
    try:
        model = PeftModel.from_pretrained(load_model(base), adapter).merge_and_unload()
    except (RuntimeError, KeyError) as error:  # other shapes or names than the base has
        raise ValueError(f"{adapter} does not fit its base {base}: {str(error).strip().splitlines()[0]}") from error
    model.save_pretrained(out)
    load_tokenizer(base).save_pretrained(out)
