"""The command line must not wait for libraries that only loading needs."""

import subprocess
import sys

from maxk_lightning.records import problem_from_record, problem_to_record


def test_describing_sources_imports_neither_datasets_nor_torch() -> None:
    code = (
        "import sys, maxk_lightning.data as d; d.CodeContests(); d.LiveCodeBench(); d.MBPP()\n"
        "assert 'datasets' not in sys.modules and 'torch' not in sys.modules and 'pyarrow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_beginning_of_a_program_is_part_of_the_problem_format() -> None:
    record = {"id": "a", "prompt": "p", "tests": [{"input": "", "output": "1"}], "prefix": "x = 1"}
    assert problem_from_record(record).prefix == "x = 1"
    assert problem_to_record(problem_from_record(record)) == record
