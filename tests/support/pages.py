"""The pages of the documentation and their code blocks.

How a block says what it is, readable on any code host:
- `# NAME` as the first line of a Python or YAML block, or `title="NAME"` behind the language of any block: a file;
- other Python blocks run in order in one process per page, and Bash blocks in order in one directory per page;
- other YAML blocks are parts of a configuration.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "how_to").glob("*.md"))]
"All pages with code blocks; those of docs/reference are generated, those of docs/results written by the studies."
BLOCK = re.compile(r"^```(\w+)(?: title=\"([\w.]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# (\w+\.(?:py|yaml))\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A code block of a page."""

    language: str
    file: str | None
    "Name of the file that it is; None: code to run."
    text: str


def blocks_of(page: Path) -> list[Block]:
    """All code blocks of a page, in order."""
    found = []
    for language, title, text in BLOCK.findall(page.read_text("utf-8")):
        named = FILE_NAME.match(text)
        found.append(Block(language=language, file=title or (named[1] if named else None), text=text))
    return found


def name_of(page: Path) -> str:
    """A page as tests call it, such as `docs/quickstart.md`."""
    return page.relative_to(ROOT).as_posix()


def commands_of(text: str) -> list[str]:
    """Commands of a Bash block: lines, with those that a backslash continues."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    commands = [re.sub(r"\s{2,}#.*$", "", line).strip() for line in lines]
    return [command for command in commands if command and not command.startswith("#")]
