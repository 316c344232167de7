"""`export`: a Lightning checkpoint -> a Hugging Face directory."""

import importlib
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX = "policy.model."
"Of the weights in a checkpoint's state_dict."


def export(
    ckpt: str,
    out: str,
    results: str | None = None,
    adapter: bool = False,
    towards: str | None = None,
    by: float | None = None,
) -> None:
    """Write the policy of a checkpoint as a Hugging Face directory that transformers and vLLM load.

    Weights, tokenizer with chat template, generation config, a README.md with the run's settings and results, and
    maxk_training.json, by which `compare` says how the policy was trained.

    Args:
        ckpt: A `.ckpt` written by `fit`: a file, or the directory of a sharded run.
        out: The directory to create.
        results: Output of `evaluate`, or a directory that holds several: their tables go into README.md.
        adapter: Of a policy trained with `model.lora` write the adapter alone, for `PeftModel.from_pretrained`;
            otherwise adapters are merged into the weights.
        towards: Another policy of the same architecture, as a rule the one that training started from: the weights
            are moved towards its weights, which gives back some of the variety that training took (WiSE-FT).
        by: How far, between 0 (not at all) and 1 (all the way).

    Raises:
        ValueError: `ckpt` is not a checkpoint of this program or has no adapter to write, `out` exists and is not
            empty, `results` holds no finished evaluation, or `towards` has other weights.
    """
    from maxk_lightning.checkpoints import Configuration
    from maxk_lightning.commands.export.interpolation import check_interpolation, interpolate
    from maxk_lightning.commands.export.model_card import generation_defaults, model_card, read_run_config, training_of
    from maxk_lightning.evaluation import load
    from maxk_lightning.evaluation.origin import write_training
    from maxk_lightning.policy import load_tokenizer  # imports torch: `--help` must not wait for it

    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"--out: {out} exists")
    check_interpolation(towards, by, adapter)
    checkpoint = _read(Path(ckpt))
    runs = [] if results is None else load(results)
    history = [Configuration(**each) for each in checkpoint.get("configurations", [])]
    config = yaml.safe_load(history[-1].text) if history else read_run_config(Path(ckpt))
    model = _trained_model(checkpoint, adapter)
    if towards is not None and by is not None:
        interpolate(model, towards, by)
    if config is not None:
        model.generation_config.update(**generation_defaults(config))  # type: ignore[no-untyped-call]
    model.save_pretrained(target)
    load_tokenizer(checkpoint["policy"]).save_pretrained(target)
    base, steps = checkpoint["policy"], checkpoint.get("global_step", 0)
    mixed_with = None if towards is None else f"{by:g} of the weights of `{towards}` mixed in"
    card = model_card(
        name=target.resolve().name,
        base=base,
        steps=steps,
        config=config,
        history=history,
        validation=_validation_curves(checkpoint),
        runs=runs,
        mixed_with=mixed_with,
    )
    write_training(training_of(base, steps, config, history, mixed_with), target)
    (target / "README.md").write_text(card, encoding="utf-8")
    print(f"wrote {target}")


def _validation_curves(checkpoint: dict[str, Any]) -> dict[str, dict[int, float]]:
    """First and last validation of the run, as `CurveWriter` keeps them."""
    curves = checkpoint.get("callbacks", {}).get("CurveWriter", {})
    return {**curves.get("first", {}), **curves.get("latest", {})}


def _trained_model(checkpoint: dict[str, Any], adapter: bool) -> "PreTrainedModel":
    """The checkpoint's policy with its adapters, or with these merged into its weights."""
    from maxk_lightning.policy import load_model
    from maxk_lightning.policy.lora import LoRA, add_adapters, merged

    trained = {name.removeprefix(PREFIX): w for name, w in checkpoint["state_dict"].items() if name.startswith(PREFIX)}
    model = load_model(checkpoint["policy"])
    if "lora" not in checkpoint:
        if adapter:
            raise ValueError("--adapter: the policy was trained without model.lora")
        model.load_state_dict(trained)
        return model
    lora = LoRA(**checkpoint["lora"])
    with_adapters = load_model(checkpoint["policy"])
    add_adapters(with_adapters, lora)
    with_adapters.load_state_dict(with_adapters.state_dict() | trained)
    if adapter:
        return with_adapters
    model.load_state_dict(dict(merged(with_adapters.state_dict().items(), lora.scaling)))
    return model


def _read(path: Path) -> dict[str, Any]:
    import torch
    from torch.serialization import get_unsafe_globals_in_checkpoint

    from maxk_lightning.checkpoints import is_sharded, read_sharded

    if is_sharded(path):
        return read_sharded(path, f"state_dict.{PREFIX}")
    if not path.is_file():
        raise ValueError(f"--ckpt: {path} is not a checkpoint file or directory")
    try:
        if any(name.startswith("torchao.") for name in get_unsafe_globals_in_checkpoint(path)):
            importlib.import_module("torchao.optim")  # declares its optimizer states safe to load
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"--ckpt: {path} is not a checkpoint ({error})") from error
    if not isinstance(checkpoint, dict) or "policy" not in checkpoint or "state_dict" not in checkpoint:
        raise ValueError(f"--ckpt: {path} was not written by `python -m maxk_lightning fit`")
    return checkpoint
