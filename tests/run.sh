#!/bin/sh
# Installs what is missing, then runs the whole test suite; arguments go to pytest.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
"$root/mount-examples/setup.sh" mount,test,lint
cd "$root"
exec .venv/bin/python -m pytest "$@"
