#!/bin/bash
# driverctl: binds queues to vfio_ap one by one, by driver_override. This requires both masks to be all ones.
. "$(dirname -- "$0")/prelude.sh" --scenario default --tmpfs /etc/driverctl.d

Q=05.0004
# The AP bus prints an empty line for "no override", driverctl knows only "(null)": it marks every queue with [*].
t driverctl -b ap list-devices
t driverctl -b ap -v set-override $Q vfio_ap
t driverctl -b ap list-devices
t driverctl -b ap list-overrides
t readlink /sys/devices/ap/card05/$Q/driver
t cat /sys/devices/ap/card05/$Q/driver_override
t ls /etc/driverctl.d
t driverctl -b ap -v unset-override $Q
t readlink /sys/devices/ap/card05/$Q/driver
t ls -A /etc/driverctl.d

# No module has this name, so modprobe is asked and must fail.
t driverctl -b ap set-override $Q cex4queue

# With a mask in use the bus refuses overrides; driverctl goes on, and the queue is where it was.
t tee /sys/bus/ap/apmask <<< -6
t driverctl -b ap -v set-override $Q vfio_ap
t readlink /sys/devices/ap/card05/$Q/driver
t driverctl -b ap -v list-devices
