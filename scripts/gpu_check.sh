#!/usr/bin/env bash
# On a machine with a GPU: one verdict per finding of the review of the GPU code, then the benches, in one JSON file.
#   scripts/gpu_check.sh [--out runs/gpu_check] [--policy 0.5B]     with two GPUs: also the server, NCCL and FSDP2
#   scripts/gpu_check.sh --cpu                                      rehearses the same steps on a CPU
# Needs an environment with torch for CUDA and vllm (pip install -e ".[vllm,lowbit,bench,dev]") and no network; about
# 10 minutes. A step that fails stops nothing. Attach OUT/gpu_check.json to an issue.
set -euo pipefail
cd "$(dirname "$0")/.."
exec python scripts/gpu_check.py "$@"
