"""The README.md of an exported policy: what it is, how to use it, how it was trained, what was measured."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from maxk_lightning.checkpoints import Configuration
from maxk_lightning.commands.configurations import changes
from maxk_lightning.evaluation.origin import Training
from maxk_lightning.evaluation.runs import Run
from maxk_lightning.evaluation.tables import tables

CurvesByName = Mapping[str, Mapping[int, float]]
"Name -> k -> max@k."
SETTINGS = {
    "objective": "model.objective",
    "loss": "model.policy_loss",
    "optimizer": "model.optimizer",
    "learning rate schedule": "model.lr_scheduler",
    "KL coefficient": "model.kl_coef",
    "samples per prompt (n)": "rollout.sampling.num_completions",
    "temperature": "rollout.sampling.temperature",
    "tokens per completion, at most": "rollout.sampling.max_new_tokens",
    "prompts per rollout": "data.prompts_per_rollout",
    "PPO iterations per rollout": "data.num_ppo_iterations",
    "training problems": "data.train",
    "reward": "rollout.reward",
    "seed": "seed_everything",
}
"Row of the card -> key of the run's YAML. The whole YAML follows below the table."
EXAMPLE = "Read two integers, print their sum."
NUM_ARGUMENTS = 4
"Of a class, in the table."


def read_run_config(ckpt: Path) -> dict[str, Any] | None:
    """The config.yaml that `fit` wrote for the run a checkpoint lies in; None where there is none."""
    directory = ckpt.absolute().parent
    root = directory.parent if directory.name == "checkpoints" else directory  # never the runs beside this one
    found = sorted([*root.glob("config.yaml"), *root.glob("*/config.yaml")], key=lambda path: path.stat().st_mtime)
    if not found:
        return None
    config = yaml.safe_load(found[-1].read_text("utf-8"))
    return config if isinstance(config, dict) and config.keys() >= {"model", "data", "rollout"} else None


def generation_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Generation settings under which the policy samples as it did in training: plain sampling, nothing cut off."""
    sampling = config["rollout"]["sampling"]
    plain = {"do_sample": True, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    return plain | {"temperature": sampling["temperature"], "max_new_tokens": sampling["max_new_tokens"]}


def model_card(
    name: str,
    base: str,
    steps: int,
    config: Mapping[str, Any] | None,
    history: Sequence[Configuration],
    validation: CurvesByName,
    runs: Sequence[Run],
    mixed_with: str | None = None,
) -> str:
    """Write the card.

    Args:
        name: Of the directory.
        base: Policy that training started from.
        steps: Optimizer steps of the checkpoint.
        config: The run's YAML; None: unknown.
        history: All configurations that it was trained with, `config` the last one; empty: unknown.
        validation: max@k curves of the run's validations, by name.
        runs: Evaluations of this policy, and of others to compare with.
        mixed_with: Another policy's part in the weights, in words; None: there is none.
    """
    with_other = f", with {mixed_with}" if mixed_with else ""
    parts = [
        _front_matter(base),
        f"# {name}\n",
        f"`{base}` trained for Best-of-N (max@k) with maxk-lightning, after "
        f"[arXiv:2510.23393](https://arxiv.org/abs/2510.23393): {steps} optimizer steps{with_other}. Draw several "
        "samples and keep the best by a verifier such as unit tests.\n",
        _usage(config),
        _results(runs),
        _validation(validation),
        _training(config, history),
    ]
    return "\n".join(part for part in parts if part)


def training_of(
    base: str,
    steps: int,
    config: Mapping[str, Any] | None,
    history: Sequence[Configuration],
    mixed_with: str | None,
) -> Training:
    """Say in short how a policy was trained, for reports; the arguments are those of `model_card`."""
    configs = [(each.step, yaml.safe_load(each.text)) for each in history] or ([(0, config)] if config else [])
    return Training(
        started_from=f"{base}, {mixed_with}" if mixed_with else base,
        steps=steps,
        objective=_in_turn(configs, "model.objective"),
        optimizer=_in_turn(configs, "model.optimizer", ("lr",)),
        seed=None if config is None else config.get("seed_everything"),
    )


def _in_turn(
    configs: Sequence[tuple[int, Mapping[str, Any]]], key: str, arguments: Sequence[str] | None = None
) -> str | None:
    """A setting (None: with all arguments), and what took its place when the run was resumed with another."""
    found = [(step, _value(_at(config, key), arguments).strip("`")) for step, config in configs]
    values = [after for before, after in itertools.pairwise([(0, ""), *found]) if after[1] != before[1]]
    return ", ".join(text if step == 0 else f"from step {step} {text}" for step, text in values) or None


def _front_matter(base: str) -> str:
    data: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["reinforcement-learning", "best-of-n", "max-at-k", "code"],
    }
    if base.count("/") == 1 and not Path(base).exists():
        data["base_model"] = base
    return f"---\n{yaml.safe_dump(data, sort_keys=False)}---\n"


