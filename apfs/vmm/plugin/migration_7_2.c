/* SPDX-License-Identifier: MIT
 *
 * Live migration with QEMU 7.2, whose own code for VFIO devices speaks a protocol that no kernel has any more.
 *
 * Behaves as QEMU 10.0 does with a device whose driver offers STOP_COPY and nothing else: the same ioctls at the same
 * moments, the same sections in the stream, the same recoveries.
 */
#include <errno.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "plugin.h"

#ifndef VFIO_DEVICE_FEATURE_MIG_DATA_SIZE /* headers before Linux 6.2 */
#define VFIO_DEVICE_FEATURE_MIG_DATA_SIZE 9
#endif

/* The stream of a VFIO device is a row of tags of 64 bits; one has a length and so many bytes behind it. */
enum tag {
    TAG_END = 1,
    TAG_CONFIGURATION,
    TAG_SETUP,
    TAG_DATA,
};
#define TAG(name) (0xffffffffef100000 + (name))

#define BUFFER (1 << 20)
#define PENDING_UNKNOWN (100ull << 30) /* more than any downtime allows: the migration does not complete */

struct device {
    struct notifier notifier; /* first: QEMU calls with a pointer to it */
    struct vfio_device *vfio;
    Error *blocker;
    void *state_handler; /* NULL if the device cannot migrate */
    enum vfio_device_mig_state state;
    int stream;   /* descriptor of the driver's stream, -1: none */
    int failure;  /* -errno of a change of state since the migration began that could be reported to nobody */
    struct device *next;
};
static struct device *devices;
static int64_t transferred; /* bytes read from drivers since the migration began */

static const char *name(enum vfio_device_mig_state state)
{
    static const char *const names[] = {"ERROR", "STOP", "RUNNING", "STOP_COPY", "RESUMING"};
    return names[state];
}

/* Ask the driver for a state; its errno, or 0. */
static int ask(const struct device *device, enum vfio_device_mig_state state, int *stream)
{
    struct {
        struct vfio_device_feature header;
        struct vfio_device_feature_mig_state state;
    } request = {
        {.argsz = sizeof request, .flags = VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE},
        {.device_state = state, .data_fd = -1},
    };
    if (ioctl(device->vfio->fd, VFIO_DEVICE_FEATURE, &request)) {
        return errno;
    }
    *stream = request.state.data_fd;
    return 0;
}

/* Change the state; 0 or -errno. After a failure the device is in the state `recovery`, or was reset, after which it runs:
   at once if `recovery` is ERROR. A device that cannot even be reset must not go on, nor the guest that has it. */
static int set_state(struct device *device, enum vfio_device_mig_state state, enum vfio_device_mig_state recovery)
{
    int stream = -1;
    if (state == device->state) {
        return 0;
    }
    int error = ask(device, state, &stream);
    if (!error) {
        device->state = state;
        if (stream >= 0 && device->stream >= 0) {
            error_report("%s: the driver began a stream before the last one was closed", device->vfio->name);
            close(stream);
            return -EBADF;
        }
        if (stream >= 0) {
            device->stream = stream;
        }
        return 0;
    }
    error_report("%s: Failed setting device to %s: %s", device->vfio->name, name(state), strerror(error));
    if (recovery != VFIO_DEVICE_STATE_ERROR) {
        int second = ask(device, recovery, &stream);
        if (!second) {
            device->state = recovery;
            return -error;
        }
        error_report("%s: Failed setting device to %s: %s", device->vfio->name, name(recovery), strerror(second));
    }
    if (ioctl(device->vfio->fd, VFIO_DEVICE_RESET)) {
        hw_error("%s: Failed resetting device: %s", device->vfio->name, strerror(errno));
    }
    device->state = VFIO_DEVICE_STATE_RUNNING;
    return -error;
}

static int set_state_or_reset(struct device *device, enum vfio_device_mig_state state)
{
    return set_state(device, state, VFIO_DEVICE_STATE_ERROR);
}

static void close_stream(struct device *device)
{
    if (device->stream >= 0) {
        close(device->stream);
        device->stream = -1;
    }
}

/* The VM has started or stopped. */
static void vm_changed(void *opaque, bool running, int run_state)
{
    (void)run_state;
    struct device *device = opaque;
    int failure = set_state_or_reset(device, running ? VFIO_DEVICE_STATE_RUNNING : VFIO_DEVICE_STATE_STOP);
    if (failure) {
        device->failure = failure;
    }
}

