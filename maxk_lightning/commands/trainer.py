"""fit, validate, test, predict: LightningCLI, with the parts of a run under keys of their own."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import set_parsing_settings
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from maxk_lightning.callbacks import (
    AtomicCheckpointIO,
    CurveWriter,
    GlossaryWriter,
    HyperparameterWriter,
    PredictionWriter,
    RolloutCallback,
    RolloutCheckpoint,
    RolloutProgressBar,
    SampleWriter,
)
from maxk_lightning.checkpoints import CheckpointMismatchError, check_checkpoint
from maxk_lightning.commands.memory_plan import gpus_wanted, machine_of, on_gpus, remark_on, workload_of
from maxk_lightning.commands.parser import PROGRAM, Parser
from maxk_lightning.commands.resume import resume
from maxk_lightning.commands.run_config import RunConfigCallback
from maxk_lightning.data import Builtin
from maxk_lightning.datamodule import PromptDataModule, stages
from maxk_lightning.module import PolicyModule
from maxk_lightning.policy.memory import items_of, table
from maxk_lightning.rewards import CheckableReward, check_problems
from maxk_lightning.strategy import register

SUBCOMMANDS = ("fit", "validate", "test", "predict")
WRITERS = (SampleWriter, CurveWriter, HyperparameterWriter, GlossaryWriter, PredictionWriter)
EVALUATIONS = {"data.validation": "validate", "data.test": "test"}
"Key -> stage of its problems."
TRAINER_DEFAULTS: dict[str, Any] = {
    "default_root_dir": "runs/default",
    "max_epochs": 100,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,  # ranks take their own share of prompts; Lightning would split it again
    "callbacks": [],
}


class MaxKCLI(LightningCLI):
    """`trainer`, `model`, `data`, `rollout` (engine, reward, sampling) and `checkpoint`, each one key of the YAML."""

    def __init__(self, args: list[str] | None = None, run: bool = True) -> None:
        """Parse `args` (None: the command line); with `run` false only build the objects."""
        parser_kwargs: dict[str, Any] = {"allow_abbrev": False, "prog": PROGRAM}
        words = sys.argv[1:] if args is None else args
        if any(word == "-h" or word.endswith("help") for word in words):  # half a second: not for every start
            set_parsing_settings(docstring_parse_attribute_docstrings=True)  # strings under the fields of data classes
        # A parser of a subcommand takes a good part of a second to make: only of the one asked for.
        self._asked_for = tuple(words[:1]) if words and words[0] in SUBCOMMANDS else SUBCOMMANDS
        if run:
            for subcommand in self._asked_for:  # without a hundred lines of keys, which the help explains below it
                usage = f"{PROGRAM} {subcommand} [--config X.yaml] [--key value ...]"
                parser_kwargs[subcommand] = {"allow_abbrev": False, "usage": usage}
        super().__init__(
            PolicyModule,
            PromptDataModule,
            args=args,
            run=run,
            trainer_defaults=TRAINER_DEFAULTS | {"callbacks": [writer() for writer in WRITERS]},
            seed_everything_default=42,
            auto_configure_optimizers=False,
            save_config_callback=RunConfigCallback,
            save_config_kwargs={"save_to_log_dir": False},
            parser_class=Parser,
            parser_kwargs=parser_kwargs,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning calls it on the object
        """The subcommand asked for; all, where the first word is none."""
        return {name: skipped for name, skipped in super().subcommands().items() if name in self._asked_for}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the parts that every run has, and say once what several of them share."""
        parser.add_argument(
            "--validate_before_fit",
            type=bool,
            default=False,
            help="Validate the initial policy, for the curve at step 0.",
        )
        parser.add_argument(
            "--dry_run", type=bool, default=False, help="Check everything, report data and memory, then stop."
        )
        parser.add_lightning_class_args(RolloutCallback, "rollout")
        parser.add_lightning_class_args(RolloutCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.save_last": True,
                "checkpoint.save_top_k": 0,
                "checkpoint.mode": "max",
                "checkpoint.every_n_epochs": 1,
                "checkpoint.save_on_train_epoch_end": True,
                "checkpoint.enable_version_counter": False,
                "rollout.engine": {"class_path": "maxk_lightning.rollouts.TransformersEngine"},
                "rollout.reward": {"class_path": "maxk_lightning.rewards.UnitTestReward"},
                **{f"data.{split}": _builtin(split) for split in ("train", "validation", "test")},
            }
        )
        parser.link_arguments("trainer.default_root_dir", "checkpoint.dirpath", compute_fn=checkpoint_dir)
        parser.link_arguments("model.policy", "data.policy")
        parser.link_arguments("model.policy", "rollout.engine.init_args.policy")
        parser.link_arguments("seed_everything", "data.seed")

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the seed: a number, because everything random is a function of it."""
        parser.add_argument("--seed_everything", type=int, default=42, help="Seed of everything random in the run.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line; a resumed run keeps its own configuration."""
        super().parse_arguments(parser, args)
        if self.config.get("subcommand") != "fit" or self.config["fit"]["ckpt_path"] is None:
            return  # written out as YAML below, which takes longer than parsing
        fit = self._subcommand_parsers["fit"]
        words = [str(word) for word in (sys.argv[1:] if args is None else args)]
        try:
            found = resume(
                words,
                yaml.safe_load(fit.dump(self.config["fit"], skip_unset=False)),
                lambda full: fit.dump(parser.parse_args(full)["fit"], skip_unset=False),
            )
        except ValueError as error:
            fit.error(str(error))
        if found is not None:
            self.config = parser.parse_args(found.args)
            for remark in found.remarks:
                rank_zero_info(remark)

    def instantiate_classes(self) -> None:
        """Build the objects; bad values end the command with one sentence."""
        try:
            super().instantiate_classes()
        except (ValueError, MisconfigurationException) as error:
            self.parser.error(str(error))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Give the run one directory for everything, so that a resumed run continues the same TensorBoard curves."""
        config = self._get(self.config_init, "trainer")
        kwargs |= self._stand_in(config)
        if config.get("logger") in (None, True):
            kwargs["logger"] = TensorBoardLogger(config["default_root_dir"], name="", version="tensorboard")
        if not config.get("plugins"):
            kwargs["plugins"] = [AtomicCheckpointIO()]
        if config.get("enable_progress_bar") is not False:
            config["callbacks"] = [RolloutProgressBar(), *(config.get("callbacks") or [])]
        try:
            return super().instantiate_trainer(**kwargs)
        except MisconfigurationException as error:  # an accelerator or strategy that this machine does not have
            self.parser.error(f"trainer: {error}")

    def _stand_in(self, config: Any) -> dict[str, Any]:
        """Arguments of the Trainer of a dry run for GPUs that this machine has not.

        Raises:
            ValueError: they are missing, and it is no dry run.
        """
        num_gpus = gpus_wanted(config)
        self._is_planned = num_gpus > torch.cuda.device_count()
        if not self._is_planned:
            return {}
        if not self._get(self.config_init, "dry_run"):
            raise ValueError(
                f"trainer.accelerator: torch sees {torch.cuda.device_count()} of the {num_gpus} GPUs that this run "
                "wants; --dry_run true checks it without them"
            )
        return {"accelerator": "cpu", "devices": num_gpus}

    def before_fit(self) -> None:
        """Refuse what cannot work, and what would overwrite an earlier run, before anything expensive starts."""
        checkpoints = Path(checkpoint_dir(self.trainer.default_root_dir))
        if any(checkpoints.glob("last*.ckpt")) and self._get(self.config_init, "ckpt_path") is None:
            self.parser.error(
                f"{self.trainer.default_root_dir} holds an earlier run: continue it with --ckpt_path last, "
                "or choose another --trainer.default_root_dir"
            )
        self._warn_of_foreign_validation()
        self._check("fit")

    def fit(self, model: PolicyModule, datamodule: PromptDataModule, **options: Any) -> None:
        """Run `Trainer.fit`, after a validation of the initial policy where that is wanted."""
        if self._get(self.config_init, "validate_before_fit") and options.get("ckpt_path") is None:
            self.trainer.validate(model, datamodule, verbose=False)
        self.trainer.fit(model, datamodule=datamodule, **options)

    def _run_subcommand(self, subcommand: str) -> None:
        """End with one sentence where the checkpoint of a run does not fit its configuration."""
        try:
            super()._run_subcommand(subcommand)
        except CheckpointMismatchError as error:
            self.parser.error(f"ckpt_path: {error}")
        except MisconfigurationException as error:
            self.parser.error(str(error))

    def before_validate(self) -> None:
        """Check before anything expensive starts."""
        self._check("validate")

    def before_test(self) -> None:
        """Check before anything expensive starts."""
        self._check("test")

    def before_predict(self) -> None:
        """Check before anything expensive starts."""
        self._check("predict")

    def _check(self, stage: str) -> None:
        try:
            if stage != "fit" and self.datamodule.sources[stage] is None:
                split = "validation" if stage == "validate" else "test"
                raise ValueError(f"data.{split} is null: there is nothing to {stage}")
            self.datamodule.setup(stage)
            rollout = self._get(self.config_init, "rollout")
            rollout.check(self.trainer, self.model, self.datamodule, stage)
            self._check_rewards(rollout, stage)
            check_checkpoint(self._get(self.config_init, "ckpt_path"))
            if self._get(self.config_init, "dry_run") and stage == "fit":
                self._print_memory()
        except ValueError as error:
            self.parser.error(str(error))
        if self._get(self.config_init, "dry_run"):
            self.parser.exit(0)

    def _check_rewards(self, rollout: RolloutCallback, stage: str) -> None:
        """Refuse rewards that cannot work here, and problems that one of them cannot score."""
        for reward in {id(each): each for each in (rollout.reward, rollout.eval_reward)}.values():
            if isinstance(reward, CheckableReward):
                reward.check()
        for name in stages(stage):
            check_problems(rollout.reward if name == "fit" else rollout.eval_reward, self.datamodule.problems[name])

    def _warn_of_foreign_validation(self) -> None:
        """Warn of a run that trains on problems of the user's and is validated on the built-in ones."""
        sources = self.datamodule.sources
        foreign = [key for key, stage in EVALUATIONS.items() if isinstance(sources[stage], Builtin)]
        if foreign and not isinstance(sources["fit"], Builtin):
            rank_zero_warn(
                f"{' and '.join(foreign)}: Builtin, while data.train is {type(sources['fit']).__name__}: curves, best "
                "checkpoint and results say nothing of your problems; set these keys too, or to null"
            )

    def _print_memory(self) -> None:
        machine, rollout = machine_of(self.trainer), self._get(self.config_init, "rollout")
        machine = on_gpus(machine) if self._is_planned else machine
        workload = workload_of(self.model, self.datamodule, rollout, machine)
        if self.trainer.is_global_zero:
            print(table(items_of(workload), machine.capacity_bytes), remark_on(rollout, workload), sep="\n")

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let hyper-parameters of the checkpoint replace what the user asked for."""


class PartsCLI(MaxKCLI):
    """Builds the parts of a run for other commands, but no Trainer."""

    def __init__(self, args: list[str]) -> None:
        """Parse the arguments of `fit`."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            super().__init__(args, run=False)

    def instantiate_classes(self) -> None:
        """Build what the YAML describes."""
        self.config_init: Any = self.parser.instantiate_classes(self.config)


def _builtin(split: str) -> dict[str, Any]:
    return {"class_path": "maxk_lightning.data.Builtin", "init_args": {"split": split}}


def checkpoint_dir(default_root_dir: str) -> str:
    """Where a run keeps its checkpoints."""
    return str(Path(default_root_dir) / "checkpoints")


def main() -> None:
    """Run the subcommand of the command line."""
    ignore_noise()
    register()
    MaxKCLI()


def ignore_noise() -> None:
    """Leave out what Lightning says and what does not matter here."""
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`")  # Lightning 2.6 on torch 2.13
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()  # an advertisement
    )
    # Checkpoints within an epoch hold the rollout and how far it was used; Lightning looks for that in the DataLoader.
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")  # after the step: right
    # vLLM starts torch.distributed in a process of one rank; across ranks, what is logged has been summed before.
    warnings.filterwarnings("ignore", message=r"It is recommended to use `self\.log\(")
    warnings.filterwarnings("ignore", message="The dirpath has changed from")  # best checkpoints of a moved run
    warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")  # predictions name their problems
