#!/usr/bin/env bash
# The GPU checks, most important first, inside GPU_SECONDS (520, below nine minutes): run.sh
# [RESULTS]. Lies in a bundle made by `tools/dev gpu --bundle`, or is called by `tools/dev gpu` with
# GPU_BIN, GPU_DATA, GPU_GOLDEN and GPU_MODEL set. It may be cut off at any moment: each step is a
# process of its own, under a limit, and what it measured is in RESULTS at once:
#
#   gpu.json              GPU, commit, every step with its status and seconds, kernels left out
#   timings.json          passes at batch 1, 16 and 1,024, also by the GPU's clock; training
#   compare-pytorch.json  PyTorch's passes, in the form of bench --compare
#   profile.csv           counters of each kernel, where there is an ncu
#   tests.json            smoke tests, suites, accuracies
#   compare.json          bench --compare, with the baseline
#   gpu.log               what all of them printed
#
# A kernel whose smoke test fails is left out of all later steps (NIBBLENET_KERNELS). Fails when a
# step fails; a step that there is no time for does not. GPU_SIDES, GPU_BATCHES and GPU_SAMPLING,
# the seconds of each measurement, make the run a shorter one. GPU_SANITIZER names another
# compute-sanitizer, GPU_PYTHON another python3; empty: none.
set -uo pipefail

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
results=${1:-$here/results}
mkdir -p "$results" && results=$(readlink -f "$results") || exit 1
deadline=$((SECONDS + ${GPU_SECONDS:-520}))
log=$results/gpu.log
work=$(mktemp -d) || exit 1
rm -f "$results"/{gpu,timings,tests,compare,compare-pytorch}.json "$results/profile.csv"  # of another time
: >"$log"
: >"$work/steps"
failures=0 left_out='' running='' converting='' gpu='' commit=unknown
export work

say() { printf '%s\n' "$*" | tee -a "$log"; }

# join TARGET FILE…: puts one JSON object of those files that are complete, by their names, in
# place.
join() {
  local target=$1 file
  shift
  {
    printf '{"gpu": "%s", "commit": "%s"' "$gpu" "$commit"
    for file; do
      [[ -s $file && $(tail -c 2 "$file") == *'}'* ]] && printf ',\n"%s": %s' "$(basename "$file" .json)" "$(cat "$file")"
    done
    printf '}\n'
  } >"$results/.new" && mv "$results/.new" "$results/$target.json"
}

# What has become of the run so far.
summary() {
  {
    printf '{"gpu": "%s", "commit": "%s", "date": "%s", "failures": %d, "ended": "%s", "left_out": "%s", "steps": [' \
      "$gpu" "$commit" "$(date -u +%FT%TZ)" "$failures" "$1" "$left_out"
    paste -sd, "$work/steps"
    printf ']}\n'
  } >"$results/.new" && mv "$results/.new" "$results/gpu.json"
}

note() {
  printf '{"step": "%s", "status": "%s", "seconds": %d}\n' "$1" "$2" "$3" >>"$work/steps"
  summary "under way"
}

finish() {
  trap - EXIT TERM INT HUP
  [[ -z $running$converting ]] || kill $running $converting 2>/dev/null
  say "== $1 after $SECONDS s: $failures failures; results in $results"
  summary "$1"
  rm -rf "$work" "$results/.new"
}
trap 'finish "cut off"; exit 143' TERM INT HUP
trap 'finish "stopped"' EXIT

# step NAME SECONDS LINES COMMAND…: runs it under a limit, inside what is left of the time, and
# shows the last LINES that it printed. Returns its status, or 75 where time was short.
step() {
  local name=$1 limit=$2 lines=$3 left=$((deadline - SECONDS)) short=0 status start=$SECONDS
  shift 3
  ((left < limit)) && limit=$left short=1
  if ((limit < 3)); then
    say "== $name: no time left"
    note "$name" "no time left" 0
    return 75
  fi
  say "== $name"
  timeout -k 5 "$limit" "$@" >"$work/out" 2>&1 &
  running=$!
  wait "$running"
  status=$?
  running=''
  cat "$work/out" >>"$log"
  tail -n "$lines" "$work/out" | cut -c 1-160
  if ((status == 124 || status == 137)); then
    if ((short)); then
      note "$name" "no time left" $((SECONDS - start))
      return 75
    fi
    note "$name" "longer than $limit s" $((SECONDS - start))
  else
    note "$name" "$status" $((SECONDS - start))
  fi
  ((status == 0)) || say "   $name: status $status"
  return $status
}

# need NAME …: a step whose failure is one of the run.
need() {
  local status
  step "$@"
  status=$?
  ((status == 0 || status == 75)) || failures=$((failures + 1))
  return $status
}

if [[ -f $here/payload.tar.xz ]]; then
  need unpack 60 1 bash -c 'if command -v xz >/dev/null; then tar -C "$0" -xJf "$1"; else
    python3 -c "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])" "$1" "$0"
  fi && rm -f "$1"' "$here" "$here/payload.tar.xz" || exit 1
