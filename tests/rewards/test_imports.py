"""The reward must not drag torch into the processes that use it."""

import subprocess
import sys


def test_fresh_import_leaves_torch_out() -> None:
    heavy = ("torch", "numpy", "lightning")
    code = f"import sys, maxk_lightning.rewards; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
