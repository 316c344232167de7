"""`export`: a Lightning checkpoint -> a Hugging Face directory."""

import pickle
from pathlib import Path
from typing import Any

PREFIX = "policy."
"Of the policy's weights in a checkpoint's state_dict."


def export(ckpt: str, out: str, results: str | None = None) -> None:
    """Write the policy of a checkpoint as a Hugging Face directory that transformers and vLLM load.

    Weights, tokenizer with chat template, generation config, and a README.md with the run's settings and results.

    Args:
        ckpt: A `.ckpt` written by `fit`: a file, or the directory of a sharded run.
        out: The directory to create.
        results: Output of `evaluate`, or a directory that holds several: their tables go into README.md.

    Raises:
        ValueError: `ckpt` is not a checkpoint of this program, `out` exists and is not empty, or `results` holds no
            finished evaluation.
    """
    from maxk_lightning.commands.model_card import generation_defaults, model_card, read_run_config
    from maxk_lightning.evaluation import load
    from maxk_lightning.policy import Policy, load_model, load_tokenizer  # imports torch: `--help` must not wait for it

    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"--out: {out} exists")
    checkpoint = _read(Path(ckpt))
    runs = [] if results is None else load(results)
    config = read_run_config(Path(ckpt))
    policy = Policy(load_model(checkpoint["policy"]))
    weights = {name.removeprefix(PREFIX): w for name, w in checkpoint["state_dict"].items() if name.startswith(PREFIX)}
    policy.load_state_dict(weights)
    if config is not None:
        policy.model.generation_config.update(**generation_defaults(config))  # type: ignore[no-untyped-call]
    policy.model.save_pretrained(target)
    load_tokenizer(checkpoint["policy"]).save_pretrained(target)
    card = model_card(
        name=target.resolve().name,
        base=checkpoint["policy"],
        steps=checkpoint.get("global_step", 0),
        config=config,
        validation=_validation_curves(checkpoint),
        runs=runs,
    )
    (target / "README.md").write_text(card, encoding="utf-8")
    print(f"wrote {target}")


def _validation_curves(checkpoint: dict[str, Any]) -> dict[str, dict[int, float]]:
    """First and last validation of the run, as `CurveWriter` keeps them."""
    curves = checkpoint.get("callbacks", {}).get("CurveWriter", {})
    return {**curves.get("first", {}), **curves.get("latest", {})}


def _read(path: Path) -> dict[str, Any]:
    import torch

    from maxk_lightning.checkpoints import is_sharded, read_sharded

    if is_sharded(path):
        return read_sharded(path, f"state_dict.{PREFIX}")
    if not path.is_file():
        raise ValueError(f"--ckpt: {path} is not a checkpoint file or directory")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"--ckpt: {path} is not a checkpoint ({error})") from error
    if not isinstance(checkpoint, dict) or "policy" not in checkpoint or "state_dict" not in checkpoint:
        raise ValueError(f"--ckpt: {path} was not written by `python -m maxk_lightning fit`")
    return checkpoint
