"""`--select`: the words for selectors."""

from maxk_lightning.rewards import MathReward, Reward, UnitTestReward
from maxk_lightning.selection import Agreement, DualAgreement, Likelihood, Majority, PublicTests, Selector, Then

WORDS = ("public", "agreement", "codet", "majority", "likelihood")


def parse_selectors(text: str, reward: Reward) -> list[Then]:
    """Make selectors of words; `+` breaks ties of one with the next.

    Args:
        text: Such as `public,agreement,public+agreement`.
        reward: Runs programs for `public`, `agreement` and `codet`, reads answers for `majority`.

    Raises:
        ValueError: an unknown word, the same twice, or a reward that runs no programs.
    """
    names = [name.strip() for name in text.split(",")]
    if len(set(names)) < len(names):
        raise ValueError(f"--select is {text!r}, in which one stands twice")
    return [Then([_selector(word.strip(), text, reward) for word in name.split("+")]) for name in names]


def _selector(word: str, text: str, reward: Reward) -> Selector:
    if word not in WORDS:
        raise ValueError(f"--select is {text!r}: {word!r} must be one of {', '.join(WORDS)}, joined by , or +")
    if word == "likelihood":
        return Likelihood()
    if word == "majority":
        if not isinstance(reward, MathReward):
            raise ValueError(f"--select majority needs rollout.reward: MathReward, not {type(reward).__name__}")
        return Majority(reward)
    if not isinstance(reward, UnitTestReward):
        raise ValueError(f"--select {word} needs rollout.reward: UnitTestReward, not {type(reward).__name__}")
    if word == "codet":
        return DualAgreement(reward)
    return PublicTests(reward) if word == "public" else Agreement(reward)
