#!/usr/bin/env bash
# bundle.sh BUILD DIR MODEL IMAGES: a folder that runs the GPU checks where nothing is installed:
# DIR/run.sh, train.sh, a 4-bit model, and one archive of programs, their libraries, golden data and
# a few hundred images. MODEL, packed at 4 bits, and IMAGES, a data set's folder or archive, may be
# empty: what needs them is then left out. Build for 90a alone (CUDAARCHS), or it becomes too large.
# GPU_XZ: an option of xz in place of -9e.
set -euo pipefail

build=$1 target=$2 model=$3 images=$4
root=$(dirname "$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")")
images_of_class=30
most_bytes=45000000

mkdir -p "$target"
payload=$(mktemp -d)
trap 'rm -rf "$payload"' EXIT
mkdir "$payload/bin" "$payload/lib"

for program in tests/gpu/gpu_tests tools/{eval,bench,pack,export,finetune}; do
  strip -o "$payload/bin/$(basename "$program")" "$build/$program"
done
# Every library but those of glibc, which come with the driver's machine.
ldd "$payload"/bin/* | awk '$2 == "=>" { print $3 }' | sort -u |
  grep -vE '/(libc|libm|libdl|libpthread|librt|libresolv|ld-linux[^/]*)\.so' | while read -r library; do
  strip -o "$payload/lib/$(basename "$library")" "$library"
done
# What no check here calls: OpenBLAS serves calibration only. Functions that abort take its place,
# and its Fortran libraries stay behind.
for library in "$payload"/lib/libopenblas.so.*; do
  [[ -e $library ]] || continue
  nm -D --defined-only "$library" | awk '{ print $3 }' | sort >"$payload/provided"
  nm -D --undefined-only "$payload"/bin/* | awk 'NF == 2 { print $2 }' | sort -u | comm -12 - "$payload/provided" |
    awk 'BEGIN { print "void abort(void);" } { print "void " $1 "(void) { abort(); }" }' |
    gcc -shared -fPIC -w -x c - -Wl,-soname,"$(basename "$library")" -o "$library.stub"
  mv "$library.stub" "$library"
  rm -f "$payload/provided" "$payload"/lib/libgfortran.so.* "$payload"/lib/libquadmath.so.*
done
# ICU's tables are half of the whole, and only an archive reader's XML format asks for them: an
# empty one will do.
for library in "$payload"/lib/libicudata.so.*; do
  [[ -e $library ]] || continue
  symbol=$(nm -D "$library" | awk '$3 ~ /^icudt[0-9]+_dat$/ { print $3 }')
  echo "const char ${symbol}[64];" |
    gcc -shared -fPIC -x c - -Wl,-soname,"$(basename "$library")" -o "$library.stub"
  mv "$library.stub" "$library"
done

cp -r "$root/tests/data" "$payload/golden"
mkdir "$payload/peers"
cp "$root"/tests/peers/{alexnet_torch,compare_pytorch,tensorrt_side}.py "$payload/peers/"
git -C "$root" rev-parse HEAD >"$payload/commit"
if [[ -n $model ]]; then
  cp "$model" "$target/model-4bit.safetensors"  # packed codes do not compress
else
  echo "no model: the bundle checks no accuracy and times nothing"
fi
first_of_each_class() { awk -F/ -v most="$images_of_class" '/(^|\/)test\/[^\/]+\/[^\/]+\.(jpg|png)$/ && n[$(NF - 1)]++ < most'; }
mkdir "$payload/images"
if [[ -d $images ]]; then
  (cd "$images" && find test -type f | sort | first_of_each_class | tar -c -T -) | tar -C "$payload/images" -x
elif [[ -n $images ]]; then
  tar -tf "$images" | first_of_each_class | tar -C "$payload/images" -xf "$images" -T -
fi
if [[ -z $(ls "$payload/images") ]]; then
  echo "no images (test/<class>/*.jpg or .png): the bundle checks no accuracy"
  rmdir "$payload/images"
fi

cp "$root"/tests/gpu/{run,train}.sh "$target/"
# Programs hold the same kernels: one after the other, inside one window of the compressor, they
# cost the room of one.
tar -C "$payload" -c bin lib $(ls -A "$payload" | grep -vxE "bin|lib") | xz "${GPU_XZ:--9e}" >"$target/payload.tar.xz"
bytes=$(du -sb "$target" | cut -f1)
echo "$target: $bytes bytes; on the GPU machine: $(basename "$target")/run.sh"
if ((bytes > most_bytes)); then
  echo "that is more than $most_bytes bytes" >&2
  exit 1
fi
