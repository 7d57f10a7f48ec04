#!/bin/bash
# chzcrypt, built for s390x, under qemu-user: changes the AP bus, cards and queues of the emulated host.
cache=$(dirname -- "$0")/../../.cache/s390x
# Outside: inside there is no network.
[ -n "${APFS_MOUNT-}" ] || "$(dirname -- "$0")/fetch-s390x.sh" "$cache" || exit 1
. "$(dirname -- "$0")/prelude.sh"

# Its errors are unbuffered and its messages are not, so they are shown apart.
chzcrypt() { qemu-s390x-static -L "$cache/root" "$cache/root/sbin/chzcrypt" "$@" 2> /run/errors; s=$?; cat /run/errors; return $s; }
events() { grep -A 5 ^change@ /dev/apfs/ctl/uevents | grep -E '^(DEVPATH|ONLINE|CONFIG)=' | tail -n "$1"; }
cards=/sys/devices/ap

t chzcrypt -V -c 60
t cat /sys/bus/ap/config_time
t chzcrypt -c abc
t chzcrypt -c 500
t chzcrypt -V -n
# With interrupts in use the bus keeps the poll thread off, and chzcrypt notices.
t chzcrypt -V -p
t cat /sys/bus/ap/poll_thread
t chzcrypt -V -t 300000
t cat /sys/bus/ap/poll_timeout
t chzcrypt -V -q 11
t cat /sys/bus/ap/ap_domain
t chzcrypt -q 300
t chzcrypt -V -d 00.0006
t events 2
t grep . $cards/card00/00.0006/online $cards/card00/00.000b/online
t chzcrypt -V -e 00.0006
t events 2
t chzcrypt -V -d 00
t events 8
t grep . $cards/card00/online $cards/card00/00.0006/online
t chzcrypt -V -e -a
t grep . $cards/card00/online $cards/card00/00.0006/online
t chzcrypt -V --config-off 01
t events 2
t grep . $cards/card01/config $cards/card01/online $cards/card01/01.0006/config
t chzcrypt -V --config-off 01
t chzcrypt -V -e 01
t chzcrypt -V --config-on 01
t events 2
t grep . $cards/card01/config $cards/card01/online
t chzcrypt -V -e 02.0006
t chzcrypt -e 05
t chzcrypt --nonsense
