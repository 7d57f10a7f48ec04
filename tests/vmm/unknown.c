/* A program that looks to the plugin like a QEMU, in as far as it has a version and is told to load a plugin. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

struct triple {
    int64_t major, minor, micro;
};
struct version {
    struct triple *qemu;
    char *package;
};

static struct triple triple;

struct version *qmp_query_version(void **error)
{
    static struct version version = {&triple, ""};
    (void)error;
    return &version;
}

void qapi_free_VersionInfo(struct version *version)
{
    (void)version;
}

int main(int argc, char **argv)
{
    triple = (struct triple){atoi(argv[2]), atoi(argv[3]), argc};
    puts(dlopen(argv[1], RTLD_NOW) ? "loaded" : dlerror());
    return 0;
}
