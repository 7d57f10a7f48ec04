/* SPDX-License-Identifier: MIT
 *
 * QEMU's vfio-ap devices become migratable: realize and unrealize of their class take the additional steps that those of
 * other VFIO devices take.
 */
#include <linux/vfio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "plugin.h"

static const struct migration *migration;
static Realize *realize_device;
static Unrealize *unrealize_device;

/* Read a feature of 8 bytes of a VFIO device. False, with errno, if the driver refuses. */
bool device_feature_get(int fd, uint32_t feature, uint64_t *value)
{
    struct {
        struct vfio_device_feature header;
        uint64_t value;
    } request = {.header = {.argsz = sizeof request, .flags = VFIO_DEVICE_FEATURE_GET | feature}};
    if (ioctl(fd, VFIO_DEVICE_FEATURE, &request)) {
        return false;
    }
    *value = request.value;
    return true;
}

/* Return the VFIO part of a vfio-ap device, or NULL if this QEMU's is not laid out as known.
   The property sysfsdev tells where in the device it is; what is around it must agree with the device. */
static struct vfio_device *vfio_part(Object *device)
{
    struct property *property = object_property_find(device, "sysfsdev");
    if (!property || !property->field || strcmp(property->field->name, "sysfsdev")) {
        return NULL;
    }
    struct vfio_device *vfio = (void *)((char *)device + property->field->offset);
    return vfio->device == device && vfio->type == VFIO_DEVICE_TYPE_AP ? vfio : NULL;
}

static bool is_ap(int fd)
{
    struct vfio_device_info information = {.argsz = sizeof information};
    return !ioctl(fd, VFIO_DEVICE_GET_INFO, &information) && information.flags & VFIO_DEVICE_FLAGS_AP;
}

static void realize(Object *device, Error **errp)
{
    Error *error = NULL;
    realize_device(device, &error);
    if (!error) {
        struct vfio_device *vfio = vfio_part(device);
        if (vfio && is_ap(vfio->fd) && migration->begin(vfio, &error)) {
            return;
        }
        unrealize_device(device);
        if (!error) {
            error_setg(&error, "apfs: the vfio-ap device of this QEMU is not laid out as known");
        }
    }
    error_propagate(errp, error);
}

static void unrealize(Object *device)
{
    migration->end(vfio_part(device));
    unrealize_device(device);
}

/* Take the description "vfio-ap" away from the class: all that it says is that the device cannot migrate. */
static bool clear_unmigratable(ObjectClass *class, size_t offset)
{
    struct {
        const void *vmsd;
        const char *bus_type;
    } *field = (void *)((char *)class + offset);
    Object *probe = object_new("vfio-ap");
    const char *const *vmsd = qdev_get_vmsd(probe);
    bool known = vmsd && field->vmsd == vmsd && !strcmp(*vmsd, "vfio-ap") && !strcmp(field->bus_type, "ap-bus");
    if (known) {
        field->vmsd = NULL;
    }
    object_unref(probe);
    return known;
}

/* Arrange that vfio-ap devices can migrate. False if this QEMU's are not as known. */
bool vfio_ap_prepare(const struct known *qemu)
{
    ObjectClass *class = object_class_by_name("vfio-ap");
    if (!class || !clear_unmigratable(class, qemu->vmsd)) {
        return false;
    }
    migration = qemu->migration;
    device_class_set_parent_realize(class, realize, &realize_device);
    device_class_set_parent_unrealize(class, unrealize, &unrealize_device);
    return true;
}
