"""Objectives and losses as a user meets them: class paths in YAML and on the command line, schedules, refusals."""

from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor

from maxk_lightning.losses import CISPO, ClippedSurrogate, MaskedWeights, PolicyLoss
from maxk_lightning.losses import EngineCorrection as Correction
from maxk_lightning.objectives import (
    GRPO,
    NSR,
    RLOO,
    BonMaxMean,
    DistinctMaxAtK,
    Entropic,
    ExactMaxAtK,
    ExactRatios,
    MaxAtK,
    MaxRL,
    Objective,
    OffPolicyMaxAtK,
    PassKTraining,
    PlugInMaxAtK,
    SetAdvantage,
    Staged,
    TopMMean,
    UniquenessWeighted,
    WeightedObjectives,
    WReinforce,
    check_group_size,
    largest_k,
    largest_subset,
    objective_at,
)


class Trainer:
    """Stands for the LightningModule: what matters is how its signature is parsed."""

    def __init__(
        self,
        objective: Objective,
        policy_loss: PolicyLoss = ClippedSurrogate(),  # noqa: B008  a frozen instance as default is what users read
        correction: Correction | None = None,
    ) -> None:
        self.objective = objective
        self.policy_loss = policy_loss
        self.correction = correction


class BestOnly:
    """A user's own objective: no inheritance, no annotations."""

    includes_ratio = False

    def __call__(self, rewards, log_ratios):  # type: ignore[no-untyped-def]
        return (rewards == rewards.amax(-1, keepdim=True)).double() / rewards.shape[-1]


class WrongShape(BestOnly):
    def __call__(self, rewards, log_ratios):  # type: ignore[no-untyped-def]
        return rewards.double().sum(-1)


class NoRatioStatement:
    def __call__(self, rewards: Tensor, log_ratios: Tensor) -> Tensor:
        return rewards.double()


def parse(*arguments: str) -> Trainer:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Trainer, "model")
    trainer = parser.instantiate(parser.parse_args(list(arguments))).model
    assert isinstance(trainer, Trainer)
    return trainer


def test_a_short_name_and_a_key_on_the_command_line() -> None:
    trainer = parse("--model.objective", "MaxAtK", "--model.objective.k", "4")
    assert trainer.objective == MaxAtK(4)
    assert trainer.policy_loss == ClippedSurrogate()


def test_a_users_class_by_class_path_needs_no_base_class() -> None:
    trainer = parse("--model.objective", f"{__name__}.BestOnly")
    assert type(trainer.objective).__name__ == "BestOnly"
    check_group_size(trainer.objective, 4)


