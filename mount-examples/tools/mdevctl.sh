#!/bin/bash
# mdevctl: defines, starts, lists and stops mediated devices of vfio_ap.
. "$(dirname -- "$0")/prelude.sh" --tmpfs /etc/mdevctl.d

mkdir -p /etc/mdevctl.d/scripts.d/{callouts,notifiers}
matrix=/sys/devices/vfio_ap/matrix
t mdevctl types
t mdevctl define --uuid $U1 --parent matrix --type vfio_ap-passthrough
t mdevctl modify --uuid $U1 --addattr=assign_adapter --value=0x2
t mdevctl modify --uuid $U1 --addattr=assign_domain --value=0x1f
t mdevctl modify --uuid $U1 --addattr=assign_control_domain --value=0x6
t cat /etc/mdevctl.d/matrix/$U1; echo
t mdevctl list -d
t mdevctl list -d --dumpjson
t mdevctl start --uuid $U1
t cat $matrix/$U1/matrix
t mdevctl list -v
t mdevctl list --dumpjson
t mdevctl modify --uuid $U1 --auto
t mdevctl list -d

# Queue 05.0006 is reserved for the host: the start is undone, and the kernel's error is shown.
t mdevctl define --uuid $U2 --parent matrix --type vfio_ap-passthrough
t mdevctl modify --uuid $U2 --addattr=assign_adapter --value=5
t mdevctl modify --uuid $U2 --addattr=assign_domain --value=6
t mdevctl start --uuid $U2
t ls -d $matrix/$U2
t grep -o '"why": .*' /dev/apfs/ctl/journal

# A device whose queues are assigned to others.
t mdevctl modify --uuid $U2 --delattr --index 0
t mdevctl modify --uuid $U2 --addattr=assign_adapter --index=0 --value=2
t mdevctl start --uuid $U2
t grep 'already assigned' /dev/apfs/ctl/kmsg

t mdevctl modify --uuid $U1 --delattr --index 2
t mdevctl modify --uuid $U1 --addattr=assign_adapter --index=0 --value=7
t mdevctl list -d -v
t mdevctl stop --uuid $U1
t mdevctl stop --uuid $U1
t mdevctl undefine --uuid $U1
t mdevctl undefine --uuid $U2
t mdevctl define --uuid $M
t mdevctl undefine --uuid $M
t mdevctl start --uuid $U1 --parent matrix --type nosuch
t mdevctl start --uuid $M --parent matrix --type vfio_ap-passthrough
echo '{"mdev_type":"vfio_ap-passthrough","start":"manual","attrs":[{"assign_adapter":"2"},{"assign_domain":"31"}]}' > /run/j.json
t mdevctl start --uuid $U1 --parent matrix --jsonfile /run/j.json
t cat $matrix/$U1/matrix
t mdevctl stop --uuid $U1
t mdevctl list

# Devices with automatic start are started when the parent registers.
t mdevctl define --uuid $U1 --parent matrix --type vfio_ap-passthrough --auto
t mdevctl start-parent-mdevs matrix
t mdevctl list
