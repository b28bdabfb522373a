#!/usr/bin/env bash
# Stands in for a command of the documents when a test runs them (documents_test.cpp): tools/NAME
# becomes the built program, with numbers that take seconds; what cannot run here is checked only.
#   TOOLS    folder of the built programs
#   SOURCE   the project's folder
#   LIMITS   "option=value ...": replaces that option's value
#   ADDED    "tool:option=value ...": added where the command does not say it
# What the network, a GPU or PyTorch would be needed for, with the reason:
#   --init imagenet, random    a download; a full network, which takes minutes: the small model
#   --device cuda              a GPU: the CPU
#   --precision float16        a GPU: float32
#   tools/dev                  minutes to hours: the command has to be one of its own
#   python, pip                packages of PyPI: the script and its options have to exist
#   compiled_code.sh           a disassembler of CUDA: the script has to exist
set -euo pipefail

name=$(basename "$0")
fail() {
  echo "$name: $*" >&2
  exit 1
}

# A script of the tests: it and every option named are there.
check_script() {
  local script=$SOURCE/$1 word
  [[ -f $script ]] || fail "there is no $1"
  for word in "${@:2}"; do
    [[ $word != --* ]] || grep -qe "\"$word\"" "$script" || fail "$1 has no $word"
  done
}

case "$name" in
  dev)
    "$SOURCE/tools/dev" help | grep -q "^  $1 " || fail "no command $1"
    exit
    ;;
  python | python3)
    [[ $1 == -m ]] || check_script "$@"
    exit
    ;;
  pip) exit ;;
  compiled_code.sh)
    check_script "tests/gpu/$name"
    exit
    ;;
esac

declare -A limits=() given=()
for limit in $LIMITS; do limits[${limit%%=*}]=${limit#*=}; done
arguments=()
while (($# > 0)); do
  word=$1 value=${2:-}
  shift
  given[$word]=1
  case "$word $value" in
    '--device cuda' | '--precision float16') shift ;;
    '--init imagenet' | '--init random')
      arguments+=(--init "$SMALL")
      shift
      ;;
    '--channels '*)
      arguments+=(--channels "${value%%=*}=20")
      shift
      ;;
    *)
      arguments+=("$word")
      if [[ -n ${limits[$word]:-} ]]; then
        arguments+=("${limits[$word]}")
        shift
      fi
      ;;
  esac
done
[[ -z ${given[--calibrate]:-} ]] || ADDED+=" $name:--calibration-images=20"
if [[ $name == bench && -n ${given[--compare]:-} ]]; then
  ADDED+=" bench:--sides=float32,linear:4:channel"
  [[ -z ${given[--data]:-} ]] || ADDED+=" bench:--limit=20"
fi
for limit in $ADDED; do
  option=${limit#*:} option=${option%%=*}
  [[ $limit != "$name:"* || -n ${given[$option]:-} ]] || arguments+=("$option" "${limit#*=}")
done
exec "$TOOLS/$name" "${arguments[@]}"
