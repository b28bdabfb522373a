#!/usr/bin/env bash
# run.sh CHECK [FILE or FOLDER ...]: a check of this folder, from the project's root. Skips (77)
# where there is no Python 3.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."

if ! command -v python3 >/dev/null; then
  echo "skipped: there is no python3"
  exit 77
fi
check=$1
shift
PYTHONDONTWRITEBYTECODE=1 exec python3 "tests/house/$check.py" "$@"
