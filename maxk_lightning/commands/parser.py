"""The parser of LightningCLI, with errors that end in what to do."""

import importlib
import re
import sys
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

PROGRAM = "python -m maxk_lightning"
SEAMS = {
    "Reward": "a class with score(self, problems, completions), which returns one list per problem, and in it one"
    " maxk_lightning.types.Score(reward=..., verdicts=()) per completion",
    "Objective": "a class with an attribute includes_ratio and __call__(self, rewards_PN, log_ratios_PN), which returns"
    " credits_PN",
    "PolicyLoss": "a class with an attribute accepts_ratio_credits and __call__(self, logprobs_BT,"
    " behaviour_logprobs_BT, credits_B, mask_BT), which returns maxk_lightning.losses.LossTerms",
    "RolloutEngine": "a class with generate(self, prompts, sampling) and load_weights(self, named_tensors, version)",
    "ProblemSource": "a class with load(self), which returns a list of maxk_lightning.types.Problem",
}
"Protocol -> what satisfies it."
MISSING = re.compile(r"class_path '(?:[\w.]+\.)?(\w+)':\s+(Requirement '.*)")
"What jsonargparse says, within a page, of a class of Lightning's whose package is missing."
UNION = re.compile(
    r"Does not validate against any of the Union subtypes\n.*?Errors:\n(.*?)\nGiven value type:", re.DOTALL
)
"What jsonargparse says where a key takes a class or something simple: one error for each of them."


SHORT = re.compile(r'Parser key "([\w.]+)":.*Expected a dot import path string: (\w+)$', re.DOTALL | re.MULTILINE)
"What jsonargparse says of a class without its package; it finds objectives and losses so, but no others."
PACKAGES = ("data", "rollouts", "rewards")


class Parser(LightningArgumentParser):
    """Says what was wrong, without the usage that argparse puts above it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the reason as one sentence and leave."""
        command = getattr(getattr(ex, "subcommand_parser", None) or self, "prog", PROGRAM).replace(" [options]", "")
        command = command.replace("__main__.py", PROGRAM)  # of the parsers of classes
        if "is not accepted" in message:
            message = f"{message.rstrip('.')}; there are {self._accepted()}"
        if missing := MISSING.search(message):
            message = f"{missing[1]} needs a package: {missing[2]}"
        if (short := SHORT.search(message)) and (path := _path_of(short[2])):
            message = f"{short[1]} is {short[2]}: write {path}"
        if union := UNION.search(message):
            errors = re.split(r"^  - ", union[1], flags=re.MULTILINE)[1:]
            telling = [error.strip() for error in errors if not error.startswith("Expected a <class")]
            message = "; ".join(telling) or message
        hints = [f"{name} is {what}" for name, what in SEAMS.items() if f"protocol {name}" in message]
        print(f"{command}: error: {message}", *hints, sep="\n", file=sys.stderr)
        sys.exit(2)

    def _accepted(self) -> str:
        """The options of this parser, which may be that of one class, and what it is."""
        names = [action.dest for action in self._actions if action.dest not in ("help", "config", "print_shtab")]
        title = next((group.title for group in self._action_groups[2:] if group.title), None)
        return ", ".join(names) + (f" ({title})" if title else "")


def _path_of(name: str) -> str | None:
    """The import path of a class of ours."""
    modules = (importlib.import_module(f"maxk_lightning.{package}") for package in PACKAGES)
    return next((f"{module.__name__}.{name}" for module in modules if name in module.__all__), None)
