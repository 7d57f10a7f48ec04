#!/bin/sh
# Everything at once, for MINUTES (20): fuzzers on hosts without a mount, processes that store and read at once,
# processes that are killed at any system call, and all kinds of work on the largest host, whose server is watched.
# docs/reliability.md has the last result.
set -eu
cd "$(dirname -- "$0")/.."
tests/run.sh --version # sets everything up
minutes=${1:-20}
.venv/bin/python -m tests.fuzz.run "$minutes" &
fuzzers=$!
.venv/bin/python -m tests.concurrency.run --minutes "$minutes" &
contenders=$!
.venv/bin/python -m tests.faults.run "$minutes" &
faults=$!
status=0
.venv/bin/python -m tests.soak.run "$minutes" --plot docs/images/soak.svg || status=1
wait "$fuzzers" || status=1
wait "$contenders" || status=1
wait "$faults" || status=1
exit "$status"
