"""How many examples hypothesis tries."""

import os


def examples(number: int) -> int:
    """So many in the run of all tests, a fifth of them (at least 5) in the quick one."""
    return number if "MAXK_ALL_TESTS" in os.environ else max(5, number // 5)