def test_nested_objectives_in_yaml(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("""
model:
  objective:
    class_path: maxk_lightning.objectives.Staged
    init_args:
      objectives:
        - class_path: maxk_lightning.objectives.Mixture
          init_args:
            objectives:
              - {class_path: maxk_lightning.objectives.MaxAtK, init_args: {k: 8}}
              - {class_path: MaxAtK, init_args: {k: 2, baseline: loo1}}
            weights: [0.5, 0.5]
        - {class_path: RLOO}
      starts: [0.0, 0.75]
  policy_loss: {class_path: CISPO, init_args: {ratio_high: 3.0}}
  correction: {class_path: maxk_lightning.losses.MaskedWeights, init_args: {per_sequence: true}}
""")
    trainer = parse("--config", str(config))
    mixture = WeightedObjectives([MaxAtK(8), MaxAtK(2, "loo1")], [0.5, 0.5])
    assert trainer.objective == Staged([mixture, RLOO()], [0.0, 0.75])
    assert trainer.policy_loss == CISPO(ratio_high=3.0)
    assert trainer.correction == MaskedWeights(per_sequence=True)


def test_subset_objectives_and_their_forms_for_old_samples_by_class_path() -> None:
    trainer = parse(
        "--model.objective", "DistinctMaxAtK", "--model.objective.k", "4", "--model.objective.weight", "0.3"
    )
    assert trainer.objective == DistinctMaxAtK(4, 0.3)
    trainer = parse(
        "--model.objective=ExactRatios",
        "--model.objective.objective=maxk_lightning.objectives.TopMMean",
        "--model.objective.objective.k=4",
        "--model.objective.objective.m=2",
    )
    assert trainer.objective == ExactRatios(TopMMean(4, 2))


class Counted:
    """A user's own objective that asks for behaviours."""

    includes_ratio = False
    needs_behaviours = True

    def __call__(self, rewards, log_ratios, behaviours=None):  # type: ignore[no-untyped-def]
        return rewards.double() * (behaviours == 0)


def test_a_users_class_may_ask_for_behaviours() -> None:
    trainer = parse("--model.objective", f"{__name__}.Counted")
    assert isinstance(trainer.objective, Counted)
    check_group_size(trainer.objective, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["MaxAtK", "--model.objective.k", "0"], ValueError, "`k` is 0"),
        (["MaxAtK"], ArgumentError, "required: k"),
        (["MaxAtK", "--model.objective.k", "2", "--model.objective.baseline", "mean"], ArgumentError, "baseline"),
        ([f"{__name__}.Trainer"], ArgumentError, "does not implement protocol Objective"),
    ],
)
def test_bad_choices_are_refused_at_parsing(arguments: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse("--model.objective", *arguments)


def test_a_mixture_is_the_weighted_sum_of_credits() -> None:
    rewards_PN, log_ratios_PN = torch.rand(3, 6), torch.randn(3, 6)
    parts = [ExactMaxAtK(4), OffPolicyMaxAtK(2, "loo1")]
    credits_PN = WeightedObjectives([*parts], [2.0, -1.0])(rewards_PN, log_ratios_PN)
    expected_PN = 2 * parts[0](rewards_PN, log_ratios_PN) - parts[1](rewards_PN, log_ratios_PN)
    torch.testing.assert_close(credits_PN, expected_PN)
    assert credits_PN.dtype == torch.float64
    assert WeightedObjectives([*parts], [1.0, 1.0]).includes_ratio


@pytest.mark.parametrize(
    ("words", "objective"),
    [
        (["NSR"], NSR()),
        (["WReinforce", "--model.objective.positive_weight", ".2"], WReinforce(0.2)),
        (["Entropic", "--model.objective.kl", "1"], Entropic(1.0)),
        (["UniquenessWeighted", "--model.objective.alpha", ".5"], UniquenessWeighted(0.5)),
        (["PlugInMaxAtK", "--model.objective.k", "128"], PlugInMaxAtK(128)),
        (["PlugInMaxAtK", "--model.objective.k", "9.5", "--model.objective.draws", "urn"], PlugInMaxAtK(9.5, "urn")),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_rivals_are_named_without_their_module(words: list[str], objective: Objective) -> None:
    assert parse("--model.objective", *words).objective == objective


def test_a_plug_in_needs_no_group_of_k_samples() -> None:
    mixed = WeightedObjectives([PlugInMaxAtK(128), MaxAtK(4)], [1.0, 1.0])
    assert [largest_k(each) for each in (mixed, PlugInMaxAtK(128), RLOO())] == [128, 128, 1]
    assert [largest_subset(each) for each in (mixed, PlugInMaxAtK(128), MaxAtK(4), RLOO())] == [4, 1, 4, 1]


@pytest.mark.parametrize(("progress", "k"), [(0.0, 8), (0.3, 8), (0.5, 4), (0.79, 4), (0.8, 1), (1.0, 1)])
def test_stages_take_over_at_their_starts(progress: float, k: int) -> None:
    staged = Staged([MaxAtK(8), MaxAtK(4), MaxAtK(1)], [0.0, 0.5, 0.8])
    assert objective_at(staged, progress) == MaxAtK(k)
    assert not staged.includes_ratio


def test_an_objective_without_stages_is_in_force_throughout() -> None:
    assert objective_at(GRPO(), 0.7) == GRPO()


def test_a_staged_objective_has_no_credits_of_its_own() -> None:
    with pytest.raises(TypeError, match="objective_at"):
        Staged([GRPO()], [0.0])(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"progress is 1\.5"):
        Staged([GRPO()], [0.0]).at(1.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightedObjectives([], []), "`objectives` is empty"),
        (lambda: WeightedObjectives([GRPO()], [1.0, 2.0]), "`weights` has 2 numbers for 1 `objectives`"),
        (lambda: WeightedObjectives([GRPO()], [float("inf")]), "`weights` is .* must be finite"),
        (lambda: WeightedObjectives([MaxAtK(2), ExactMaxAtK(2)], [1, 1]), r"MaxAtK \(without\), ExactMaxAtK \(with\)"),
        (lambda: WeightedObjectives([Staged([GRPO()], [0.0])], [1.0]), "must not be Staged"),
        (lambda: Staged([], []), "`objectives` is empty"),
        (lambda: Staged([GRPO()], [0.0, 0.5]), "`starts` has 2 numbers"),
        (lambda: Staged([GRPO(), RLOO()], [0.1, 0.5]), "`starts` is .* begin with 0"),
        (lambda: Staged([GRPO(), RLOO()], [0.0, 0.0]), "increase"),
        (lambda: Staged([GRPO(), RLOO()], [0.0, 1.0]), "below 1"),
        (lambda: Staged([GRPO(), OffPolicyMaxAtK(2)], [0.0, 0.5]), "with the ratio inside"),
        (lambda: Staged([Staged([GRPO()], [0.0])], [0.0]), "must not be Staged"),
    ],
)
def test_bad_combinations_are_refused_at_construction(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("objective", "num_completions", "message"),
    [
        (MaxAtK(9), 8, "`objective.k` is 9, but `num_completions` is 8"),
        (MaxAtK(8), 8, "are both 8"),
        (PassKTraining(8), 8, "are both 8"),
        (SetAdvantage(8), 8, "are both 8: SetAdvantage needs k < n"),
        (Entropic(), 2, "`objective.kl` 0.693147 needs `num_completions` of at least 3, not 2"),
        (PlugInMaxAtK(1000), 8, "`objective.k` is 1000 and `num_completions` 8"),
        (BonMaxMean(), 1, "BonMaxMean needs `num_completions` of at least 2"),
        (WeightedObjectives([MaxAtK(2), MaxAtK(9)], [1.0, 1.0]), 8, "`objective.k` is 9"),
        (Staged([MaxAtK(2), MaxAtK(9)], [0.0, 0.9]), 8, "`objective.k` is 9"),
        (WrongShape(), 8, "WrongShape must return one credit per sample"),
        (NoRatioStatement(), 8, "NoRatioStatement must say with `includes_ratio: bool`"),
    ],
)
def test_group_sizes_are_refused_before_anything_expensive(
    objective: Objective, num_completions: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_group_size(objective, num_completions)


@pytest.mark.parametrize(
    "objective",
    [
        MaxAtK(8, "none"),
        MaxAtK(7),
        ExactMaxAtK(8, "loo1"),
        SetAdvantage(7),
        MaxRL(),
        NSR(),
        WReinforce(),
        Entropic(),
        UniquenessWeighted(),
        PlugInMaxAtK(128),
        PlugInMaxAtK(10_000, "urn"),
        Staged([MaxAtK(1)], [0.0]),
    ],
    ids=repr,
)
def test_sizes_that_work_are_accepted(objective: Objective) -> None:
    check_group_size(objective, 8)
