#!/usr/bin/env bash
# compiled_code.sh [ARCHITECTURE...]: what the compiler made of the kernels that read superblocks
# and trellis strings (80 and 90a, or those given). Fails when unpacking linear codes or string
# tiles takes more instructions than it should, when a weight of a trellis string takes more than
# four in all at batch 1, when a kernel touches local memory, when its inner loop does not read
# codes 16 bytes at a time, or when a kernel may read weights before the kernel before has made
# them. Needs nvdisasm, of the environment's NVDISASM or PATH; without one it says so and exits with
# 77.
set -euo pipefail

source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../tools/kernels/compile.sh"
nvdisasm=${NVDISASM:-$(command -v nvdisasm || echo "$(dirname "$nvcc")/nvdisasm")}
if [[ ! -x $nvdisasm ]]; then
  echo "skipped: there is no nvdisasm; set NVDISASM to one, or install the CUDA Toolkit's"
  exit 77
fi
(($# > 0)) || set -- 80 90a
export nvdisasm

# Instructions for each linear weight of 2 to 8 bits that the layout was designed for, and how much
# more may be taken.
designed='1.06 1.16 1.13 1.28 1.44 1.53 1.00'
tolerance=1.15
most_of_strings=6.8  # for each weight of a string tile

code=$(mktemp -d)
trap 'rm -rf "$code"' EXIT
disassemble() {
  compile "$1" "$root/$2" "$3/$(basename "$2").$1.cubin" >/dev/null
  "$nvdisasm" -c "$3/$(basename "$2").$1.cubin" >"$3/$(basename "$2").$1.sass"
}
export -f disassemble
for architecture in "$@"; do
  printf '%s\n' tests/gpu/unpack_probe.cu kernels/cuda/{linear/few_rows{,_strings},gemm/{mma,wgmma{,_integers,_codebooks,_strings}},conv/few_pixels}.cu |
    xargs -P "$(nproc)" -I{} bash -c 'disassemble "$1" "$2" "$3"' _ "$architecture" {} "$code"
done

# Two probes differ by three chunks of 32 weights: whatever else a kernel does is the same in both.
echo "instructions for each weight, without reading and writing it"
for architecture in "$@"; do
  awk -v designed="$designed" -v tolerance=$tolerance -v most_of_strings=$most_of_strings \
    -v architecture="$architecture" '
    /^\.text\./ {
      match($0, /((Integer|Codebook)CodesILi[0-9]+E(Li32E)?E|_strings_kernelILi[0-9]+)ELi[0-9]E/)
      method = substr($0, RSTART, RLENGTH)
      sub(/Li32E/, "", method)  # copies of the look-up table
      split(method, part, /Li/)
      kernel = method ~ /^_/ ? "Strings" : substr(method, 1, index(method, "CodesI") - 1)
      kernel = kernel " " (part[2] + 0) " " (part[3] + 0)
    }
    /^ +\/\*[0-9a-f]+\*\/ / {
      name = $2 ~ /^@/ ? $3 : $2
      if (name !~ /^(LD|ST|NOP)/) ++count[kernel]
    }
    END {
      split(designed, most, " ")
      for (bits = 2; bits <= 8; ++bits) {
        linear = (count["Integer " bits " 4"] - count["Integer " bits " 1"]) / 96
        others = (count["Codebook " bits " 4"] - count["Codebook " bits " 1"]) / 96
        bad = !(linear > 0 && linear <= tolerance * most[bits - 1])
        printf "%-4s %d bits: linear %.2f (designed %.2f, at most %.2f), others %.2f%s\n", architecture, bits, linear,
               most[bits - 1], tolerance * most[bits - 1], others, bad ? "  TOO MANY" : ""
        failed = failed || bad
      }
      rates = split("2 3 4 5 6 8 12 16", quarters, " ")
      for (i = 1; i <= rates; ++i) {
        strings = (count["Strings " quarters[i] " 4"] - count["Strings " quarters[i] " 1"]) / 96
        bad = !(strings > 0 && strings <= most_of_strings)
        printf "%-4s %s bits: string tiles %.2f (at most %.2f)%s\n", architecture, quarters[i] / 4, strings,
               most_of_strings, bad ? "  TOO MANY" : ""
        failed = failed || bad
      }
      exit failed
    }' "$code/unpack_probe.cu.$architecture.sass" || failed=1
done

# Codes are read past the L1 cache (LDG ... NA), n times a superblock, or copied to shared memory
# (LDGSTS) in a loop of their own, or before the loop, as few_rows does with shares that fit the
# rings, and with trellis strings. A loop is what lies
# between a label and the last branch back to it; the inner one is the shortest that multiplies.
inner_loop='/^\.text\./ { report(); kernel = $1; n = stack = multiplies = shortest = 0; first = 1; last = 0; delete label }
  /^\.L_[^ ]*:/ { label[substr($1, 1, length($1) - 1)] = n + 1 }
  /^ +\/\*[0-9a-f]+\*\/ / {
    line[++n] = $0
    if ($0 ~ / (LDL|STL)[. ]/) ++stack
    if ($0 ~ / (HG|H|I)MMA\./) { ++multiplies; product[n] = 1 } else delete product[n]
    delete jump[n]
    if (match($0, /BRA[^`]*`\(\.L_[^)]*\)/)) {
      target = substr($0, RSTART, RLENGTH - 1)
      sub(/.*\(/, "", target)
      jump[n] = target
      if (target in label) {
        for (i = label[target]; i <= n && !(i in product); ++i);
        length_now = n - label[target]
        if (i <= n && (!shortest || length_now < shortest || first == label[target])) {
          shortest = length_now
          first = label[target]
          last = n
        }
      }
    }
  }
'
echo "16-byte loads in the inner loop, and accesses to local memory"
for sass in "$code"/*.sass; do
  [[ $sass != *@(unpack_probe|wgmma)* ]] || continue
  awk -v file="$(basename "$sass" .sass)" "$inner_loop"'
    function report(    i, read, copied, narrow, bits, strings, quarters, bad) {
      if (kernel == "" || !multiplies) return
      bits = match(kernel, /CodesILi[0-9]+/) ? substr(kernel, RSTART + 8, RLENGTH - 8) + 0 : 16  # halves
      strings = match(kernel, /(strings_kernel|StringCodes)ILi[0-9]+/)
      if (strings) {
        quarters = substr(kernel, RSTART, RLENGTH)
        sub(/.*Li/, "", quarters)
        bits = quarters / 4
      }
      for (i = first; i <= last; ++i) read += line[i] ~ /LDG\.E\.NA[^ ]*\.128/
      for (i = 1; i <= last; ++i) {
        copied += line[i] ~ /LDGSTS\.E[^ ]*\.128/
        narrow += line[i] ~ /LDGSTS/ && line[i] !~ /\.128/
      }
      bad = (read < (strings ? 1 : bits) && !copied) || narrow > 0 || stack > 0
      printf "%-25s %4s bits: %2d wide loads, %d wide and %d narrow copies, %d of local memory%s\n", file, bits, read,
             copied, narrow, stack, bad ? "  WRONG" : ""
      failed = failed || bad
      ++seen
    }
    END { report(); if (!seen) print file ": no kernel that multiplies"; exit failed || !seen }' "$sass" || failed=1
done

echo "instructions a k-tile of wgmma, and accesses to local memory"
for sass in "$code"/wgmma*.90a.sass; do
  [[ -e $sass ]] || continue
  awk -v file="$(basename "$sass" .sass)" "$inner_loop"'
    function report(    name, bad) {
      if (kernel == "" || !multiplies) return
      name = "weight gradient"
      if (match(kernel, /((Integer|Codebook|String)CodesILi[0-9]+E(Li[0-9]+E)?E|(FilterRow|FilterColumn)TilesI)(E?Li[0-9]+E)?/))
        name = substr(kernel, RSTART, RLENGTH)
      gsub(/I?Li/, " ", name)
      gsub(/E/, "", name)
      bad = (stack > 0)
      printf "%-22s %-30s %d instructions, %d of local memory%s\n", file, name, last - first + 1, stack,
             bad ? "  WRONG" : ""
      failed = failed || bad
      ++seen
    }
    END { report(); if (!seen) print file ": no kernel that multiplies"; exit failed || !seen }' "$sass" || failed=1
done

# Instructions of an inner loop for each superblock, which is `products` HMMA instructions, or for
# each string block of 4,096 weights (32 IMMA instructions). What a forward branch leaves out does
# not count if it has HADD2 instructions: few_pixels multiplies fragments by scales there, where
# weights have zero points or share scales between rows.
echo "instructions a superblock in the inner loop: 4-bit linear codes; trellis strings, batch 1, by rate"
count_loop() {
  awk -v file="$(basename "$1" .sass)" -v pattern="$2" -v products="$3" -v most="$4" "$inner_loop"'
    function report(    i, j, multiplies, sums, count, bad, skipped) {
      if (kernel !~ pattern || !last) return
      for (i = first; i <= last; ++i) {
        multiplies += line[i] ~ / [HI]MMA\./
        if (!(i in jump) || label[jump[i]] <= i || label[jump[i]] > last) continue
        sums = 0
        for (j = i + 1; j < label[jump[i]] && !(j in product); ++j) sums += line[j] ~ / HADD2 /
        if (j == label[jump[i]] && sums) skipped += j - i - 1
      }
      count = (last - first + 1 - skipped) * products / multiplies
      bad = count > most
      printf "%-25s %d, at most %d%s\n", file, count, most, bad ? "  TOO MANY" : ""
      failed = failed || bad
      ++seen
    }
    END { report(); if (!seen) print file ": no kernel " pattern; exit failed || !seen }' "$1"
}
for architecture in "$@"; do
  # 16 products and 4 of the zeros, as for a batch of up to 8.
  count_loop "$code/few_rows.cu.$architecture.sass" 'few_rows_kernel.*IntegerCodesILi4EEELi1ELb0E' 20 150 || failed=1
  count_loop "$code/few_pixels.cu.$architecture.sass" 'few_pixels.*IntegerCodesILi4EEELb0E' 64 330 || failed=1
  count_loop "$code/few_pixels.cu.$architecture.sass" 'few_pixels.*IntegerCodesILi4EEELb1E' 80 355 || failed=1  # pools
  # Four instructions a weight, of which a lane has 128, at every rate.
  for quarters in 2 3 4 5 6 8 12 16; do
    count_loop "$code/few_rows_strings.cu.$architecture.sass" "few_rows_strings.*ILi${quarters}E.*DigitProduct" 32 \
      $((4 * 128)) || failed=1
  done
done

# The assembler moves reads of constant data (LDG ... CONSTANT) in front of the PDL wait (ACQBULK).
# Kernels whose weights the kernel before may make read nothing before it.
echo "kernels that read global memory too early, or as constant data"
for sass in "$code"/*.sass; do
  awk -v file="$(basename "$sass" .sass)" '
    function report(what) {
      if (!reported[kernel what]++) print file ", " kernel " " what "  WRONG"
      failed = 1
    }
    /^\.text\./ {
      kernel = substr($1, 7)
      waits = file ~ /\.8[0-9]$/  # GPUs without PDL
      late = kernel ~ /few_pixels_kernel|wgmma_pixel_kernel/
      seen += late
    }
    / ACQBULK/ { waits = 1 }
    / LDG(STS)?\./ && late && !waits { report("reads before the PDL wait") }
    / LDG\.[^ ]*CONSTANT/ { report("reads constant data") }
    END {
      if (!seen && file ~ /few_pixels|wgmma/) { print file ": no kernel that waits"; failed = 1 }
      exit failed
    }' "$sass" || failed=1
done
exit "${failed:-0}"
