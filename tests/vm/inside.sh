#!/bin/sh
# What is shown in a virtual machine: as root, from the top of a checkout, with `apfs` in PATH.
set -u
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
    step python3 -m pytest -v --color=no -p no:cacheprovider -o faulthandler_timeout=900 "$@"
}

step uname -srm
step apfs doctor mount exec uevents vfio
# Needs packages and a virtual environment, which are here as files; the rest of it is run.
sed -i '/setup.sh/d' mount-examples/quickstart.sh
step bash mount-examples/quickstart.sh
# What depends on the machine, in the order of its value: filters of system calls, uevents, the loop of requests, ioctls of
# real programs, limits of memory, migration between mounts. Others are run by their names, `run.sh ... -- COMMAND`: all of
# tests/mounted/test_migration.py alone takes a quarter of an hour. All at once, because pytest alone takes a minute to
# start. There are no compilers of Go and Rust, and no musl.
sequences=tests/sandbox/test_sequences.py
# User-mode Linux kills what uses the 32-bit interface.
bits=$sequences::test_the_32_bit_interface
grep -q 'User Mode Linux' /proc/cpuinfo || bits=none
migration=tests/mounted/test_migration.py
suite tests/sandbox/test_seccomp.py tests/vfio/test_numbers.py tests/sandbox/test_uevents.py tests/mounted/test_loop.py \
    tests/mounted/test_requests.py $sequences --deselect "$bits" \
    --deselect "$sequences::test_every_call_answers_as_linux_does[legacy-musl]" \
    --deselect "$sequences::test_every_call_answers_as_linux_does[cdev-musl]" \
    --deselect "$sequences::test_every_call_answers_as_linux_does[legacy-go]" \
    --deselect "$sequences::test_every_call_answers_as_linux_does[legacy-rust]" \
    --deselect "$sequences::test_every_call_answers_as_linux_does[cdev-go]" \
    --deselect "$sequences::test_every_call_answers_as_linux_does[cdev-rust]" \
    --deselect "$sequences::test_what_the_runtime_of_go_does" \
    tests/faults/memory_max.py $migration::test_by_redirection $migration::test_migrate_command \
    $migration::test_target_is_given_what_the_source_has $migration::test_between_revisions
# Tests of the plugin install it, and there is no network: here a user's project has it as files.
mkdir -p /tmp/project/sub
cp tests/testing/uses.py /tmp/project/test_uses.py
echo 'name = "mine"' > /tmp/project/sub/mine.toml
cd /tmp/project || exit
suite -n 2 .
exit $failed