/* A migration has begun, failed, been cancelled or completed. */
static void migration_changed(struct notifier *notifier, void *migration)
{
    if (migration_has_failed(migration)) {
        set_state_or_reset((struct device *)notifier, VFIO_DEVICE_STATE_RUNNING);
    }
}

static int save_setup(QEMUFile *file, void *opaque)
{
    struct device *device = opaque;
    if (migrate_postcopy_ram()) {
        error_report("%s: VFIO migration is not supported with postcopy migration", device->vfio->name);
        return -EOPNOTSUPP;
    }
    transferred = 0;
    device->failure = 0;
    qemu_put_be64(file, TAG(TAG_SETUP));
    qemu_put_be64(file, TAG(TAG_END));
    return qemu_file_get_error(file);
}

/* QEMU completes the migration as soon as less is pending than can be sent within the downtime that is allowed, by the
   bandwidth that it sees: nothing before it has measured, or while there is nothing to send. Newer ones do not ask a
   device then; counted here, a device would keep the VM from migrating for as long as the guest writes no memory. */
static void save_pending(QEMUFile *file, void *opaque, uint64_t threshold, uint64_t *precopy_only, uint64_t *compatible,
                         uint64_t *postcopy_only)
{
    (void)file, (void)compatible, (void)postcopy_only;
    struct device *device = opaque;
    uint64_t size;
    if (threshold) {
        bool known = device_feature_get(device->vfio->fd, VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, &size);
        *precopy_only += known ? size : PENDING_UNKNOWN;
    }
}

/* There is nothing to send while the guest runs. */
static bool is_active_iterate(void *opaque)
{
    (void)opaque;
    return false;
}

static int save_complete(QEMUFile *file, void *opaque)
{
    struct device *device = opaque;
    int result = device->failure;
    if (!result) {
        result = set_state(device, VFIO_DEVICE_STATE_STOP_COPY, VFIO_DEVICE_STATE_STOP);
    }
    if (result) {
        return result;
    }
    uint8_t *buffer = malloc(BUFFER);
    if (!buffer) {
        return -ENOMEM;
    }
    ssize_t size;
    while ((size = read(device->stream, buffer, BUFFER)) > 0) {
        qemu_put_be64(file, TAG(TAG_DATA));
        qemu_put_be64(file, size);
        qemu_put_buffer(file, buffer, size);
        transferred += size;
    }
    result = size < 0 ? -errno : 0;
    free(buffer);
    if (result) {
        error_report("%s: Failed reading the device's state: %s", device->vfio->name, strerror(-result));
        return result;
    }
    qemu_put_be64(file, TAG(TAG_END));
    return qemu_file_get_error(file);
}

static void save_cleanup(void *opaque)
{
    struct device *device = opaque;
    if (device->state == VFIO_DEVICE_STATE_STOP_COPY) {
        set_state_or_reset(device, VFIO_DEVICE_STATE_STOP);
    }
    close_stream(device);
}

static int load_setup(QEMUFile *file, void *opaque)
{
    (void)file;
    struct device *device = opaque;
    return set_state(device, VFIO_DEVICE_STATE_RESUMING, device->state);
}

/* Hand `size` bytes of the stream to the driver, whose refusal is the error of the migration. */
static int load_data(QEMUFile *file, struct device *device, uint64_t size)
{
    uint8_t buffer[32 << 10];
    while (size) {
        size_t got = qemu_get_buffer(file, buffer, size < sizeof buffer ? size : sizeof buffer);
        if (!got) {
            int error = qemu_file_get_error(file);
            return error ? error : -EIO;
        }
        for (size_t done = 0; done < got;) {
            ssize_t taken = write(device->stream, buffer + done, got - done);
            if (taken <= 0) {
                return taken ? -errno : -EIO;
            }
            done += taken;
        }
        size -= got;
    }
    return 0;
}

static int load_state(QEMUFile *file, void *opaque, int version)
{
    (void)version;
    for (;;) {
        uint64_t tag = qemu_get_be64(file);
        int error = qemu_file_get_error(file);
        if (!error && tag == TAG(TAG_DATA)) {
            error = load_data(file, opaque, qemu_get_be64(file));
        } else if (!error && tag == TAG(TAG_END)) {
            return 0;
        } else if (!error && tag != TAG(TAG_SETUP) && tag != TAG(TAG_CONFIGURATION)) { /* these are empty */
            error_report("%s: no tag of a VFIO device's stream: 0x%llx", ((struct device *)opaque)->vfio->name,
                         (unsigned long long)tag);
            error = -EINVAL;
        }
        if (error) {
            return error;
        }
    }
}

