#!/bin/bash
# lszcrypt, built for s390x, under qemu-user: shows the cards and queues of the emulated host.
cache=$(dirname -- "$0")/../../.cache/s390x
# Outside: inside there is no network.
[ -n "${APFS_MOUNT-}" ] || "$(dirname -- "$0")/fetch-s390x.sh" "$cache" || exit 1
. "$(dirname -- "$0")/prelude.sh"

lszcrypt() { qemu-s390x-static -L "$cache/root" "$cache/root/sbin/lszcrypt" "$@"; }

t lszcrypt
t lszcrypt -V
t lszcrypt -VV
t lszcrypt -b
t lszcrypt -d
for device in 0 1 2 7 0.6; do t lszcrypt -c $device; done
t lszcrypt 00
t lszcrypt -V 1.0b
t lszcrypt .0b
t lszcrypt 02.0006 .000b
t lszcrypt 05
t lszcrypt xyz
t lszcrypt --nonsense

# What changes is seen: a card out of order, a queue offline, a guest.
echo 0 > /sys/devices/ap/card01/config
echo 0 > /sys/devices/ap/card00/00.000b/online
echo 1 > /dev/vfio-ap/$M/guest
t lszcrypt -V
