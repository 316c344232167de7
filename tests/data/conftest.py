"""The `datasets` library caches what it converts; tests give it a place of their own."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where arrow files of this test run go."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets_cache")
    datasets.disable_progress_bars()
    return datasets.config.HF_DATASETS_CACHE
