#!/bin/bash
# Three emulated hosts with a libvirtd each, and an s390x Linux guest in QEMU that uses crypto queues of the host:
# `virsh migrate --live` from the first host to the second, and to the third, which refuses.
#
# Run it as root, or as a user with sudo: libvirt starts QEMU only for root. It cleans up after itself. The first run
# downloads packages and the guest's kernel.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
"$here/../setup.sh" mount libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients mdevctl qemu-system-misc gcc cpio
# Asked for before the download, which takes a while.
if [ "$(id -u)" != 0 ]; then
    echo "migrate: libvirt starts QEMU only for root, so this goes on with sudo" >&2
    sudo true || { echo "migrate: that did not work: run it as root" >&2; exit 2; }
fi
guest=$here/../../.cache/guest
"$here/make-guest.sh" "$guest"
[ "$(id -u)" = 0 ] || exec sudo "$0"
guest=$(cd "$guest" && pwd)
PATH=$here/../../.venv/bin:$PATH
export LC_ALL=C

. "$here/../steps.sh"
a=$work/host-a b=$work/host-b c=$work/host-c
queue() { cat "$1/sys/devices/ap/card05/05.0004/status"; }
# Waits until the guest has counted on.
wait_for_the_guest() { timeout 120 tail -n 0 -f "$work/console.log" | grep -q -m 3 '^count'; }

step "Mount three hosts of the gallery. Cards 05 and 06 are for guests; host C has an older card 05"
mkdir "$a" "$b" "$c"
do_ 'apfs mount --scenario migration-source $a'
do_ 'apfs mount --scenario migration-target $b'
do_ 'apfs mount --scenario target-older-type $c'

step "Start a libvirtd on each host. It prints its URI for virsh"
for host in a b c; do
    printf '   $ apfs libvirtd --mount $%s\n' $host
    exec {said}< <(exec apfs libvirtd --mount "${!host}")
    daemons+=($!)
    read -r "uri_$host" <&"$said" || exit 1
    eval "printf '   %s\n' \"\$uri_$host\""
done
do_ 'virsh -c $uri_a nodedev-list --cap ap_queue | paste -sd " "'

step "Start a guest on host A. It uses the mediated device of the host"
sed -e "s|@GUEST@|$guest|" -e "s|@WORK@|$work|" "$here/guest.xml" > "$work/guest.xml"
do_ 'grep -A 4 "<hostdev" $work/guest.xml'
do_ 'virsh -c $uri_a create $work/guest.xml'
do_ 'cat $a/sys/devices/ap/card05/05.0004/status'
expect "$(queue "$a")" "in use"
printf '   It boots and counts on its console:\n'
until grep -q '^count 3' "$work/console.log"; do read -rt 0.2 <> <(:) || :; done
do_ 'tail -n 1 $work/console.log'

step "Migrate it to host B while it runs"
do_ 'virsh -c $uri_a migrate --live zguest --desturi $uri_b --migrateuri unix://$work/migration'
do_ 'virsh -c $uri_b list'
do_ 'cat $a/sys/devices/ap/card05/05.0004/status $b/sys/devices/ap/card05/05.0004/status'
expect "$(queue "$a") $(queue "$b")" "assigned in use"
wait_for_the_guest
printf '   It keeps counting, and no number is missing:\n'
do_ 'tail -n 1 $work/console.log'
expect "$(sed -n 's/^count \([0-9]*\).*/\1/p' "$work/console.log" | head -n -1 |
    awk 'NR > 1 && $1 != last + 1 { print "gap before " $1 } { last = $1 }')" ""

step "Show the AP bus of the guest on host B, as Linux in the guest would see it"
do_ 'apfs exec --guest 669d9b23-fe1b-4ecb-be08-a2fabca99b71 --mount $b -- ls /sys/bus/ap/devices | paste -sd " "'

step "Unplug its queues and plug them in again with virsh; the host shows the effect"
sed -n '/<hostdev/,/<\/hostdev/p' "$work/guest.xml" > "$work/device.xml"
do_ 'virsh -c $uri_b detach-device zguest $work/device.xml --live'
do_ 'cat $b/sys/devices/ap/card05/05.0004/status'
expect "$(queue "$b")" assigned
do_ 'virsh -c $uri_b attach-device zguest $work/device.xml --live'
do_ 'cat $b/sys/devices/ap/card05/05.0004/status'
expect "$(queue "$b")" "in use"

step "Try to migrate to host C: its card 05 is a CEX7, too old for a guest that uses a CEX8"
if do_ 'virsh -c $uri_b migrate --live zguest --desturi $uri_c --migrateuri unix://$work/migration-c'; then exit 1; fi
log=${uri_c#*socket=}
log=${log%/run/*}/log/qemu/zguest.log
printf '   QEMU on host C reports (%s):\n' 'log/qemu/zguest.log'
do_ 'grep -E "loading state|load of migration" $log'
printf '   and the driver of host C in its kernel log (ctl/kmsg):\n'
do_ 'cat $c/ctl/kmsg'
printf '   The guest keeps running on B:\n'
do_ 'virsh -c $uri_b domstate zguest'
wait_for_the_guest
do_ 'tail -n 1 $work/console.log'

step "Predict the result with apfs migrate --check"
if do_ 'apfs migrate --check $b $c 669d9b23-fe1b-4ecb-be08-a2fabca99b71'; then exit 1; fi

step "Clean up: the guest ends with its libvirtd"
printf '\nmigrate: done\n'
