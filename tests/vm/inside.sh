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
# Each test in a line of its own, and where it is if it takes long: so it is known what had not ended when a machine did.
suite() {
    step python3 -m pytest -v --color=no -p no:cacheprovider -p apfs.testing.plugin -o faulthandler_timeout=900 "$@"
}

step uname -srm
step apfs doctor mount exec uevents vfio
# Needs packages and a virtual environment, which are here as files; the rest of it is run.
sed -i '/setup.sh/d' mount-examples/quickstart.sh
step bash mount-examples/quickstart.sh
# Streams in the network's order of bytes, structures in the machine's; ioctls and uevents of real programs; what kernels
# remember; programs that move guests. All at once, as pytest alone takes a minute to start.
suite tests/vfio_ap/test_migration.py tests/sandbox/test_seccomp.py tests/vfio/test_numbers.py tests/vfio/test_device_file.py \
    tests/sandbox/test_uevents.py tests/mounted/test_migration.py tests/mounted/test_requests.py tests/mounted/test_loop.py \
    tests/mounted/test_sysfs_semantics.py
# Not collected with the others, because containers have no cgroups of their own.
suite tests/faults/memory_max.py
# There are no compilers of Go and Rust.
suite tests/sandbox/test_sequences.py -k 'not go and not rust'
# Tests of the plugin install it, and there is no network: here a user's project has it as files.
mkdir -p /tmp/project/sub
cp tests/testing/uses.py /tmp/project/test_uses.py
echo 'name = "mine"' > /tmp/project/sub/mine.toml
cd /tmp/project || exit
suite -n 2 .
exit $failed
