# Sourced by the other scripts: enter the repository, create .venv if missing, install, activate.
# CONSTRAINTS: pins to install with (default: the CPU set-up that CI runs). PYTHON: the interpreter (3.11 or newer).
cd "$(dirname "${BASH_SOURCE[0]}")/.."
CONSTRAINTS=${CONSTRAINTS:-scripts/constraints-cpu.txt}
stamp=.venv/installed
if ! cmp -s <(cat pyproject.toml "$CONSTRAINTS") "$stamp"; then
  [ -d .venv ] || "${PYTHON:-python3}" -m venv .venv
  echo "installing into .venv ..." >&2
  .venv/bin/python -m pip install --quiet --upgrade pip 2>&1 | grep -v '^WARNING: Location' >&2 || true
  PYTHONWARNINGS=ignore .venv/bin/python -m pip install --quiet --constraint "$CONSTRAINTS" --editable ".[dev]" 2>&1 |
    grep -v '^WARNING: Location' >&2 || true
  .venv/bin/python -c 'import lightning, torch, transformers, maxk_lightning' # a failed installation ends here
  cat pyproject.toml "$CONSTRAINTS" >"$stamp"
fi
# shellcheck disable=SC1091
. .venv/bin/activate
# Idle threads that spin cost more than they bring on a shared machine.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_PROGRESS_BARS=1
