/* SPDX-License-Identifier: MIT */
#ifndef APFS_PLUGIN_H
#define APFS_PLUGIN_H

#include "qemu.h"

/* How a version of QEMU migrates a VFIO device that has just been realized, and how it ends that. */
struct migration {
    bool (*begin)(struct vfio_device *, Error **);
    void (*end)(struct vfio_device *);
};
extern const struct migration migration_7_2, migration_10_0;

/* A version of QEMU that the plugin knows. */
struct known {
    int major, minor;
    int plugin_api;
    size_t vmsd; /* offset in DeviceClass of the device's VMStateDescription; its bus type follows */
    const struct migration *migration;
};

void ap_bus_prepare(void);
bool vfio_ap_prepare(const struct known *);
bool device_feature_get(int fd, uint32_t feature, uint64_t *value);

#endif
