#!/bin/sh
# Measures start-up times and prints their medians and ratios. Nothing is judged: machines differ.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
"$root/mount-examples/setup.sh" mount,test,lint
exec "$root/.venv/bin/python" "$root/tests/bench/startup.py" "$@"
