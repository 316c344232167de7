"""The examples in the docstrings of the package say what the code does."""

import doctest
import importlib

import pytest

from tests.support.paths import ROOT

WITH_EXAMPLES = [path for path in sorted((ROOT / "maxk_lightning").rglob("*.py")) if ">>> " in path.read_text("utf-8")]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_of_docstrings_are_true(path, capsys):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("maxk_lightning"):
            raise
        pytest.skip(f"needs the package {error.name}")
    failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed, capsys.readouterr().out
