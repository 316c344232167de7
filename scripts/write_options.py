"""Write docs/reference/configuration.md: every key of a configuration, from the parser itself.

python scripts/write_options.py [--out FILE]
"""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from write_help import parser_help

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "configuration.md"
WIDTH = "100000"
"Columns of the help, so that no line of it is broken."
TITLES = {
    "Customize": "`trainer`: Lightning's Trainer",
    "Trains": "`model`: policy, objective, loss, optimizer",
    "Problems": "`data`: problems and prompts",
    "Text": "`data.template`: the text around a statement",
    "Orders": "`rollout`: engine, reward, age",
    "Of training": "`rollout.sampling`: training samples",
    "Of validation": "`rollout.eval_sampling`: samples of validation and test",
    "Saves": "`checkpoint`: what is kept",
}
"First words of a group of the help: the heading that it gets."
VALUE = r"(\{[^}]*\}|\[ITEM,\.\.\.\]|[A-Z_\d+]+)"
VALUES = re.compile(rf"(?:{VALUE}, --\S+ )?{VALUE} ?")
"What argparse writes for an option's value, once more where a list can also be added to."
REFERENCE = re.compile(r":paramref:`~?[\w.]*\.(\w+)`|:\w+:`~?([\w.]+)`")
"Sphinx's roles in the documentation of Lightning."
HEAD = """\
# Configuration

Every key of a YAML is an option of `fit`, `validate`, `test` and `predict`: `model: {kl_coef: 0.1}` in a file is
`--model.kl_coef 0.1` on the command line. Of several `--config` files and options the later one wins. A class is given
by its name or path, and its arguments follow: `--model.objective MaxAtK --model.objective.k 8`. `--print_config` prints
the whole configuration of a command, `--model.objective.help MaxAtK` the arguments of a class.

`scripts/write_options.py` writes this page from the parser.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A key with its documentation."""

    key: str
    kind: str
    default: str
    meaning: str
    classes: tuple[str, ...]
    "Classes of ours that it takes."


def options_of(text: str) -> list[Option]:
    """Options of a group of the help, without those that only print help or read a file."""
    found = []
    for entry in re.split(r"\n(?=  -)", text):
        head, _, description = re.sub(r"\s+", " ", entry.strip()).partition(" ")
        key = re.match(r"--([\w.]+)$", head)
        if key is None or head.endswith((".help", "print_config")):
            continue
        names = VALUES.match(description)
        description = description[names.end() :] if names else description
        if names and names[2] == "CONFIG" and "Path to a configuration file" in description:
            continue
        meaning, _, rest = description.rpartition("(type: ")
        kind, _, default = rest.removesuffix(")").partition(", default: ")
        default, _, classes = default.partition(", known subclasses: ")
        found.append(
            Option(
                key=key[1],
                kind=kind,
                default=default,
                meaning=REFERENCE.sub(r"`\1\2`", meaning).replace("``", "`").replace("log- probs", "log-probs").strip(),
                classes=tuple(name for name in classes.split(", ") if name.startswith("maxk_lightning.")),
            )
        )
    return found


def markdown(option: Option) -> str:
    """A section of the page."""
    facts = f"Type `{option.kind}`" + (f", default `{option.default}`." if option.default else ", no default.")
    lines = [f"### `{option.key}`", "", facts]
    if option.meaning:
        lines += ["", option.meaning]
    if option.classes:
        lines += ["", "Classes: " + ", ".join(f"`{name}`" for name in option.classes) + "."]
    return "\n".join(lines)


def page(text: str) -> str:
    """The whole page from the help of `fit`."""
    parts = [HEAD]
    for group in re.split(r"\n\n(?=\S)", text):
        title, _, body = group.partition("\n")
        heading = next((name for first, name in TITLES.items() if title.startswith(first)), None)
        if title == "options:":
            heading = "The run"
        if heading is not None and (options := options_of("\n" + body)):
            parts += [f"## {heading}", *map(markdown, options)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PAGE)
    parser.parse_args().out.write_text(page(parser_help("fit", WIDTH)), encoding="utf-8")


if __name__ == "__main__":
    main()
