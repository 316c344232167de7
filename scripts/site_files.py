"""Hooks of mkdocs: pages may link to files of the repository that are not below docs/, as on a code host.

Such a file becomes a page of the site and links lead there: Markdown as it is, notebooks as their cells, other files as
their text, and a folder as a list of its files.
"""

import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PLACES = {
    ROOT / "README.md": "index.md",
    ROOT / "CHANGELOG.md": "changelog.md",
    ROOT / "CONTRIBUTING.md": "contributing.md",
    ROOT / "maxk_lightning" / "callbacks" / "metrics.md": "reference/metrics.md",
}
"Files that have a page of their own."
LINK = re.compile(r"(?<=\]\()([^()\s#]+)(?=(?:#[^()\s]*)?\))")
FENCE = re.compile(r"^ *(```|~~~)")
HEADER = "---\nsearch:\n  exclude: true\n---\n"
MAX_CHARS = 200_000


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file and folder outside docs/ that a page links to, and for what those link to."""
    for source, place in PLACES.items():
        if source.is_file() and place != "index.md":
            files.append(File.generated(config, place, abs_src_path=str(source)))
    origins = [Path(str(file.abs_src_path)) for file in files.documentation_pages()]
    texts = [(origin, origin.read_text("utf-8")) for origin in origins]
    while texts:
        for target in _targets(*texts.pop()):
            if target.exists() and files.get_file_from_path(_place(target)) is None:
                text = _page(target)
                files.append(File.generated(config, _place(target), content=text, inclusion=InclusionLevel.NOT_IN_NAV))
                texts.append((target, text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to such files to their pages."""
    origin = _origin(page.file)
    folder = os.path.dirname(page.file.src_uri) or "."

    def moved(found: re.Match[str]) -> str:
        target = _resolve(origin, found[1])
        if target is None or (_is_document(target) and _is_document(origin)):
            return found[1]
        return Path(os.path.relpath(_place(target), folder)).as_posix()

    return "\n".join(line if is_code else LINK.sub(moved, line) for line, is_code in _lines(markdown))


def _origin(file: File) -> Path:
    """The file of the repository that a page shows."""
    if file.abs_src_path is not None:
        return Path(file.abs_src_path)
    return ROOT / file.src_uri.removeprefix("files/").removesuffix(".md")


def _targets(origin: Path, text: str) -> list[Path]:
    """Files and folders that a page links to and that mkdocs does not have as they are."""
    links = [link for line, is_code in _lines(text) if not is_code for link in LINK.findall(line)]
    found = [target for link in links if (target := _resolve(origin, link)) is not None]
    return [target for target in found if not _is_document(target)]


def _resolve(origin: Path, link: str) -> Path | None:
    """The path that a link of a page leads to; None for an address."""
    return None if ":" in link else Path(os.path.normpath(origin.parent / unquote(link)))


def _is_document(path: Path) -> bool:
    """Whether mkdocs has this file itself."""
    return path.is_relative_to(DOCS) and not path.is_dir()


def _place(path: Path) -> str:
    """Address of a file's page, from the top of docs/."""
    if path in PLACES:
        return PLACES[path]
    if _is_document(path):
        return path.relative_to(DOCS).as_posix()
    relative = path.relative_to(ROOT).as_posix()
    return f"files/{relative}/index.md" if path.is_dir() else f"files/{relative}.md"


def _page(path: Path) -> str:
    """Markdown of a file's page."""
    title = f"{HEADER}# {path.relative_to(ROOT).as_posix()}\n\n"
    if path.is_dir():
        inside = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file() and _is_shown(p))
        return title + _fenced("\n".join(inside), "text")
    if path.suffix == ".ipynb":
        return title + "\n\n".join(_cell(cell) for cell in json.loads(path.read_text("utf-8"))["cells"])
    return title + _fenced(path.read_text("utf-8")[:MAX_CHARS], path.suffix[1:] or "text")


def _is_shown(path: Path) -> bool:
    return "__pycache__" not in path.parts


def _cell(cell: dict[str, Any]) -> str:
    """Markdown of a notebook's cell: its text, or its code with what it printed."""
    source = _text(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    parts = [_fenced(source, "python")]
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "image/png" in data:
            picture = _text(data["image/png"]).replace("\n", "")
            parts.append(f'<img alt="output of the cell above" src="data:image/png;base64,{picture}">')
        elif printed := _text(output.get("text", data.get("text/plain", ""))).rstrip():
            parts.append(_fenced(printed, "text"))
    return "\n\n".join(parts)


def _text(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "".join(lines)


def _fenced(text: str, language: str) -> str:
    return f"`````{language}\n{text}\n`````\n"


def _lines(markdown: str) -> list[tuple[str, bool]]:
    """Lines, and whether each belongs to a code block."""
    found, is_code = [], False
    for line in markdown.split("\n"):
        is_fence = FENCE.match(line) is not None
        found.append((line, is_code or is_fence))
        is_code ^= is_fence
    return found
