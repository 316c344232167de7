"""The badges of README.md say what the project's own files say."""

import draw_badges

from tests.support.paths import ROOT


def test_badges_are_those_that_would_be_drawn_and_readme_shows_all() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    drawn = {f"{file}.svg": draw_badges.svg(*texts) for file, texts in draw_badges.contents().items()}
    kept = {path.name: path.read_text(encoding="utf-8") for path in draw_badges.DIRECTORY.glob("*.svg")}
    assert kept == drawn
    assert all(f"(docs/badges/{name})" in readme for name in drawn)
