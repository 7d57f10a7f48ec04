#!/bin/sh
# Measures apfs side by side with yardsticks, which it builds and installs, and prints tables. Takes half an hour.
#
#   tests/bench.sh [ROUNDS [JSON-FILE]]
#
# Goals are compared with ratios, and nothing fails: machines differ.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
rounds=${1:-15}
"$root/mount-examples/setup.sh" mount,test,lint umockdev
cd "$root"
yardstick=$(mktemp)
trap 'rm -f "$yardstick"' EXIT
# shellcheck disable=SC2046 -- a list of flags
gcc -O2 -Wall -Wextra -o "$yardstick" tests/bench/yardstick.c $(pkg-config --cflags --libs fuse3)
# As pip does it. Else starts take up to 0.1 s longer wherever PYTHONDONTWRITEBYTECODE is set or a file was changed.
.venv/bin/python -m compileall -q apfs
.venv/bin/python -m tests.bench.speed "$yardstick" --rounds "$rounds" ${2:+--json "$2"}