fi
export bin=${GPU_BIN:-$here/bin}
data=${GPU_DATA-$here/images}
model=${GPU_MODEL-$here/model-4bit.safetensors}
export NIBBLENET_GOLDEN=${GPU_GOLDEN:-$here/golden}
[[ -d $here/lib ]] && export LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
[[ -d $here/tools ]] && export NIBBLENET_ROOT=$here
peers=$here/peers
[[ -d $peers ]] || peers=$here/../peers
commit=$(cat "$here/commit" 2>/dev/null || git -C "$here" rev-parse HEAD 2>/dev/null || echo unknown)
gpu=$(nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu --format=csv,noheader 2>/dev/null | head -1)
say "GPU: ${gpu:-none that nvidia-smi knows}"
say "commit: $commit, $(date -u +%FT%TZ)"

# The float model is made while tests run.
if [[ -f $model ]]; then
  "$bin/export" "$model" -o "$work/float.safetensors" >"$work/export.out" 2>&1 &
  converting=$!
fi

# smoke ROWS TESTS: whether the tests of a kernel pass, in a few seconds; else it is left out.
smoke() {
  need "smoke: $1" 8 1 "$bin/gpu_tests" --gtest_brief=1 "--gtest_filter=$2" "--gtest_output=json:$work/smoke-$1.json"
  local status=$?
  if grep -q 'SKIPPED.*every test' "$work/out"; then
    say "there is nothing more to do without a GPU"
    gpu=none
    finish "no GPU"
    exit 77
  fi
  ((status == 0 || status == 75)) || left_out+=",-$1"
  join tests "$work"/smoke-*.json
}
smoke clusters '*ClustersHaveTheBits*'
[[ -z $left_out ]] || export NIBBLENET_KERNELS=fast$left_out  # few_pixels may be right without them
smoke few_pixels '*FewPixels*'
smoke few_rows '*FewRows*'
smoke few_channels '*FewChannels*'
smoke few_outputs '*FewOutputs*'
smoke wgmma '*WgmmaProduct*'
smoke wgmma_unpacked '*WgmmaUnpacked*'
smoke mma '*MmaProduct*'
smoke pdl '*WithAndWithoutPdl*'
if [[ -n $left_out ]]; then
  export NIBBLENET_KERNELS=fast$left_out
  say "left out from here on: $NIBBLENET_KERNELS"
fi

# timed MODEL NAME BATCHES OPTIONS…: passes of a model.
timed() {
  local kind=$1 name=$2 batches=$3 file=$work/$1.safetensors
  shift 3
  [[ $kind != 4bit ]] || file=$model
  need "$kind, batch $batches" 25 22 "$bin/bench" "$file" --device cuda --batch "$batches" --seconds "$sampling" \
    --json "$work/$kind-$name.json" "$@"
  join timings "$work"/{4bit,float}-*.json "$work/training.json"
}

python=${GPU_PYTHON-$(command -v python3)}
torch=()
sampling=${GPU_SAMPLING:-0.3}
if [[ -f $model ]]; then
  timed 4bit first 1 --prefixes
  wait "$converting" || say "the float model could not be made: $(tail -1 "$work/export.out")"
  converting=''
  if [[ -f $work/float.safetensors ]]; then
    timed float first 1 --prefixes
    timed 4bit more "${GPU_BATCHES:-16,1024}" --prefixes
    timed float more "${GPU_BATCHES:-16,1024}"
    if [[ -z $python ]] || ! "$python" -c 'import numpy, torch' 2>>"$log"; then
      say "PyTorch: not measured, there is none"
    else
      torch=("$python" "$peers/compare_pytorch.py" --model "$work/float.safetensors" --json "$results/compare-pytorch.json")
      need "PyTorch, CUDA graph" 40 6 "${torch[@]}" --sides 'graph float16 channels last' --batches 1,16,1024 --rounds 1 --seconds "$sampling"
    fi
  fi
  ncu=$(command -v ncu || ls /usr/local/cuda/bin/ncu 2>/dev/null)
  if [[ -n $ncu ]]; then
    counters=gpu__time_duration.sum,dram__bytes_read.sum,lts__t_bytes.sum,sm__inst_executed.sum,smsp__issue_active.avg.pct_of_peak_sustained_active,sm__inst_executed_pipe_tensor.sum
    for batch in 1 1024; do
      step "ncu, batch $batch" 30 0 "$ncu" --clock-control none --csv --page raw --metrics "$counters" \
        -k 'regex:few_|mma' -c 9 "$bin/bench" "$model" --device cuda --batch "$batch" --seconds 0
      [[ ! -f $work/out ]] || grep '^"' "$work/out" >>"$results/profile.csv"
    done
  fi
fi

