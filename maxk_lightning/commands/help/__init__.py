"""The help of the training commands as files, for a parser needs seconds to import torch and Lightning.

`options.txt` is what all of them share, behind a first line with the releases it was written with;
scripts/write_help.py writes the files, and a test holds them against the parser.
"""

import importlib.metadata
from pathlib import Path

RELEASES = ("lightning", "torch", "jsonargparse")
"Packages whose classes and words the text holds."
OPTIONS = "{options}\n"
"Where the shared part belongs in that of a command."
FOLDER = Path(__file__).parent


def stored(command: str) -> str | None:
    """What `COMMAND --help` prints; None where other releases are installed than the text was written with."""
    written, _, options = (FOLDER / "options.txt").read_text("utf-8").partition("\n")
    if written != releases():
        return None
    return (FOLDER / f"{command}.txt").read_text("utf-8").replace(OPTIONS, options)


def releases() -> str:
    """The installed releases that the text depends on, without the builds that torch adds to its own."""
    try:
        return " ".join(f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in RELEASES)
    except importlib.metadata.PackageNotFoundError:
        return ""
