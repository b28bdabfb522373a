#!/usr/bin/env bash
# report.sh [ARCHITECTURE...]: prints registers, spills and shared memory of every CUDA kernel, as
# the compiler reports them. ARCHITECTURE is like 90a; default: CUDAARCHS, else 80, 89 and 90a.
# Fails when a kernel spills registers to memory.
set -euo pipefail

source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/compile.sh"
if (($# == 0)); then
  read -ra architectures <<<"${CUDAARCHS:-80 89 90a}"
  set -- "${architectures[@]}"
fi
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
for architecture in "$@"; do
  # A log is named after the source and its folder: conv.few_pixels.cu.90a.log.
  (cd "$root/kernels/cuda" && find . -name '*.cu' -printf '%P\n') |
    xargs -P "$(nproc)" -I{} bash -c 'compile "$1" "$root/kernels/cuda/$2" /dev/null >"$3/${2//\//.}.$1.log"' \
      _ "$architecture" {} "$logs"
done

# One line a kernel: its name without namespaces and parameters, then the figures.
cat "$logs"/*.log | c++filt | awk '
  /Compiling entry function/ {
    split($0, quoted, "\047")
    name = quoted[2]
    architecture = quoted[4]
    gsub(/\(anonymous namespace\)::|nibblenet::/, "", name)
    sub(/^void /, "", name)
    depth = 0
    for (i = 1; i <= length(name); ++i) {
      c = substr(name, i, 1)
      if (c == "<") ++depth
      if (c == ">") --depth
      if (c == "(" && depth == 0) break
    }
    name = substr(name, 1, i - 1)
  }
  /bytes spill stores/ { spills = $5 + $9; stack = $1 }
  /Used [0-9]+ registers/ {
    shared = 0
    if (match($0, /[0-9]+ bytes smem/)) shared = substr($0, RSTART) + 0
    match($0, /Used [0-9]+/)
    printf "%-8s %9d %7d %6d %8d  %s\n", architecture, substr($0, RSTART + 5, RLENGTH - 5), spills, stack, shared, name
  }' | sort -k6,6 -k1,1 >"$logs/table"

printf '%-8s %9s %7s %6s %8s  %s\n' target registers spill-B stack-B shared-B kernel
cat "$logs/table"
[[ -s $logs/table ]] || { echo "the compiler named no kernel" >&2; exit 1; }
if awk '$3 > 0 { found = 1 } END { exit !found }' "$logs/table"; then
  echo "some kernels spill registers" >&2
  exit 1
fi
