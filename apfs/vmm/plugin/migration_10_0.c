/* SPDX-License-Identifier: MIT
 *
 * Live migration with QEMU 10.0: its own code for VFIO devices does it all, once the device asks for it.
 */
#include <linux/vfio.h>

#include "plugin.h"

static struct vfio_device_10 *whole(struct vfio_device *vfio)
{
    return (void *)((char *)vfio - offsetof(struct vfio_device_10, core));
}

static bool is_listed(const struct vfio_device_10 *device)
{
    const struct vfio_device_10 *other = vfio_device_list;
    while (other && other != device) {
        other = other->global_next;
    }
    return other;
}

/* QEMU names a device in events and in its stream by the object. */
static Object *get_object(struct vfio_device_10 *device)
{
    return device->core.device;
}

static bool begin(struct vfio_device *vfio, Error **errp)
{
    struct vfio_device_10 *device = whole(vfio);
    if (!is_listed(device)) {
        return false;
    }
    /* vfio-ap has the first operation only. */
    static struct vfio_device_ops_10 ops;
    ops.compute_needs_reset = device->ops->compute_needs_reset;
    ops.get_object = get_object;
    device->ops = &ops;
    /* Left to itself QEMU forbids the migration of a device that does not track which memory it dirties: this one, which
       writes none. But if it is told to migrate a device that cannot, realizing fails, instead of adding a blocker. */
    uint64_t flags;
    bool can = device_feature_get(vfio->fd, VFIO_DEVICE_FEATURE_MIGRATION, &flags) && flags & VFIO_MIGRATION_STOP_COPY;
    device->enable_migration = can ? ON : AUTO;
    return vfio_migration_realize(device, errp);
}

static void end(struct vfio_device *vfio)
{
    vfio_migration_exit(whole(vfio));
}

const struct migration migration_10_0 = {begin, end};
