"""Objectives: from the rewards of a group to the credits that multiply grad log pi."""

from maxk_lightning.objectives.diagnostics import GroupDiagnostics, group_diagnostics
from maxk_lightning.objectives.exact import ExactMaxAtK
from maxk_lightning.objectives.first_order import OffPolicyMaxAtK
from maxk_lightning.objectives.group import LOG_RATIO_LIMIT
from maxk_lightning.objectives.group_size import check_group_size
from maxk_lightning.objectives.objective import Objective
from maxk_lightning.objectives.on_policy import MaxAtK, PassKTraining
from maxk_lightning.objectives.relative import GRPO, RLOO, RSGRPO, BonMaxMean, BonMaxSecond, DrGRPO, MaxRL
from maxk_lightning.objectives.schedule import Mixture, Staged, objective_at

__all__ = [
    "GRPO",
    "LOG_RATIO_LIMIT",
    "RLOO",
    "RSGRPO",
    "BonMaxMean",
    "BonMaxSecond",
    "DrGRPO",
    "ExactMaxAtK",
    "GroupDiagnostics",
    "MaxAtK",
    "MaxRL",
    "Mixture",
    "Objective",
    "OffPolicyMaxAtK",
    "PassKTraining",
    "Staged",
    "check_group_size",
    "group_diagnostics",
    "objective_at",
]
