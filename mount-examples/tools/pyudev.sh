#!/bin/bash
# pyudev: enumeration, and monitors of the kernel's and of udevd's events without a udevd.
. "$(dirname -- "$0")/prelude.sh"

cat > /run/example.py <<'PYTHON'
import pyudev

context = pyudev.Context()
for subsystem in ("ap", "mdev", "matrix"):
    print(subsystem, [device.sys_name for device in context.list_devices(subsystem=subsystem)])
queue = pyudev.Devices.from_name(context, "ap", "00.0006")
print(queue.device_path, dict(queue.properties))
print(queue.find_parent("ap", "ap_card").sys_name, queue.attributes.asstring("config"))
print([child.sys_name for child in pyudev.Devices.from_path(context, "/devices/ap/card00").children])
monitors = {}
for source in ("kernel", "udev"):
    monitors[source] = pyudev.Monitor.from_netlink(context, source)
    monitors[source].filter_by("mdev")
    monitors[source].start()
with open("/sys/devices/vfio_ap/matrix/mdev_supported_types/vfio_ap-passthrough/create", "w") as create:
    create.write("11111111-2222-4333-8444-555555555555")
for source, monitor in monitors.items():
    for _ in range(2):
        # None: an event that the filter left out, such as those of mounts, which every network namespace hears of.
        while (device := monitor.poll(timeout=30)) is None:
            pass
        print(source, device.action, device.device_path, device.driver)
PYTHON
t /usr/bin/python3 /run/example.py
