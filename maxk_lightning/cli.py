"""The command line. Imports nothing heavy itself, so that `--help` is back at once."""

import importlib
import logging
import os
import sys

OVERVIEW = """\
usage: python -m maxk_lightning COMMAND [--config X.yaml] [--key value ...]

Reinforcement learning of language models for Best-of-N: training for max@k.

training (LightningCLI; `COMMAND --help` lists every key, `--print_config` shows every value)
  fit        train a policy
  validate   max@k curve on the validation problems
  test       max@k curve on the test problems
  predict    write completions of the test problems to predictions.jsonl

plain commands over files
  score      problems and completions -> rewards and verdicts per test
  evaluate   a policy directory -> samples.jsonl, summary.json, curves.png
  best       problems -> one answer each, the best of N samples, chosen without hidden tests
  compare    several evaluate outputs -> table, paired tests, curves, report.html
  data       what a YAML's data gives: kept, left out and why; rendered prompts with tests
  export     a Lightning checkpoint -> a Hugging Face directory
  doctor     what works on this machine: isolation, engines
"""
TRAINING = ("fit", "validate", "test", "predict")
PLAIN = ("score", "evaluate", "best", "compare", "data", "export", "doctor")

REQUIRED = (
    "torch",
    "lightning",
    "torchmetrics",
    "transformers",
    "jsonargparse",
    "datasets",
    "tensorboard",
    "yaml",
    "rich",
)
"Packages without which nothing works."
ACTIVATE = "enter the environment that scripts/demo.sh made (`. .venv/bin/activate`), or `pip install -e .`"


def main() -> None:
    """Run the command named by the first argument."""
    # Threads that spin while they wait for another one take its core when anything else runs, the sandbox's workers
    # included: a rollout then takes 20 times as long. OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for noisy in ("torchao", "torch.utils._pytree"):  # torchao, where transformers finds it, misses kernels
        logging.getLogger(noisy).setLevel(logging.ERROR)
    args = sys.argv[1:]
    if not args or args[0] in ("-h", "--help"):
        print(OVERVIEW, end="")
        return
    command = args[0]
    if command not in TRAINING + PLAIN:
        sys.exit(f"maxk_lightning: error: unknown command {command!r}; one of {', '.join(TRAINING + PLAIN)}")
    if command in TRAINING and args[1:] in (["-h"], ["--help"]):
        from maxk_lightning.commands.help import stored

        if (text := stored(command)) is not None:
            print(text, end="")
            return
    try:
        from maxk_lightning.commands.arguments import call, check_config_files

        check_config_files(args)
        if command in PLAIN:
            call(getattr(importlib.import_module(f"maxk_lightning.commands.{command}"), command), args[1:])
        else:
            trainer = importlib.import_module("maxk_lightning.commands.trainer")
    except ValueError as error:
        sys.exit(f"{command}: error: {error}")
    except ModuleNotFoundError as error:
        if error.name not in REQUIRED:
            raise
        sys.exit(f"{command}: error: {sys.executable} has no package {error.name}: {ACTIVATE}")
    if command in TRAINING:
        trainer.main()
