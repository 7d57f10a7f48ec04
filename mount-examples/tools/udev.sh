#!/bin/bash
# udevadm and a real systemd-udevd: device information, events, and a rule that reacts to them.
. "$(dirname -- "$0")/prelude.sh"

t udevadm info -q all -p /devices/ap/card00
t udevadm info -q all -p /devices/ap/card02/02.0006
t udevadm info -q all /sys/devices/vfio_ap/matrix
t udevadm info -q all -p /devices/ap
t udevadm info -q property -p /sys/bus/mdev/devices/$M
t udevadm info -a -p /devices/ap/card00/00.0006
t udevadm trigger --dry-run --verbose --subsystem-match=ap
t udevadm trigger --verbose --subsystem-match=ap --action=change
t grep -c ^change@ /dev/apfs/ctl/uevents

# A rule as a mainframe has one: when all queues have drivers, a mask is written; and one for mediated devices.
mkdir -p /run/udev/rules.d
cat > /run/udev/rules.d/99-example.rules <<'RULES'
ACTION=="change", SUBSYSTEM=="ap", DEVPATH=="/devices/ap", ENV{BINDINGS}=="complete", ATTR{../../bus/ap/apmask}="-0x01"
ACTION=="add", SUBSYSTEM=="mdev", ENV{FROM_RULE}="yes", RUN+="/bin/sh -c 'echo $env{ACTION} $env{DEVPATH} $env{FROM_RULE} > /run/udev/added'"
RULES
/lib/systemd/systemd-udevd > /run/udevd.log 2>&1 &
wait_for 'udevadm control --ping 2> /dev/null'
: > /run/events # it is looked at before the next command has made it
# Without the machine's own events: there is one whenever anything is mounted anywhere.
stdbuf -oL udevadm monitor --kernel --udev --property --subsystem-match={ap,matrix,mdev,vfio,vfio-dev,zcrypt,misc} \
    > /run/events 2>&1 &
wait_for 'grep -q "^KERNEL - the kernel uevent" /run/events'

echo $U1 > /sys/devices/vfio_ap/matrix/mdev_supported_types/vfio_ap-passthrough/create
wait_for '[ -e /run/udev/added ]'
t cat /run/udev/added
# At the next scan the bus says that its bindings are complete again: card 02 was given to vfio_ap since the last.
echo 1 > /sys/bus/ap/scans
wait_for 'grep -q ^0x9fff /sys/bus/ap/apmask'
t cat /sys/bus/ap/apmask
t readlink /sys/devices/ap/card01/01.0006/driver
echo 1 > /sys/devices/vfio_ap/matrix/$U1/remove
echo 0 > /sys/devices/ap/card01/config
echo 0 > /sys/devices/ap/card00/online
wait_for '[ "$(grep -c "^UDEV .*/" /run/events)" = "$(grep -c "^KERNEL.*/" /run/events)" ] && grep -q "^UDEV.*card00/00.001f" /run/events'
t udevadm settle --timeout=5
# The kernel's events come in order; udevd, which works in parallel, sends each of them once more.
t sed -n 's/^KERNEL\[[0-9.]*\]//p' /run/events
sed -n 's/^KERNEL\[[0-9.]*\]//p' /run/events | sort > /run/kernel
t diff /run/kernel <(sed -n 's/^UDEV *\[[0-9.]*\]//p' /run/events | sort)
t sed -n -e '/^KERNEL.*add .*(mdev)/,/^$/{s/.*SEQNUM=.*/SEQNUM=.../;s/\[.*\]//;p}' /run/events
kill %1 %2
