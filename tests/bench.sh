#!/bin/sh
# Measures start-up times and the overhead of exec, and prints their medians and ratios. Nothing is judged: machines differ.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
"$root/mount-examples/setup.sh" mount,test,lint
"$root/.venv/bin/python" "$root/tests/bench/startup.py" "$@"
exec "$root/.venv/bin/python" "$root/tests/bench/overhead.py" "$@"
