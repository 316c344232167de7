#!/usr/bin/env bash
# On a machine with a GPU: the gpu tests and the benches with bfloat16, CUDA graphs and sleep mode; JSON goes to OUT.
#   scripts/gpu_check.sh [OUT=runs/gpu_check] [POLICY: a directory, a hub name, or a size of random_policy.py; 0.5B]
# Needs an environment with torch for CUDA and vllm (pip install -e ".[vllm,dev]"); takes some minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/gpu_check}
policy=${2:-0.5B}
mkdir -p "$out"
python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "gpu_check: torch sees no GPU")'
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
case $policy in
  0.5B | 1.5B | 3B | 7B)
    [ -e "$out/policy-$policy/config.json" ] || python scripts/random_policy.py "$policy" "$out/policy-$policy"
    policy=$out/policy-$policy
    ;;
esac
pytest -m gpu -q --junit-xml "$out/tests.xml" tests
for graphs in "" --cuda_graphs; do
  for sleep in "" --sleep; do
    name=rollouts${graphs:+_graphs}${sleep:+_sleep}
    # shellcheck disable=SC2086
    python scripts/bench_rollouts.py --policy "$policy" --dtype bfloat16 --kv_cache_gib 8 --max_model_len 2048 \
      --prompts 64 --max_new_tokens 256 --without_transformers $graphs $sleep --json "$out/$name.json"
  done
done
for bench in step memory; do
  [ ! -e "scripts/bench_$bench.py" ] || python "scripts/bench_$bench.py" --json "$out/$bench.json"
done
python - "$out" <<'PY'
import json, pathlib, sys

out = pathlib.Path(sys.argv[1])
parts = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json")) if path.stem != "summary"}
summary = {name: part["ratios"] for name, part in parts.items()}
(out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
print(json.dumps(summary, indent=1))
PY