static int load_cleanup(void *opaque)
{
    close_stream(opaque);
    return 0;
}

static const struct save_handlers_7_2 handlers = {
    .save_setup = save_setup,
    .save_live_pending = save_pending,
    .is_active_iterate = is_active_iterate,
    .save_live_complete_precopy = save_complete,
    .save_cleanup = save_cleanup,
    .load_setup = load_setup,
    .load_state = load_state,
    .load_cleanup = load_cleanup,
};

/* QEMU 7.2 leaves VFIO devices out of its answer to query-migrate. Where there are numbers of RAM, theirs belong. */
static void query_migrate(QDict *arguments, Object **result, Error **errp)
{
    qmp_marshal_query_migrate(arguments, result, errp);
    QDict *answer = (QDict *)*result;
    if (answer && qdict_haskey(answer, "ram") && !qdict_haskey(answer, "vfio") && devices && devices->state_handler) {
        QDict *vfio = qdict_new();
        qdict_put_int(vfio, "transferred", transferred);
        qdict_put_obj(answer, "vfio", vfio);
    }
}

static bool count_in_query_migrate(void)
{
    struct qmp_command *command = qmp_find_command(&qmp_commands, "query-migrate");
    if (!command || strcmp(command->name, "query-migrate")) {
        return false;
    }
    if (command->function == qmp_marshal_query_migrate) {
        command->function = query_migrate;
    }
    return command->function == query_migrate;
}

static int block(struct device *device, int error, Error **errp)
{
    if (error == ENOTTY) {
        error_setg(&device->blocker, "%s: VFIO migration is not supported in kernel", device->vfio->name);
    } else {
        error_setg(&device->blocker, "%s: Migration couldn't be initialized for VFIO device, err: %d (%s)",
                   device->vfio->name, -error, strerror(error));
    }
    int result = migrate_add_blocker(device->blocker, errp);
    if (result) {
        error_free(device->blocker);
        device->blocker = NULL;
    }
    return result;
}

static void forget(struct device *device)
{
    struct device **link = &devices;
    while (*link != device) {
        link = &(*link)->next;
    }
    *link = device->next;
    free(device);
}

static bool begin(struct vfio_device *vfio, Error **errp)
{
    if (!count_in_query_migrate()) {
        return false;
    }
    struct device *device = calloc(1, sizeof *device);
    if (!device) {
        error_setg(errp, "%s: %s", vfio->name, strerror(ENOMEM));
        return false;
    }
    *device = (struct device){.vfio = vfio, .state = VFIO_DEVICE_STATE_RUNNING, .stream = -1, .next = devices};
    devices = device;
    uint64_t flags = 0;
    int error = device_feature_get(vfio->fd, VFIO_DEVICE_FEATURE_MIGRATION, &flags) ? 0 : errno;
    if (!error && !(flags & VFIO_MIGRATION_STOP_COPY)) {
        error = EOPNOTSUPP;
    }
    if (error) {
        if (block(device, error, errp)) {
            forget(device);
            return false;
        }
        return true;
    }
    char id[256], *path = qdev_get_dev_path(vfio->device);
    snprintf(id, sizeof id, "%s/vfio", path);
    free(path);
    register_savevm_live(id, -1, 1, &handlers, device);
    device->state_handler = qdev_add_vm_change_state_handler(vfio->device, vm_changed, device);
    device->notifier.notify = migration_changed;
    add_migration_state_change_notifier(&device->notifier);
    return true;
}

static void end(struct vfio_device *vfio)
{
    struct device *device = devices;
    while (device->vfio != vfio) {
        device = device->next;
    }
    if (device->state_handler) {
        remove_migration_state_change_notifier(&device->notifier);
        qemu_del_vm_change_state_handler(device->state_handler);
        unregister_savevm(vfio->device, "vfio", device);
        close_stream(device);
    } else {
        migrate_del_blocker(device->blocker);
        error_free(device->blocker);
    }
    forget(device);
}

const struct migration migration_7_2 = {begin, end};
