"""Problems and prompts."""

from maxk_lightning.data.prompts import PromptStream, PromptTemplate
from maxk_lightning.data.sources import Builtin, JsonLines, ProblemSource

__all__ = ["Builtin", "JsonLines", "ProblemSource", "PromptStream", "PromptTemplate"]
