/* SPDX-License-Identifier: MIT
 *
 * What the plugin uses of QEMU: functions and layouts of its executable, none of which are in QEMU's plugin interface.
 *
 * Functions are weak, so that the plugin can be loaded into a QEMU that lacks one, and say so (see plugin.c). Layouts
 * are those of the versions in the table of plugin.c; each is compared with what QEMU itself says of the object before
 * it is used.
 */
#ifndef APFS_QEMU_H
#define APFS_QEMU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Object Object;
typedef struct ObjectClass ObjectClass;
typedef struct Error Error;
typedef struct QEMUFile QEMUFile;
typedef struct QDict QDict;

#define WEAK __attribute__((weak))
#define PRINTF(text, first) __attribute__((format(printf, text, first)))

/* util/error.c, util/error-report.c */
extern WEAK Error *error_fatal;
WEAK PRINTF(5, 6) void error_setg_internal(Error **, const char *file, int line, const char *function,
                                           const char *format, ...);
WEAK void error_propagate(Error **to, Error *from);
WEAK void error_free(Error *);
WEAK PRINTF(1, 2) void error_report(const char *format, ...);
WEAK PRINTF(1, 2) void hw_error(const char *format, ...);
#define error_setg(errp, ...) error_setg_internal(errp, __FILE__, __LINE__, __func__, __VA_ARGS__)

/* monitor: the version, and the table of QMP commands */
struct version {
    const struct {
        int64_t major, minor, micro;
    } *qemu;
    const char *package;
};
WEAK struct version *qmp_query_version(Error **);
WEAK void qapi_free_VersionInfo(struct version *);
typedef void QmpFunction(QDict *arguments, Object **result, Error **);
struct qmp_command {
    const char *name;
    QmpFunction *function;
};
extern WEAK char qmp_commands;
WEAK struct qmp_command *qmp_find_command(void *commands, const char *name);
WEAK QmpFunction qmp_marshal_query_migrate;
WEAK QDict *qdict_new(void);
WEAK int qdict_haskey(const QDict *, const char *key);
WEAK void qdict_put_obj(QDict *, const char *key, void *value);
WEAK void qdict_put_int(QDict *, const char *key, int64_t value);

/* qom/object.c */
struct property { /* ObjectProperty */
    const char *name, *type, *description;
    void *get, *set, *resolve, *release, *init;
    const struct {
        const char *name;
        const void *info;
        ptrdiff_t offset;
    } *field; /* Property, for those that are fields of a device */
};
WEAK Object *object_new(const char *type);
WEAK void object_unref(Object *);
WEAK ObjectClass *object_class_by_name(const char *type);
WEAK Object *object_dynamic_cast(Object *, const char *type);
WEAK Object *object_resolve_path_component(Object *parent, const char *name);
WEAK struct property *object_property_find(Object *, const char *name);
WEAK struct property *object_property_add_child(Object *, const char *name, Object *child);

/* hw/core: devices and buses */
typedef void Realize(Object *device, Error **);
typedef void Unrealize(Object *device);
struct listener { /* DeviceListener */
    void (*realize)(struct listener *, Object *device);
    void (*unrealize)(struct listener *, Object *device);
    bool (*hide_device)(struct listener *, const QDict *options, bool from_json, Error **);
    void *link[2];
};
WEAK Object *qdev_get_machine(void);
WEAK Object *qdev_new(const char *type);
WEAK Object *qbus_new(const char *type, Object *parent, const char *name);
WEAK void qbus_set_hotplug_handler(Object *bus, Object *handler);
WEAK bool sysbus_realize_and_unref(Object *device, Error **);
WEAK void device_listener_register(struct listener *);
WEAK void device_class_set_parent_realize(ObjectClass *, Realize *, Realize **parent);
WEAK void device_class_set_parent_unrealize(ObjectClass *, Unrealize *, Unrealize **parent);
WEAK const void *qdev_get_vmsd(Object *device);
WEAK char *qdev_get_dev_path(Object *device);

