"""Write the files of maxk_lightning/commands/help: what `fit --help` and its like print, from the parser itself.

python scripts/write_help.py [--out DIR]
"""

import argparse
import contextlib
import io
import os
from pathlib import Path

from maxk_lightning.cli import TRAINING
from maxk_lightning.commands.help import FOLDER, OPTIONS, releases

WIDTH = "80"
"Columns of the text, which any terminal has."


def parser_help(command: str, width: str = WIDTH) -> str:
    """What the parser prints."""
    from maxk_lightning.commands.trainer import MaxKCLI
    from maxk_lightning.strategy import register

    os.environ["COLUMNS"] = width
    register()
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        MaxKCLI([command, "--help"])
    return printed.getvalue()


def main() -> None:
    """Write what the commands share once, and what each of them adds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    out: Path = parser.parse_args().out
    shared = set()
    for command in TRAINING:
        text = parser_help(command)
        start, end = text.index("options:\n"), text.rindex("\n\n") + 1
        shared.add(text[start:end])
        (out / f"{command}.txt").write_text(text[:start] + OPTIONS + text[end:], encoding="utf-8")
    (options,) = shared
    (out / "options.txt").write_text(f"{releases()}\n{options}", encoding="utf-8")


if __name__ == "__main__":
    main()
