"""The words for selectors in the options of commands and of a run."""

from maxk_lightning.rewards import MathReward, Reward, UnitTestReward
from maxk_lightning.selection.agreement import Agreement
from maxk_lightning.selection.dual_agreement import DualAgreement
from maxk_lightning.selection.majority import Majority
from maxk_lightning.selection.public_tests import PublicTests
from maxk_lightning.selection.scorers import Likelihood
from maxk_lightning.selection.selector import Selector, Then

WORDS = ("public", "agreement", "codet", "majority", "likelihood")


def parse_selectors(text: str, reward: Reward, key: str = "--select") -> list[Then]:
    """Make selectors of words; `+` breaks ties of one with the next.

    Args:
        text: Such as `public,agreement,public+agreement`.
        reward: Runs programs for `public`, `agreement` and `codet`, reads answers for `majority`.
        key: Option that errors name.

    Raises:
        ValueError: an unknown word, the same twice, or a reward that runs no programs.
    """
    names = [name.strip() for name in text.split(",")]
    if len(set(names)) < len(names):
        raise ValueError(f"{key} is {text!r}, in which one appears twice")
    return [Then([_selector(word.strip(), text, reward, key) for word in name.split("+")]) for name in names]


def parse_selector(text: str, reward: Reward, key: str) -> Then:
    """Make the selector that words name.

    Raises:
        ValueError: as `parse_selectors`, or the words name several.
    """
    selectors = parse_selectors(text, reward, key)
    if len(selectors) > 1:
        raise ValueError(f"{key} is {text!r}, must be one selector; + joins several")
    return selectors[0]


def _selector(word: str, text: str, reward: Reward, key: str) -> Selector:
    if word not in WORDS:
        raise ValueError(f"{key} is {text!r}: {word!r} must be one of {', '.join(WORDS)}, joined by , or +")
    if word == "likelihood":
        return Likelihood()
    if word == "majority":
        if not isinstance(reward, MathReward):
            raise ValueError(f"{key} majority needs rollout.reward: MathReward, not {type(reward).__name__}")
        return Majority(reward)
    if not isinstance(reward, UnitTestReward):
        raise ValueError(f"{key} {word} needs rollout.reward: UnitTestReward, not {type(reward).__name__}")
    if word == "codet":
        return DualAgreement(reward)
    return PublicTests(reward) if word == "public" else Agreement(reward)
