/* A kernel whose VFIO devices answer differently when asked whether they can migrate: a preloaded ioctl().
   FEATURE_MIGRATION is the errno of the answer; 0: the device can migrate, but not by STOP_COPY. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/vfio.h>
#include <stdarg.h>
#include <stdlib.h>

int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    struct vfio_device_feature *feature = argument;
    if (request == VFIO_DEVICE_FEATURE && feature->flags == (VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIGRATION)) {
        struct vfio_device_feature_migration *migration = (void *)feature->data;
        migration->flags = VFIO_MIGRATION_P2P;
        errno = atoi(getenv("FEATURE_MIGRATION"));
        return errno ? -1 : 0;
    }
    int (*next)(int, unsigned long, ...) = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    return next(fd, request, argument);
}
