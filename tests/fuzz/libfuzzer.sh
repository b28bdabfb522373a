#!/usr/bin/env bash
# libfuzzer.sh [SECONDS [NAME...]]: runs every fuzz entry, or those named, under libFuzzer with
# AddressSanitizer and UBSan for SECONDS (600) each, as many at a time as there are cores. Needs
# clang 16. What breaks a reader stays in build/fuzz/findings; the return code is then 1.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."

seconds=${1:-600}
shift || true
(($# > 0)) || set -- tests/fuzz/*_fuzz.cpp
set -- "${@##*/}"
set -- "${@%_fuzz.cpp}"
# Earlier ones do not compile the views of GCC's library.
clang=$(command -v clang++-19 clang++-18 clang++-17 clang++-16 | head -1 || true)
if [[ -z $clang ]]; then
  echo "skipped: libFuzzer needs clang 16 or newer; install Debian's clang-16, libclang-rt-16-dev and libomp-16-dev" >&2
  exit 77
fi

cmake -S . -B build/fuzz -G Ninja -DCMAKE_CXX_COMPILER="$clang" -DCMAKE_BUILD_TYPE=RelWithDebInfo \
  -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1 -DNDEBUG -Wno-unknown-warning-option" \
  -DNIBBLENET_SANITIZE=fuzzer-no-link,address,undefined >/dev/null
cmake --build build/fuzz --target "${@/%/_fuzz}"

rm -rf build/fuzz/findings
mkdir -p build/fuzz/findings build/fuzz/corpus
run() {
  local name=$1 log=build/fuzz/$1.log
  mkdir -p "build/fuzz/corpus/$name"
  if "build/fuzz/tests/${name}_fuzz" -max_total_time="$2" -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="build/fuzz/findings/$name-" "build/fuzz/corpus/$name" "tests/fuzz/seeds/$name" >"$log" 2>&1; then
    echo "$name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs, none broke the reader"
  else
    echo "$name: a finding; see $log"
    return 1
  fi
}
export -f run
printf '%s\n' "$@" | xargs -P "$(nproc)" -I{} bash -c 'run "$1" "$2"' _ {} "$seconds"
