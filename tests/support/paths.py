"""Where things lie."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"The repository."
FIXTURES = ROOT / "tests" / "fixtures"
"Programs, vectors and policies that tests read."
