#!/usr/bin/env bash
# Trains AlexNet on a GPU by a recipe, within GPU_TRAIN_SECONDS (470, below eight minutes):
# train.sh DATA [RESULTS] DATA are the images, as finetune takes them. Lies in a bundle made by
# `tools/dev gpu --bundle`, or is called with GPU_BIN, the folder of the programs. Started again
# with the same RESULTS it goes on from the checkpoint there, to the same bits, until all epochs are
# trained. Writes RESULTS/model.safetensors, train.json (the curve), eval.json (test images, plain
# and with mirror images) and train.log, which has the watts. The epoch is chosen by held-out
# training images. GPU_TRAIN_EPOCHS (200) and further options of finetune, GPU_TRAIN_OPTIONS, which
# replace those below, are settled by the first start; more epochs may follow.
set -uo pipefail

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
data=${1:?usage: train.sh DATA [RESULTS]}
results=${2:-$here/trained}
if [[ -f $here/payload.tar.xz ]]; then
  echo "run.sh unpacks this bundle: call it first" >&2
  exit 1
fi
bin=${GPU_BIN:-$here/bin}
[[ -d $here/lib ]] && export LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
[[ -d $here/tools ]] && export NIBBLENET_ROOT=$here
mkdir -p "$results" && results=$(readlink -f "$results") || exit 1
epochs=${GPU_TRAIN_EPOCHS:-200}
seconds=${GPU_TRAIN_SECONDS:-470}
log=$results/train.log
model=$results/model.safetensors checkpoint=$results/model.checkpoint.safetensors

# Rate, decay, schedule and augmentation are those of docs/training.md, In float16; the average is
# of about the last 1,000 steps, three epochs.
recipe=(--init random --freeze none --precision float16 --batch 128 --lr 0.012 --schedule warmup-cosine
  --weight-decay 0.0007 --augment flip-shift-cut --label-smoothing 0.1 --ema 0.999 --seed 1 --validation)
[[ -z ${GPU_TRAIN_OPTIONS:-} ]] || read -ra recipe <<<"$GPU_TRAIN_OPTIONS"
start=("${recipe[@]}")
[[ -f $checkpoint ]] && start=(--resume "$checkpoint")

say() { printf '%s\n' "$*" | tee -a "$log"; }

say "$(date -u +%FT%TZ): ${start[*]}, $epochs epochs, $seconds s at most"
power=$results/power.csv
nvidia-smi --query-gpu=power.draw --format=csv,noheader,nounits -l 1 >>"$power" 2>/dev/null &
meter=$!
trap 'kill "$meter" 2>/dev/null' EXIT
# An interrupt makes finetune write a checkpoint and end; that may take some seconds.
timeout --signal=INT --kill-after=60 "$seconds" "$bin/finetune" --data "$data" --device cuda "${start[@]}" \
  --epochs "$epochs" --checkpoint-every 120 --out "$model" --json "$results/train.json" >>"$log" 2>&1
status=$?
kill "$meter" 2>/dev/null
wait "$meter" 2>/dev/null
say "watts, mean of the samples so far: $(awk '$1 + 0 > 0 { sum += $1; n++ } END { if (n) printf "%.0f of %d", sum / n, n; else print "not measured" }' "$power" 2>/dev/null)"
if ((status == 124)); then
  say "time is up: the same command goes on from $checkpoint"
  exit 75
fi
if ((status != 0)); then
  say "finetune ended with status $status; $log says why"
  exit 1
fi
"$bin/eval" "$model" --data "$data" --device cuda --mirror --json "$results/eval.json" >>"$log" 2>&1 || exit 1
grep -E '^(accuracy|with each image)' "$log" | tail -2
say "results: $results; next: tools/prune, tools/pack"
