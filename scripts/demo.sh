#!/usr/bin/env bash
# Train the built-in policy with off-policy max@k on the built-in benchmark and compare it with its base at Best-of-N.
# usage: scripts/demo.sh [RUN_DIR] [SEED]      (five to six minutes of processor time after installation)
set -euo pipefail
. "$(dirname "$0")/setup.sh"
run=${1:-runs/demo}
seed=${2:-42}
if [ -e "$run" ]; then
  echo "demo: $run exists; remove it or give another directory: scripts/demo.sh runs/another" >&2
  exit 2
fi
maxk() { python -m maxk_lightning "$@"; }

echo "1/4 the base policy, sampled 128 times per held-out problem"
maxk evaluate --config configs/tiny.yaml --policy builtin --num_samples 128 --out "$run/base"
echo "2/4 training with off-policy max@k; watch it with: .venv/bin/tensorboard --logdir $run"
maxk fit --config configs/tiny.yaml --trainer.default_root_dir "$run" --seed_everything "$seed"
echo "3/4 the trained policy"
maxk export --ckpt "$run/checkpoints/last.ckpt" --out "$run/policy"
maxk evaluate --config configs/tiny.yaml --policy "$run/policy" --num_samples 128 --out "$run/trained"
echo "4/4 base against trained"
maxk compare "$run/base" "$run/trained" --out "$run/comparison"
cat <<END

curves       $run/comparison/curves.png
policy       $run/policy   (a Hugging Face directory)
next         . .venv/bin/activate   (then the commands of README.md)
TensorBoard  .venv/bin/tensorboard --logdir $run
END
