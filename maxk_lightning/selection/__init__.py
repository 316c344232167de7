"""Choose one of N candidates without the hidden tests: what turns max@k into an answer.

A `Selector` looks at the candidates of a problem and orders any part of them; `choose` takes the first. `Then` breaks
ties of one selector with the next. Ties of all of them are broken by the mean log-prob of a candidate's tokens, then by
which was sampled first.
"""

from maxk_lightning.selection.agreement import Agreement, Behaviours
from maxk_lightning.selection.dual_agreement import ConsensusSets, DualAgreement
from maxk_lightning.selection.majority import Majority
from maxk_lightning.selection.public_tests import PublicTests
from maxk_lightning.selection.realised import Realisable, realised_at_k, realised_values
from maxk_lightning.selection.scorers import Likelihood, Scorer
from maxk_lightning.selection.selector import Candidate, Choice, Observation, Selector, Then, choose, observe_all, shown
from maxk_lightning.selection.words import parse_selector, parse_selectors

__all__ = [
    "Agreement",
    "Behaviours",
    "Candidate",
    "Choice",
    "ConsensusSets",
    "DualAgreement",
    "Likelihood",
    "Majority",
    "Observation",
    "PublicTests",
    "Realisable",
    "Scorer",
    "Selector",
    "Then",
    "choose",
    "observe_all",
    "parse_selector",
    "parse_selectors",
    "realised_at_k",
    "realised_values",
    "shown",
]