# Training on noise: 60 steps of 128 images.
if [[ -n $python ]] && "$python" - "$work/noise" <<'END' 2>>"$log"; then
import os, sys
os.makedirs(sys.argv[1])
for name in ["test_batch"] + [f"data_batch_{i}" for i in range(1, 6)]:
    with open(f"{sys.argv[1]}/{name}.bin", "wb") as file:
        file.write(b"".join(bytes([i % 10]) + os.urandom(3072) for i in range(20 if name == "test_batch" else 1536)))
with open(f"{sys.argv[1]}/batches.meta.txt", "w") as file:
    file.write("".join(f"class{i}\n" for i in range(10)))
END
  read -ra recipe <<<"${GPU_TRAIN_OPTIONS:---init random --batch 128}"
  need "training" 30 4 "$bin/finetune" --data "$work/noise" --device cuda --precision float16 --freeze none --epochs 1 \
    "${recipe[@]}" --out "$work/trained.safetensors" --json "$work/training.json"
  join timings "$work"/{4bit,float}-*.json "$work/training.json"
fi

# Suites, six at a time.
suites='*CudaProduct*:*CudaLinear*:*CudaConvolution*  *FewPixels*:*FewRows*  *FewChannels*:*FewOutputs*:*Pooling*  *MmaProduct*:*Wgmma*
  *Gradient*:*FusedStep*:*MixedTraining*  CudaNetwork.*:Golden.*  *Quantize*:*Preprocess*:*Folded*:*Unpacked*:Wrappers.*
  *Backend*:*EdgeCases*:*Hadamard*:*Trainer*'
suite() { "$bin/gpu_tests" --gtest_brief=1 "--gtest_filter=$2" "--gtest_output=json:$work/suite-$1.json" 2>&1; }
export -f suite
# shellcheck disable=SC2086
need "suites" 125 12 bash -c 'set -f; n=0; for tests in $0; do echo "$((++n)) $tests"; done |
  xargs -P 6 -L 1 bash -c "suite \"\$0\" \"\$1\""' "$suites"
join tests "$work"/{smoke,suite}-*.json

# cuDNN and cuBLASLt of a Python that brings them, where the system has none: the baseline.
packages=$([[ -z $python ]] || "$python" -c 'import nvidia; print(*nvidia.__path__)' 2>/dev/null)
in_python() { [[ -z $packages ]] || find $packages -name "$1" 2>/dev/null | head -1; }
[[ -n ${NIBBLENET_CUDNN:-} ]] || export NIBBLENET_CUDNN=$(in_python "libcudnn.so.9")
[[ -n ${NIBBLENET_CUBLASLT:-} ]] || export NIBBLENET_CUBLASLT=$(in_python "libcublasLt.so.13")

sanitizer=${GPU_SANITIZER-$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)}
few='Wrappers.*:*FewRows*:*FewPixels*:*FewChannels*:*FewOutputs*:CudaConvolution.*:CudaLinear.*:*MmaProduct*:*Wgmma*:*Gradient*:Pooling.*:FusedStep.*'
if [[ -n $sanitizer ]]; then
  need "memcheck" 70 3 "$sanitizer" --tool memcheck --error-exitcode 9 "$bin/gpu_tests" --gtest_brief=1 "--gtest_filter=$few"
fi

if [[ -f $work/float.safetensors ]]; then
  if [[ -n $data && -e $data ]]; then
    for device in cuda cpu cudnn; do
      for name in 4bit float; do
        [[ $name == 4bit ]] && file=$model || file=$work/float.safetensors
        need "accuracy of $name on $device" 60 2 "$bin/eval" "$file" --data "$data" --device "$device" --json "$work/eval-$name-$device.json"
      done
      join tests "$work"/{smoke,suite,eval}-*.json
    done
  fi
  # Every batch size, and time to see how far figures spread, where there is time.
  if ((deadline - SECONDS > 1800)); then
    batches=1,2,4,8,16,32,64,128,256,512,1024 rounds=2 seconds=0.1 energy=1
  else
    batches=1,16,128 rounds=1 seconds=0.05 energy=0
  fi
  seconds=${GPU_SAMPLING:-$seconds}
  batches=${GPU_BATCHES:-$batches}
  most=$(((deadline - SECONDS) * 3 / 5))
  options=()
  [[ -z ${GPU_SIDES:-} ]] || options+=(--sides "$GPU_SIDES")
  [[ -z $data || ! -e $data ]] || options+=(--data "$data")
  need "comparison" "$most" 30 "$bin/bench" "$work/float.safetensors" --compare --device cuda --batch "$batches" \
    --rounds "$rounds" --seconds "$seconds" --energy "$energy" "${options[@]}" --json "$results/compare.json"
  ((${#torch[@]} == 0)) || need "PyTorch, the other sides" "$most" 10 "${torch[@]}" --append --batches "$batches" \
    --rounds "$rounds" --seconds "$seconds"
fi
if [[ -n $sanitizer ]]; then
  for tool in racecheck synccheck; do
    need "$tool" 90 3 "$sanitizer" --tool "$tool" --error-exitcode 9 "$bin/gpu_tests" --gtest_brief=1 "--gtest_filter=$few"
  done
fi
finish "complete"
exit $((failures > 0))
