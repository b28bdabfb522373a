# compile.sh: the function `compile`, for scripts that look at compiled kernels (source it).

root=$(dirname "$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")")
nvcc=${CUDACXX:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
export root nvcc

# compile ARCHITECTURE SOURCE CUBIN: compiles a .cu with the flags of the build (CMakeLists.txt) and
# prints the assembler's report on each kernel.
compile() {
  "$nvcc" -std=c++20 -O3 -fmad=false --expt-relaxed-constexpr -diag-suppress=554 -DFMT_CONSTEVAL= \
    -DFMT_USE_CONSTEXPR=1 -I"$root" -arch="sm_$1" -Xptxas -v -cubin -o "$3" "$2" 2>&1 ||
    { echo "failed: $2" >&2; exit 255; }
}
export -f compile
