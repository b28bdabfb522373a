#!/usr/bin/env bash
# The GPU checks, most important first, inside GPU_SECONDS (520, below nine minutes): run.sh
# [RESULTS] Lies in a bundle made by `tools/dev gpu --bundle`, or is called by `tools/dev gpu` with
# GPU_BIN, GPU_DATA, GPU_GOLDEN and GPU_MODEL set. Writes RESULTS/gpu.json and RESULTS/gpu.log, and
# RESULTS/compare*.json, of which tests/peers/performance_tables.py makes tables and plots. Fails
# when a test does. GPU_SIDES and GPU_BATCHES make the comparison a shorter one, GPU_SANITIZER names
# another compute-sanitizer, or none.
set -uo pipefail

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
results=${1:-$here/results}
if [[ -f $here/payload.tar.xz ]]; then
  echo "unpacking"
  if command -v xz >/dev/null; then tar -C "$here" -xJf "$here/payload.tar.xz"; else
    python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$here/payload.tar.xz" "$here"
  fi || exit 1
  rm -f "$here/payload.tar.xz"
fi
bin=${GPU_BIN:-$here/bin}
data=${GPU_DATA:-$here/images}
model=${GPU_MODEL:-$here/model-8bit.safetensors}
export NIBBLENET_GOLDEN=${GPU_GOLDEN:-$here/golden}
[[ -d $here/lib ]] && export LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
[[ -d $here/tools ]] && export NIBBLENET_ROOT=$here
mkdir -p "$results" && results=$(readlink -f "$results") || exit 1
# cuDNN and cuBLASLt of a Python that brings them, where the system has none: the baseline.
packages=$(python3 -c 'import nvidia; print(*nvidia.__path__)' 2>/dev/null)
in_python() { find $packages -name "$1" 2>/dev/null | head -1; }
[[ -n ${NIBBLENET_CUDNN:-} ]] || export NIBBLENET_CUDNN=$(in_python "libcudnn.so.9")
[[ -n ${NIBBLENET_CUBLASLT:-} ]] || export NIBBLENET_CUBLASLT=$(in_python "libcublasLt.so.13")
log=$results/gpu.log
: >"$log"
deadline=$((SECONDS + ${GPU_SECONDS:-520}))
peers=$here/peers
[[ -d $peers ]] || peers=$here/../peers
failures=0

say() { printf '%s\n' "$*" | tee -a "$log"; }

# step NAME SECONDS COMMAND…: runs it under a limit, inside what is left of the time.
step() {
  local name=$1 limit=$2 left=$((deadline - SECONDS)) status start=$SECONDS
  shift 2
  ((left < limit)) && limit=$left
  if ((limit < 5)); then
    say "== $name: no time left"
    return 1
  fi
  say "== $name"
  timeout "$limit" "$@" >>"$log" 2>&1
  status=$?
  say "   status $status after $((SECONDS - start)) s"
  return $status
}

# The JSON file, or null when it was not written.
json_of() { if [[ -s $1 ]]; then cat "$1"; else echo null; fi; }

gpu=$(nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu --format=csv,noheader 2>/dev/null | head -1)
say "GPU: ${gpu:-none that nvidia-smi knows}"
commit=$(cat "$here/commit" 2>/dev/null || git -C "$here" rev-parse HEAD 2>/dev/null || echo unknown)
say "commit: $commit, $(date -u +%FT%TZ)"

work=$results/work
mkdir -p "$work"
rm -f "$results"/compare*.json  # of another time
step "tests" 200 "$bin/gpu_tests" --gtest_brief=1 "--gtest_output=json:$work/tests.json" || failures=$((failures + 1))
if grep -q 'SKIPPED.*every test' "$log"; then
  say "there is nothing more to do without a GPU"
  printf '{"gpu": null, "commit": "%s", "tests": null}\n' "$commit" >"$results/gpu.json"
  exit 77
fi

if [[ -f $model ]]; then
  step "float model from the 8-bit one" 30 "$bin/export" "$model" -o "$work/float.safetensors"
  step "4-bit model, quantized on the GPU" 60 "$bin/pack" "$work/float.safetensors" --bits 4 --device cuda \
    -o "$work/4bit.safetensors" || failures=$((failures + 1))
  step "4-bit model, quantized on the CPU" 60 "$bin/pack" "$work/float.safetensors" --bits 4 --device cpu \
    -o "$work/4bit-cpu.safetensors"
  if ! cmp -s "$work/4bit.safetensors" "$work/4bit-cpu.safetensors"; then
    say "   the two 4-bit files differ"
    failures=$((failures + 1))
  fi
  for name in float 4bit; do
    for device in cuda cpu cudnn; do
      [[ -e $data ]] && step "accuracy of $name on $device" 60 "$bin/eval" "$work/$name.safetensors" \
        --data "$data" --device "$device" --json "$work/eval-$name-$device.json"
    done
  done
  # Every batch size, and time to see how far figures spread, where there is time.
  if ((deadline - SECONDS > 1800)); then
    batches=1,2,4,8,16,32,64,128,256,512,1024 rounds=2 seconds=0.1 energy=1
  else
    batches=1,16,128 rounds=1 seconds=0.05 energy=0
  fi
  batches=${GPU_BATCHES:-$batches}
  most=$(((deadline - SECONDS) * 2 / 5))
  options=()
  [[ -z ${GPU_SIDES:-} ]] || options+=(--sides "$GPU_SIDES")
  [[ ! -e $data ]] || options+=(--data "$data")
  step "comparison" "$most" "$bin/bench" "$work/float.safetensors" --compare --device cuda --batch "$batches" \
    --rounds "$rounds" --seconds "$seconds" --energy "$energy" "${options[@]}" --json "$results/compare.json" || failures=$((failures + 1))
  if ! python3 -c 'import numpy, torch' 2>>"$log"; then
    say "PyTorch: not measured, python3 has none"
  else
    step "comparison, PyTorch" "$((most / 2))" python3 "$peers/compare_pytorch.py" --model "$work/float.safetensors" \
      --batches "$batches" --rounds "$rounds" --seconds "$seconds" --json "$results/compare-pytorch.json"
  fi
fi

sanitizer=${GPU_SANITIZER-$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)}
if [[ -n $sanitizer ]]; then
  few='Wrappers.*:CudaConvolution.*:CudaLinear.*:FewRows.*:FewPixels.*:PooledFewPixels.*:GradientStores.*:MmaProduct.*:GradientProduct.*:WgmmaProduct.*:FewChannels.*:FewOutputs.*:Pooling.*:FusedStep.*:Golden.*:BackendTest.*:CudaPreprocess.*'
  for tool in memcheck racecheck synccheck; do
    step "compute-sanitizer $tool" 90 "$sanitizer" --tool "$tool" --error-exitcode 9 "$bin/gpu_tests" \
      --gtest_brief=1 "--gtest_filter=$few" || failures=$((failures + 1))
  done
fi

{
  printf '{"gpu": "%s", "commit": "%s", "date": "%s", "failures": %d' "$gpu" "$commit" "$(date -u +%FT%TZ)" "$failures"
  printf ',\n"tests": %s' "$(json_of "$work/tests.json")"
  for file in "$work"/eval-*.json "$results"/compare*.json; do
    [[ -e $file ]] && printf ',\n"%s": %s' "$(basename "$file" .json)" "$(json_of "$file")"
  done
  printf '}\n'
} >"$results/gpu.json"
say "results: $results/gpu.json and gpu.log; $failures failures"
rm -rf "$work"
exit $((failures > 0))
