#!/bin/bash
# lszcrypt, built for s390x, on two hosts and on a guest of one of them: before and after queues are removed from the
# guest and added again, and after the guest has migrated to the other host.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=$here/../../.cache/s390x
"$here/fetch-s390x.sh" "$cache"
PATH=$here/../../.venv/bin:$PATH
export LC_ALL=C
. "$here/../steps.sh"
a=$work/host-a b=$work/host-b
uuid=669d9b23-fe1b-4ecb-be08-a2fabca99b71

# Type a command on a host, or on its guest.
on() { printf '\n%s # %s\n' "$1" "${*:2}"; apfs exec --mount "$work/$1" -- "${@:2}" 2>&1; }
on_guest() { printf '\nguest of %s # %s\n' "$1" "${*:2}"; apfs exec --mount "$work/$1" --guest $uuid -- "${@:2}" 2>&1; }
# qemu-user runs it, under the name that it has on a real machine.
mkdir "$work/bin"
printf '#!/bin/sh\nexec qemu-s390x-static -L "%s/root" "%s/root/sbin/lszcrypt" "$@"\n' "$cache" "$cache" > "$work/bin/lszcrypt"
chmod +x "$work/bin/lszcrypt"
PATH=$work/bin:$PATH

mkdir "$a" "$b"
# No time passes, so that each scan is one that is asked for here.
apfs mount --clock manual --scenario migration-source "$a"
apfs mount --clock manual --scenario migration-target "$b"

step "A guest with two cards, before anything happens"
on host-a lszcrypt -V
on_guest host-a lszcrypt -V
on_guest host-a lszcrypt -d

step "Card 06 is taken from the guest. Its bus sees that at its next scan; until then lszcrypt shows the card"
echo 6 > "$a/sys/devices/vfio_ap/matrix/$uuid/unassign_adapter"
on host-a lszcrypt -V 06
on_guest host-a lszcrypt
echo 1 > "$a/guests/$uuid/sys/bus/ap/scans"
on_guest host-a lszcrypt

step "A guest that is told of changes sees the card at once when it is given back"
echo "config-events $uuid on" > "$a/ctl/console"
echo 6 > "$a/sys/devices/vfio_ap/matrix/$uuid/assign_adapter"
on_guest host-a lszcrypt

step "A card that is deconfigured on the host, after the scans of both"
echo 0 > "$a/sys/devices/ap/card05/config"
echo 1 > "$a/sys/bus/ap/scans"
echo 1 > "$a/guests/$uuid/sys/bus/ap/scans"
on host-a lszcrypt -V 05
on_guest host-a lszcrypt -V 05
echo 1 > "$a/sys/devices/ap/card05/config"

step "The guest migrates"
do_ 'apfs migrate $a $b $uuid > $work/migrated'
on host-a lszcrypt -V
on host-b lszcrypt -V
on_guest host-b lszcrypt -V
