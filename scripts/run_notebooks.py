"""Execute the notebooks of examples/ in empty directories, and keep their outputs in them.

    python scripts/run_notebooks.py                          # all
    python scripts/run_notebooks.py examples/1_narrowing.ipynb

The notebooks are the source: edit them, run this, commit both. tests/examples/test_notebooks.py executes them too.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TIMEOUT_S = 900
"Seconds that a cell may take."


def executed(path: Path, directory: Path) -> NotebookNode:
    """Execute a notebook in a directory; returns a copy with the new outputs.

    Raises:
        CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(directory)}}
    NotebookClient(notebook, timeout=TIMEOUT_S, resources=resources, record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = tidy(cell.outputs)
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    return notebook


def tidy(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    """Join pieces of a stream, whose cuts depend on time, and leave out what libraries log to stderr."""
    joined: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and output.name == "stderr":
            continue
        last = joined[-1] if joined else None
        if last is not None and last.output_type == output.output_type == "stream" and last.name == output.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def text_of(cell: NotebookNode) -> str:
    """What a cell printed and returned, as text."""
    shown = []
    for output in cell.outputs:
        if output.output_type == "stream":
            shown.append(output.text)
        elif "image/png" not in output.data:
            shown.append(output.data.get("text/markdown", output.data["text/plain"]))
    return "".join(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of examples/")
    for path in parser.parse_args().notebooks or sorted(EXAMPLES.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as directory:
            nbformat.write(executed(path, Path(directory)), path)
        print(path)


if __name__ == "__main__":
    main()
