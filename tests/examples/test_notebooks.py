"""The notebooks of examples/ run in an empty directory, and print again what they were committed with."""

import base64
import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from run_notebooks import executed, text_of

from tests.support.paths import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
VARIES = "varies"
"Tag of cells that print what depends on the machine: timings, and samples of a trained policy, by rounding."
LARGEST_PNG = 60_000
"Bytes of a figure."
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|work|tmp|usr|opt|mnt|Users|var)/")


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells that run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: NotebookNode) -> list[str]:
    """What a cell put out, in kind."""
    return [max(output.data) if "data" in output else output.name for output in cell.outputs]


def figures(notebook: NotebookNode) -> list[bytes]:
    """The figures of a notebook."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs if "data" in output]
    return [base64.b64decode(output.data["image/png"]) for output in outputs if "image/png" in output.data]


def test_there_are_four() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["1_", "2_", "3_", "4_"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_whole_and_of_no_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}  # no error
    assert not [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert figures(notebook)
    assert max(map(len, figures(notebook))) < LARGEST_PNG
    words = [cell.source for cell in notebook.cells] + [text_of(cell) for cell in cells]
    assert not [text for text in words if MACHINE_PATH.search(text)]
    assert not [text for text in words if "\x1b" in text]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    texts = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    links = re.findall(r"\]\(([^)#]+)\)", "\n".join(texts))
    assert [link for link in links if not link.startswith("http") and not (path.parent / link).exists()] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a minute or two on two idle cores
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_in_an_empty_directory_and_prints_the_same(path: Path, tmp_path: Path) -> None:
    committed, again = nbformat.read(path, as_version=4), executed(path, tmp_path)
    for before, after in zip(code_cells(committed), code_cells(again), strict=True):
        assert kinds(after) == kinds(before), before.source
        if VARIES not in before.metadata.get("tags", []):
            assert text_of(after) == text_of(before), before.source
