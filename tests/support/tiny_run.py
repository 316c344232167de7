"""A real training command on a tiny policy, in this process: a second or two."""

from pathlib import Path

import yaml

from maxk_lightning.commands.trainer import MaxKCLI

SIZES = {"data.prompts_per_rollout": 2, "rollout.sampling.num_completions": 4, "rollout.sampling.max_new_tokens": 6}
EVAL_SIZES = {"rollout.eval_sampling.num_completions": 4, "rollout.eval_sampling.max_new_tokens": 6}
ROLLOUTS = 2


def run(command: str, root: Path, policy: str, **options: object) -> None:
    """A real training command in this process: two rollouts, each validated."""
    splits = {
        split: {"class_path": "maxk_lightning.data.Builtin", "init_args": {"split": name, "limit": 3}}
        for split, name in {"train": "train", "validation": "validation", "test": "test"}.items()
    }
    trainer = {"default_root_dir": str(root), "accelerator": "cpu", "max_epochs": ROLLOUTS}
    settings = {
        "trainer": trainer | {"enable_progress_bar": False, "enable_model_summary": False},
        "model": {"policy": policy, "objective": {"class_path": "MaxAtK", "init_args": {"k": 2}}},
        "data": splits,
        "rollout": {"reward": {"class_path": "tests.support.fakes.LengthReward"}},
    }
    root.mkdir(parents=True, exist_ok=True)
    path = root / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    changes = {**SIZES, **EVAL_SIZES, **options}
    MaxKCLI([command, "--config", str(path), *(f"--{key}={value}" for key, value in changes.items())])
