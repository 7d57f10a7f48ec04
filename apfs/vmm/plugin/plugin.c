/* SPDX-License-Identifier: MIT
 *
 * A plugin for QEMU's s390x system emulator without KVM: an AP bus for the machine, and live migration for vfio-ap.
 *
 *   qemu-system-s390x -plugin FILE -machine s390-ccw-virtio -device vfio-ap,sysfsdev=...
 *
 * It works with symbols that QEMU's executable exports, not with QEMU's plugin interface, which knows nothing of
 * devices. So it works with the versions below and ends every other QEMU with one line.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin.h"

#define EXPORT __attribute__((visibility("default")))

/* QEMU loads a plugin only if this lies within its range, and reads it after the constructor has run. */
EXPORT int qemu_plugin_version;

static const struct known versions[] = {
    {7, 2, .plugin_api = 1, .vmsd = 160, .migration = &migration_7_2},
    {10, 0, .plugin_api = 4, .vmsd = 168, .migration = &migration_10_0},
};
static const struct known *qemu;

static const struct symbol {
    const char *name;
    const void *address;
    int major; /* of the only version that needs it, 0: all */
} symbols[] = {
#define ALL(name) {#name, (const void *)&name, 0}
#define ONLY(major, name) {#name, (const void *)&name, major}
    ALL(error_fatal),
    ALL(error_free),
    ALL(error_propagate),
    ALL(error_report),
    ALL(error_setg_internal),
    ALL(device_class_set_parent_realize),
    ALL(device_class_set_parent_unrealize),
    ALL(device_listener_register),
    ALL(object_class_by_name),
    ALL(object_dynamic_cast),
    ALL(object_new),
    ALL(object_property_add_child),
    ALL(object_property_find),
    ALL(object_resolve_path_component),
    ALL(object_unref),
    ALL(qbus_new),
    ALL(qbus_set_hotplug_handler),
    ALL(qdev_get_machine),
    ALL(qdev_get_vmsd),
    ALL(qdev_new),
    ALL(sysbus_realize_and_unref),
    ONLY(7, add_migration_state_change_notifier),
    ONLY(7, hw_error),
    ONLY(7, migrate_add_blocker),
    ONLY(7, migrate_del_blocker),
    ONLY(7, migrate_postcopy_ram),
    ONLY(7, migration_has_failed),
    ONLY(7, qdev_add_vm_change_state_handler),
    ONLY(7, qdev_get_dev_path),
    ONLY(7, qdict_haskey),
    ONLY(7, qdict_new),
    ONLY(7, qdict_put_int),
    ONLY(7, qdict_put_obj),
    ONLY(7, qemu_del_vm_change_state_handler),
    ONLY(7, qemu_file_get_error),
    ONLY(7, qemu_get_be64),
    ONLY(7, qemu_get_buffer),
    ONLY(7, qemu_put_be64),
    ONLY(7, qemu_put_buffer),
    ONLY(7, qmp_commands),
    ONLY(7, qmp_find_command),
    ONLY(7, qmp_marshal_query_migrate),
    ONLY(7, register_savevm_live),
    ONLY(7, remove_migration_state_change_notifier),
    ONLY(7, unregister_savevm),
    ONLY(10, vfio_device_list),
    ONLY(10, vfio_migration_exit),
    ONLY(10, vfio_migration_realize),
};

/* Not being able to work is fatal: the user asked for vfio-ap, and QEMU would go on to a message that explains nothing. */
__attribute__((noreturn, format(printf, 1, 2))) static void refuse(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("apfs: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(EXIT_FAILURE);
}

/* Find out which QEMU loads this. */
__attribute__((constructor)) static void meet(void)
{
    if (!qmp_query_version || !qapi_free_VersionInfo) {
        return; /* no system emulator: whoever it is reads no further */
    }
    struct version *version = qmp_query_version(NULL);
    int major = version->qemu->major, minor = version->qemu->minor, micro = version->qemu->micro;
    qapi_free_VersionInfo(version);
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        if (versions[i].major == major && versions[i].minor == minor) {
            qemu = &versions[i];
        }
    }
    if (!qemu) {
        refuse("QEMU %d.%d.%d is not one that can be given vfio-ap: that works with 7.2 and 10.0", major, minor, micro);
    }
    for (const struct symbol *symbol = symbols; symbol < symbols + sizeof symbols / sizeof *symbols; symbol++) {
        if (!symbol->address && (!symbol->major || symbol->major == major)) {
            refuse("this QEMU %d.%d.%d cannot be given vfio-ap: it does not export %s", major, minor, micro, symbol->name);
        }
    }
    qemu_plugin_version = qemu->plugin_api;
}

/* What QEMU tells a plugin, as far as it is used; the same in all versions of the interface. */
struct information {
    const char *target_name;
};

EXPORT int qemu_plugin_install(uint64_t id, const struct information *information, int argc, char **argv)
{
    (void)id, (void)argc, (void)argv;
    if (strcmp(information->target_name, "s390x")) {
        refuse("QEMU for %s cannot be given vfio-ap, only that for s390x", information->target_name);
    }
    if (!vfio_ap_prepare(qemu)) {
        refuse("this QEMU cannot be given vfio-ap: its device is not as known, or was left out");
    }
    ap_bus_prepare();
    return 0;
}
