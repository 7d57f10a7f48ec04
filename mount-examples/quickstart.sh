#!/bin/bash
# Emulated hosts, a guest, and a live migration that uses only shell redirections.
#
# Run it as root, or as a user with sudo (needed only if packages are missing). It cleans up after itself.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
"$here/setup.sh" mount
PATH=$here/../.venv/bin:$PATH

. "$here/steps.sh"
a=$work/host-a b=$work/host-b c=$work/host-c
uuid=669d9b23-fe1b-4ecb-be08-a2fabca99b71

step "Mount two emulated hosts, and a third one with an older card 05"
mkdir "$a" "$b" "$c"
do_ 'apfs mount $a'
do_ 'apfs mount $b'
do_ 'apfs mount --scenario $here/scenarios/older-card.toml $c'
do_ 'ls $a/sys/bus/ap/devices'
do_ 'cat $a/sys/bus/ap/bindings'

step "On each host, take cards 05 and 06 from the host's own drivers, which binds their queues to vfio_ap"
for host in "$a" "$b" "$c"; do
    echo -5,-6 > "$host/sys/bus/ap/apmask"
done
do_ 'cat $a/sys/bus/ap/apmask'
do_ 'readlink $a/sys/devices/ap/card05/05.0004/driver'
expect "$(basename "$(readlink "$a/sys/devices/ap/card05/05.0004/driver")")" vfio_ap

step "Create the same mediated device on each, and assign adapters, domains and a control domain"
for host in "$a" "$b" "$c"; do
    mdev=$host/sys/devices/vfio_ap/matrix/$uuid
    echo $uuid > "$host/sys/devices/vfio_ap/matrix/mdev_supported_types/vfio_ap-passthrough/create"
    echo 5 > "$mdev/assign_adapter"
    echo 0x06 > "$mdev/assign_adapter"
    echo 4 > "$mdev/assign_domain"
    echo 0x47 > "$mdev/assign_domain"
    echo 4 > "$mdev/assign_control_domain"
done
do_ 'cat $a/sys/devices/vfio_ap/matrix/$uuid/matrix'

step "A card reserved for the host is refused, as in the kernel; the journal says why"
# The shell prints the error of its write.
if echo 0x0a > "$a/sys/devices/vfio_ap/matrix/$uuid/assign_adapter"; then exit 1; fi
do_ 'tail -n 1 $a/ctl/journal'

step "Start the guest on host A: its queues are in use"
do_ 'echo 1 > $a/dev/vfio-ap/$uuid/guest'
do_ 'cat $a/sys/devices/ap/card05/05.0004/status'
expect "$(cat "$a/sys/devices/ap/card05/05.0004/status")" "in use"

# migrate FROM TO: the steps of a VMM; fails if the target refuses.
migrate() {
    printf '   $ echo 1 > TO/guest;  echo RESUMING > TO/migration_state;  echo STOP_COPY > FROM/migration_state\n'
    printf '   $ cat FROM/data_stream > TO/data_stream\n'
    echo 1 > "$2/dev/vfio-ap/$uuid/guest"
    echo RESUMING > "$2/dev/vfio-ap/$uuid/migration_state"
    echo STOP_COPY > "$1/dev/vfio-ap/$uuid/migration_state"
    if cat "$1/dev/vfio-ap/$uuid/data_stream" > "$2/dev/vfio-ap/$uuid/data_stream"; then
        printf '   $ echo RUNNING > TO/migration_state;  echo 0 > FROM/guest\n'
        echo RUNNING > "$2/dev/vfio-ap/$uuid/migration_state"
        echo 0 > "$1/dev/vfio-ap/$uuid/guest"
    else
        printf '   $ echo RUNNING > FROM/migration_state;  echo 0 > TO/guest\n'
        echo RUNNING > "$1/dev/vfio-ap/$uuid/migration_state"
        echo 0 > "$2/dev/vfio-ap/$uuid/guest"
        return 1
    fi
}

step "Live-migrate the guest from A to B"
migrate "$a" "$b"
do_ 'cat $a/sys/devices/ap/card05/05.0004/status $b/sys/devices/ap/card05/05.0004/status'
expect "$(cat "$a/dev/vfio-ap/$uuid/guest" "$b/dev/vfio-ap/$uuid/guest" | tr '\n' ' ')" "0 1 "

step "Try to migrate from B to C: card 05 of the target is a CEX7, too old for a guest that uses a CEX8"
if migrate "$b" "$c"; then exit 1; fi
printf '   The driver of host C logs the reason (ctl/kmsg):\n'
do_ 'grep -A 9 incompatible $c/ctl/kmsg'
printf '   and the guest keeps running on B:\n'
do_ 'cat $b/dev/vfio-ap/$uuid/migration_state $b/sys/devices/ap/card05/05.0004/status'
expect "$(cat "$b/dev/vfio-ap/$uuid/migration_state")" RUNNING

step "Predict the result with apfs migrate --check"
if apfs migrate --check "$b" "$c" $uuid; then exit 1; fi

step "Unmount"
do_ 'apfs umount $a'
do_ 'apfs umount $b'
do_ 'apfs umount $c'
printf '\nquickstart: done\n'