def _usage(config: Mapping[str, Any] | None) -> str:
    template = (config or {}).get("data", {}).get("template", {"system": None, "user": "{prompt}"})
    messages = [{"role": "user", "content": template["user"].replace("{prompt}", EXAMPLE)}]
    if template["system"] is not None:
        messages.insert(0, {"role": "system", "content": template["system"]})
    sampling = (
        "`generation_config.json` samples as training did: at temperature "
        f"{config['rollout']['sampling']['temperature']}, without top-p, top-k or repetition penalty."
        if config
        else "`generation_config.json` is that of the policy that training started from."
    )
    return f"""## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

policy = "."  # this directory
tokenizer = AutoTokenizer.from_pretrained(policy)
model = AutoModelForCausalLM.from_pretrained(policy)
chat = {messages!r}
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
outputs = model.generate(**inputs, num_return_sequences=8)
samples = tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
```

{sampling}
"""


def _results(runs: Sequence[Run]) -> str:
    if not runs:
        return ""
    sizes = dict.fromkeys(
        f"{run.name} on {run.benchmark}: {run.summary.num_problems} problems x {run.summary.num_samples} samples."
        for run in runs
    )
    notes = [f"{run.name} on {run.benchmark}: {note}" for run in runs for note in run.summary.notes]
    found = tables(runs, ["max_at_k", "pass_at_k"])
    return "\n".join(["## Results\n", *map(str, found), " ".join([*sizes, *notes]), ""])


def _validation(curves: CurvesByName) -> str:
    ks = sorted({k for curve in curves.values() for k in curve})
    if not ks:
        return ""
    rows = [
        f"| {name} | " + " | ".join(f"{curve[k]:.3f}" if k in curve else "-" for k in ks) + " |"
        for name, curve in curves.items()
    ]
    head = "| max@k | " + " | ".join(f"k = {k}" for k in ks) + " |\n|---" + "|---:" * len(ks) + "|"
    return "\n".join(["## Validation during training\n", head, *rows, ""])


def _training(config: Mapping[str, Any] | None, history: Sequence[Configuration]) -> str:
    if config is None:
        return "## Training\n\nThe run's config.yaml was not found beside the checkpoint.\n"
    values = {label: _value(_at(config, key)) for label, key in SETTINGS.items()}
    several = _at(config, "rollout.rewards")
    if several:  # they stand instead of the one whose default the YAML also holds
        values["reward"] = " + ".join(map(_weighted, several))
    rows = [f"| {label} | {value.replace('|', '/')} |" for label, value in values.items() if value]
    told = [
        f"- from optimizer step {after.step} on `{each.key}` {each.after} (before: {each.before})"
        for before, after in itertools.pairwise(history)
        for each in changes(yaml.safe_load(before.text), yaml.safe_load(after.text))
    ]
    changed = ["", "The run was resumed with other settings:\n", *told] if told else []
    text = yaml.safe_dump(dict(config), sort_keys=False)
    whole = f"<details><summary>config.yaml</summary>\n\n```yaml\n{text}```\n\n</details>\n"
    return "\n".join(["## Training\n", "| setting | value |\n|---|---|", *rows, *changed, "", whole])


def _at(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _weighted(entry: Any) -> str:
    """A term of `rollout.rewards`, as `0.5 my_module.my_function`."""
    if isinstance(entry, Mapping) and "reward" in entry:
        return f"{entry.get('weight', 1.0)} {_value(entry['reward'])}"
    return _value(entry)


def _value(value: Any, names: Sequence[str] | None = None) -> str:
    """A number as it is, a class as `Name(argument=value, ...)`, of these names if given; empty for null."""
    if isinstance(value, Mapping) and "class_path" in value:
        init_args = {key: each for key, each in value.get("init_args", {}).items() if names is None or key in names}
        arguments = [f"{key}={each}" for key, each in init_args.items() if each is not None]
        more = ["..."] if len(arguments) > NUM_ARGUMENTS else []
        return f"`{value['class_path'].rpartition('.')[2]}({', '.join(arguments[:NUM_ARGUMENTS] + more)})`"
    return "" if value is None else str(value)
