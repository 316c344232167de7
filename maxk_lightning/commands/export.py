"""`export`: a Lightning checkpoint -> a Hugging Face directory."""

import pickle
from pathlib import Path
from typing import Any

PREFIX = "policy."


def export(ckpt: str, out: str) -> None:
    """Write the policy of a checkpoint as a Hugging Face directory that transformers and vLLM load.

    Args:
        ckpt: A `.ckpt` file written by `fit`.
        out: The directory to create.

    Raises:
        ValueError: `ckpt` is not a checkpoint of this program, or `out` exists and is not empty.
    """
    from maxk_lightning.policy import Policy, load_model, load_tokenizer  # imports torch: `--help` must not wait for it

    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"--out: {out} exists")
    checkpoint = _read(Path(ckpt))
    policy = Policy(load_model(checkpoint["policy"]))
    weights = {name.removeprefix(PREFIX): w for name, w in checkpoint["state_dict"].items() if name.startswith(PREFIX)}
    policy.load_state_dict(weights)
    policy.model.save_pretrained(target)
    load_tokenizer(checkpoint["policy"]).save_pretrained(target)
    print(f"wrote {target}")


def _read(path: Path) -> dict[str, Any]:
    import torch

    if not path.is_file():
        raise ValueError(f"--ckpt: {path} is not a file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"--ckpt: {path} is not a checkpoint ({error})") from error
    if not isinstance(checkpoint, dict) or "policy" not in checkpoint or "state_dict" not in checkpoint:
        raise ValueError(f"--ckpt: {path} was not written by `python -m maxk_lightning fit`")
    return checkpoint
