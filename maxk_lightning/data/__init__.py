"""Problems and prompts."""

from maxk_lightning.data.arithmetic import Arithmetic
from maxk_lightning.data.code_contests import CodeContests
from maxk_lightning.data.codeforces import Codeforces
from maxk_lightning.data.cure import Cure
from maxk_lightning.data.curriculum import Curriculum
from maxk_lightning.data.evalplus import EvalPlus
from maxk_lightning.data.hub_dataset import HubDataset
from maxk_lightning.data.instructions import Instruction
from maxk_lightning.data.livebench import LiveBench
from maxk_lightning.data.livecodebench import LiveCodeBench
from maxk_lightning.data.math_questions import GSM8K, MATH
from maxk_lightning.data.mbpp import MBPP
from maxk_lightning.data.mixture import Mixture, SolveRate
from maxk_lightning.data.prompts import Example, PromptStream, PromptTemplate
from maxk_lightning.data.report import LoadReport
from maxk_lightning.data.selection import TestSelection
from maxk_lightning.data.sources import Builtin, JsonLines, ProblemSource

__all__ = [
    "GSM8K",
    "MATH",
    "MBPP",
    "Arithmetic",
    "Builtin",
    "CodeContests",
    "Codeforces",
    "Cure",
    "Curriculum",
    "EvalPlus",
    "Example",
    "HubDataset",
    "Instruction",
    "JsonLines",
    "LiveBench",
    "LiveCodeBench",
    "LoadReport",
    "Mixture",
    "ProblemSource",
    "PromptStream",
    "PromptTemplate",
    "SolveRate",
    "TestSelection",
]
