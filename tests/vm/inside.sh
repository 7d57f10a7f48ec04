#!/bin/sh
# What is shown in a virtual machine: as root, from the top of a checkout, with `apfs` in PATH.
set -u
export APFS_SLOWER=30
failed=0
# Runs a step and says how it ended, and in how many seconds of the machine's clock.
step() {
    started=$(date +%s)
    printf '$ %s\n' "$*"
    "$@"
    status=$?
    [ $status = 0 ] || failed=1
    printf 'step: status %s after %s seconds: %s\n' $status $(($(date +%s) - started)) "$*"
}
suite() { step python3 -m pytest -q -p no:cacheprovider -p apfs.testing.plugin "$@"; }

step uname -srm
step apfs doctor mount exec uevents vfio
# Needs packages and a virtual environment, which are here as files; the rest of it is run.
sed -i '/setup.sh/d' mount-examples/quickstart.sh
step bash mount-examples/quickstart.sh
# Streams in the network's order of bytes, structures in the machine's; ioctls and uevents of real programs.
suite tests/vfio_ap/test_migration.py tests/sandbox/test_seccomp.py tests/vfio/test_numbers.py tests/vfio/test_device_file.py
suite tests/sandbox/test_sequences.py tests/sandbox/test_uevents.py
suite tests/mounted/test_sysfs_semantics.py tests/mounted/test_migration.py
suite tests/testing/test_plugin.py
exit $failed