/* system (softmmu): run states */
typedef void StateChanged(void *opaque, bool running, int state);
WEAK void *qdev_add_vm_change_state_handler(Object *device, StateChanged *, void *opaque);
WEAK void qemu_del_vm_change_state_handler(void *handler);

/* migration */
struct notifier { /* Notifier of QEMU 7.2 */
    void (*notify)(struct notifier *, void *data);
    void *link[2];
};
struct save_handlers_7_2 { /* SaveVMHandlers of QEMU 7.2 */
    void (*save_state)(QEMUFile *, void *opaque);
    void (*save_cleanup)(void *opaque);
    int (*save_live_complete_postcopy)(QEMUFile *, void *opaque);
    int (*save_live_complete_precopy)(QEMUFile *, void *opaque);
    bool (*is_active)(void *opaque);
    bool (*has_postcopy)(void *opaque);
    bool (*is_active_iterate)(void *opaque);
    int (*save_live_iterate)(QEMUFile *, void *opaque);
    int (*save_setup)(QEMUFile *, void *opaque);
    void (*save_live_pending)(QEMUFile *, void *opaque, uint64_t threshold, uint64_t *precopy_only,
                              uint64_t *compatible, uint64_t *postcopy_only);
    int (*load_state)(QEMUFile *, void *opaque, int version);
    int (*load_setup)(QEMUFile *, void *opaque);
    int (*load_cleanup)(void *opaque);
    int (*resume_prepare)(void *migration, void *opaque);
};
WEAK int register_savevm_live(const char *id, uint32_t instance, int version, const void *handlers, void *opaque);
WEAK void unregister_savevm(Object *, const char *id, void *opaque);
WEAK void add_migration_state_change_notifier(struct notifier *);
WEAK void remove_migration_state_change_notifier(struct notifier *);
WEAK bool migration_has_failed(void *migration);
WEAK bool migrate_postcopy_ram(void);
WEAK int migrate_add_blocker(Error *reason, Error **); /* of QEMU 7.2; later ones take Error ** */
WEAK void migrate_del_blocker(Error *reason);          /* the same */
WEAK void qemu_put_be64(QEMUFile *, uint64_t);
WEAK uint64_t qemu_get_be64(QEMUFile *);
WEAK void qemu_put_buffer(QEMUFile *, const uint8_t *, size_t);
WEAK size_t qemu_get_buffer(QEMUFile *, uint8_t *, size_t);
WEAK int qemu_file_get_error(QEMUFile *);

/* hw/vfio */
struct vfio_device { /* VFIODevice from sysfsdev to type, the same in 7.2 and 10.0 */
    const char *sysfsdev, *name;
    Object *device;
    int fd, type;
};
enum { VFIO_DEVICE_TYPE_AP = 3 };
struct vfio_device_10 { /* VFIODevice of QEMU 10.0 up to the last member that is used */
    void *next[2], *container_next[2];
    struct vfio_device_10 *global_next, **global_back;
    void *group, *container;
    struct vfio_device core;
    bool mdev, reset_works, needs_reset, no_mmap, ram_block_discard_allowed;
    enum { AUTO, ON, OFF } enable_migration;
    int migration_multifd_transfer;
    bool migration_events;
    const struct vfio_device_ops_10 *ops;
};
struct vfio_device_ops_10 { /* VFIODeviceOps of QEMU 10.0 */
    void (*compute_needs_reset)(struct vfio_device_10 *);
    int (*hot_reset_multi)(struct vfio_device_10 *);
    void (*eoi)(struct vfio_device_10 *);
    Object *(*get_object)(struct vfio_device_10 *);
    int (*save_config)(struct vfio_device_10 *, QEMUFile *, Error **);
    int (*load_config)(struct vfio_device_10 *, QEMUFile *);
};
extern WEAK struct vfio_device_10 *vfio_device_list;
WEAK bool vfio_migration_realize(struct vfio_device_10 *, Error **);
WEAK void vfio_migration_exit(struct vfio_device_10 *);

#endif
