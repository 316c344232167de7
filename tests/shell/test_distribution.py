"""What the wheel and the source distribution hold. tests/commands/test_own_questions.py runs the wheel."""

import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import maxk_lightning
from tests.support.distribution import build_sdist, build_wheel, copy_sources
from tests.support.paths import ROOT

PACKAGE = ROOT / "maxk_lightning"
DATA = (
    "py.typed",
    "callbacks/metrics.md",
    "commands/best/page.html",
    "commands/best/page.css",
    "commands/best/page.js",
    "commands/help/fit.txt",
    "commands/help/options.txt",
    "data/builtin/policy/model.safetensors",
    "data/builtin/test.jsonl",
    "data/builtin_vague/policy/tokenizer.json",
    "data/builtin_vague/train.jsonl",
    "evaluation/paper_tables.csv",
    "evaluation/report.css",
    "evaluation/report.js",
)
"Files that the package reads and that are no code."
READ_BY_PEOPLE = ("LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "pyproject.toml")
CITATION_KEYS = {
    *("cff-version", "message", "type", "title", "abstract", "version", "license", "authors", "keywords", "references"),
    *("commit", "contact", "date-released", "doi", "identifiers", "preferred-citation", "repository", "url"),
}
"Keys at the top of a file in the Citation File Format 1.2.0, as far as they are of use here."


def contents(wheel: Path) -> dict[str, bytes]:
    """Files of a wheel by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


def test_versions_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert maxk_lightning.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert (ROOT / "CHANGELOG.md").read_text().startswith(f"# Changelog\n\n## {version}")


def test_the_citation_has_what_its_format_asks_for() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys() <= CITATION_KEYS
    (paper,) = citation["references"]
    assert {"authors", "title", "type"} <= paper.keys()
    assert all(author.keys() == {"given-names", "family-names"} for author in paper["authors"])
    assert paper["url"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Paper"]


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_a_source_distribution_makes_the_same(tmp_path: Path) -> None:
    source = copy_sources(tmp_path / "source")
    unpacked = build_sdist(source, tmp_path / "sdist")
    for name in READ_BY_PEOPLE:
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes(), name
    assert len(list((unpacked / "configs").rglob("*.yaml"))) == len(list((ROOT / "configs").rglob("*.yaml")))
    assert (unpacked / "examples/loop.py").is_file()

    wheels = [build_wheel(each, each / "out") for each in (source, unpacked)]
    direct, through_sdist = map(contents, wheels)
    assert direct == through_sdist
    ours = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    ours = {name for name in ours if "__pycache__" not in name}
    assert {f"maxk_lightning/{name}" for name in DATA} <= ours
    assert {name for name in direct if not name.startswith("maxk_lightning-")} == ours
    assert any(name.endswith("licenses/LICENSE") for name in direct)
