/* SPDX-License-Identifier: MIT
 *
 * The AP bridge and its bus, which QEMU makes only if the CPU model has AP instructions, and TCG's models have not.
 */
#include "plugin.h"

/* Called for each device that QEMU has realized. A machine of the type s390-ccw-virtio makes its AP bridge, if it does,
   just before its channel subsystem: this is the moment. All that follows, -device options too, finds the bus. */
static void realized(struct listener *listener, Object *device)
{
    (void)listener;
    Object *machine = qdev_get_machine();
    if (!object_dynamic_cast(device, "virtual-css-bridge") || object_resolve_path_component(machine, "ap-bridge")) {
        return;
    }
    Object *bridge = qdev_new("ap-bridge");
    object_property_add_child(machine, "ap-bridge", bridge);
    sysbus_realize_and_unref(bridge, &error_fatal);
    qbus_set_hotplug_handler(qbus_new("ap-bus", bridge, "ap-bus"), bridge);
}

/* Arrange that the machine that is about to be made gets an AP bus. */
void ap_bus_prepare(void)
{
    static struct listener listener = {.realize = realized};
    device_listener_register(&listener);
}
