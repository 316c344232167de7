"""Pieces of HTML. Everything that comes from outside goes through `escape`: completions are written by a policy."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell of a sortable table."""

    text: str
    "Text as shown."
    value: float | str | None = None
    "Key for sorting; None: an empty cell, which sorts last."
    css: str = ""
    "CSS class."


def page(title: str, body: Sequence[str]) -> str:
    """Write a whole page that needs nothing but itself."""
    style, script = (HERE / "report.css").read_text("utf-8"), (HERE / "report.js").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Whatever a completion smuggles in could not load or send anything.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + f"\n</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def sortable(headings: Sequence[str], rows: Sequence[Sequence[Cell]], css: str = "scroll") -> str:
    """Write a table whose headings sort it; it scrolls inside its own box where the screen is too narrow."""
    head = "".join(f'<th scope="col"><button type="button">{escape(heading)}</button></th>' for heading in headings)
    body = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return (
        f'<div class="{css}"><table class="sortable"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def number(value: float | None, form: str = ".3f", css: str = "") -> Cell:
    """Write a number; None as a hyphen."""
    return Cell(text="-" if value is None else format(value, form), value=value, css=css)


def figure(svg: str, caption: str) -> str:
    """Write an inline drawing, with its caption as the text for those who cannot see it."""
    image = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(caption)}" ', 1)
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _cell(cell: Cell) -> str:
    css = f' class="{cell.css}"' if cell.css else ""
    value = "" if cell.value is None else escape(str(cell.value))
    return f'<td{css} data-value="{value}">{escape(cell.text)}</td>'
