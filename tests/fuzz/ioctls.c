/*
 * Ioctls of VFIO's type byte, of all numbers, with structs that are random or almost right, on every kind of
 * descriptor, by several threads, while signals arrive and descriptors are closed by others.
 *
 *     ioctls ROUNDS SEED
 *
 * Says "ready", waits for a line, does as many ioctls in each thread, closes all it has, says how often which errno came
 * back from which kind of descriptor, and waits for another line. Ends with 1 if an errno is none that Linux would give.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { THREADS = 3, SLOTS = 24, LAST = 512 + 256, PAGE = 4096, ERRNOS = 134 };
enum kind { CONTAINER, GROUP, DEVICE, IOMMU, FOREIGN, KINDS };

static const char *const kinds[KINDS] = {"container", "group", "device", "iommu", "foreign"};
static const char *const nodes[] = {"/dev/vfio/vfio", "/dev/vfio/0", "/dev/vfio/devices/vfio0", "/dev/iommu"};

/*
 * The model: what Linux gives for each kind, whatever is asked. EINTR: a signal came before the request was seen. Another
 * thread may have made the descriptor one of another kind by the time of the ioctl, so what is usual for one is for all.
 */
#define USUAL ENOTTY, EINVAL, EFAULT, EBADF, EINTR, ENODEV, EBUSY, EPERM, EOPNOTSUPP, EACCES
static const int model[KINDS][24] = {
    [CONTAINER] = {USUAL, EEXIST, ENOENT, ENOSPC, E2BIG, ENOMEM, EOVERFLOW, ENXIO},
    [GROUP] = {USUAL, EMFILE, ENOENT, EBADFD},
    [DEVICE] = {USUAL, EMFILE, ENOENT, E2BIG, EIO, EEXIST},
    [IOMMU] = {USUAL, EEXIST, ENOENT, E2BIG, EOVERFLOW, EADDRINUSE, ENOSPC, ENOMEM, EMFILE, ERANGE, EMEDIUMTYPE},
    [FOREIGN] = {USUAL, EIO},
};

static _Atomic int slots[SLOTS];
static enum kind slot_kinds[SLOTS];
static _Atomic long seen[KINDS][ERRNOS];
static _Atomic int wrong;
static long rounds;
static char *readonly, *edge;

static uint32_t chance(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

static int made(int slot)
{
    int pair[2];
    switch (slot % 12) {
    case 0: case 1: case 2: case 3: case 4: case 5:
        return open(nodes[(slot_kinds[slot])], O_RDWR | O_CLOEXEC);
    case 6:
        return eventfd(0, EFD_NONBLOCK);
    case 7:
        return open("/dev/null", O_RDWR);
    case 8:
        return open("/sys/bus/ap/apmask", O_RDONLY);
    case 9:
        if (pipe(pair))
            return -1;
        close(pair[1]);
        return pair[0];
    case 10:
        return socket(AF_UNIX, SOCK_STREAM, 0);
    default:
        return -1;
    }
}

static void fill(unsigned char *data, uint64_t *state)
{
    static const uint32_t sizes[] = {0, 4, 8, 12, 16, 20, 24, 32, 40, 48, 56, 64, 72, PAGE, PAGE + 1, ~0u};
    uint32_t *words = (uint32_t *)data;
    for (int at = 0; at < 32; at++) {
        switch (chance(state) % 6) {
        case 0: words[at] = chance(state); break;
        case 1: words[at] = atomic_load(&slots[chance(state) % SLOTS]); break;
        case 2: words[at] = 1u << chance(state) % 32; break;
        case 3: words[at] = (uint32_t)(uintptr_t)edge; break;
        default: words[at] = chance(state) % 5;
        }
    }
    if (chance(state) % 8)
        words[0] = sizes[chance(state) % (sizeof(sizes) / sizeof(*sizes))];
    if (chance(state) % 3)
        words[1] = (chance(state) % 4 << 16) | chance(state) % 12; /* flags of VFIO_DEVICE_FEATURE, or small ones */
    if (!(chance(state) % 4))
        memcpy(data, "669d9b23-fe1b-4ecb-be08-a2fabca99b71", 37);
}

static unsigned long argument(unsigned char *data, uint64_t *state)
{
    switch (chance(state) % 16) {
    case 0: return 0;
    case 1: return chance(state) % 10;
    case 2: return (unsigned long)readonly;
    case 3: return (unsigned long)edge + PAGE - chance(state) % 40; /* what is behind is not mapped */
    case 4: return ~0ul - chance(state) % 64;
    case 5: return (unsigned long)edge + PAGE;
    default: fill(data, state); return (unsigned long)data;
    }
}

/* A step on the way of a VMM, so that there are devices, sessions and mappings to be confused. */
static void proper(uint64_t *state, int step)
{
    int container = atomic_load(&slots[0]), group = atomic_load(&slots[1]), iommu = atomic_load(&slots[3]);
    int device = atomic_load(&slots[2]);
    uint32_t bind[] = {16, 0, (uint32_t)iommu, 0}, alloc[] = {12, 0, 0}, attach[] = {12, 0, 1};
    uint32_t move[] = {16, 0x20002, 1 + chance(state) % 4, ~0u}, reset = 0;
    switch (step) {
    case 0: ioctl(group, 0x3b68, &container); break;
    case 1: ioctl(container, 0x3b66, 1 + 2 * (chance(state) % 2)); break;
    case 2:
        device = ioctl(group, 0x3b6a, "669d9b23-fe1b-4ecb-be08-a2fabca99b71");
        if (device >= 0 && (device = atomic_exchange(&slots[14], device)) >= 0)
            close(device);
        break;
    case 3: ioctl(iommu, 0x3b81, alloc); break;
    case 4: ioctl(device, 0x3b76, bind); break;
    case 5: ioctl(device, 0x3b77, attach); break;
    case 6:
        if (!ioctl(chance(state) % 2 ? device : atomic_load(&slots[14]), 0x3b75, move) && (int)move[3] >= 0)
            close(move[3]);
        break;
    default: ioctl(device, 0x3b6f, &reset);
    }
}

static void one(uint64_t *state)
{
    unsigned char data[PAGE] = {0};
    int slot = chance(state) % SLOTS, fd = atomic_load(&slots[slot]);
    enum kind kind = slot_kinds[slot];
    unsigned int number = 0x3b00 | (chance(state) % 4 ? 0x64 + chance(state) % 0x40 : chance(state) % 256);
    unsigned long value = argument(data, state);
    if (ioctl(fd, number, value) >= 0) {
        atomic_fetch_add(&seen[kind][0], 1);
        return;
    }
    int error = errno;
    atomic_fetch_add(&seen[kind][error], 1);
    for (int at = 0; at < 24; at++)
        if (model[kind][at] == error)
            return;
    if (atomic_fetch_add(&wrong, 1) < 10)
        printf("wrong: %s %#x arg %#lx: %s\n", kinds[kind], number, value, strerrorname_np(error));
}

static void renew(uint64_t *state)
{
    int slot = chance(state) % SLOTS, fd = atomic_exchange(&slots[slot], -1);
    if (fd >= 0)
        close(fd); /* another thread may be using it */
    atomic_store(&slots[slot], made(slot));
    if (!(chance(state) % 8)) /* what ioctls returned, and what others have just opened */
        close(12 + chance(state) % 40);
}

static void *work(void *seed)
{
    uint64_t state = (uintptr_t)seed;
    for (long round = 0; round < rounds; round++) {
        one(&state);
        if (!(chance(&state) % 3))
            proper(&state, chance(&state) % 8);
        if (!(chance(&state) % 64))
            renew(&state);
    }
    return NULL;
}

static void ignore(int number)
{
    (void)number;
}

int main(int argc, char **argv)
{
    pthread_t threads[THREADS];
    char line[8];
    if (argc != 3)
        return 2;
    rounds = atol(argv[1]);
    setvbuf(stdout, NULL, _IOLBF, 0);
    readonly = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    edge = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(edge + PAGE, PAGE);
    for (int slot = 0; slot < SLOTS; slot++) {
        slot_kinds[slot] = slot % 12 < 6 ? (enum kind)(slot % 12 % 4) : FOREIGN;
        atomic_store(&slots[slot], made(slot));
    }
    puts("ready");
    if (!fgets(line, sizeof(line), stdin))
        return 2;
    uint64_t state = atol(argv[2]);
    for (int step = 0; step < 8; step++)
        proper(&state, step);
    struct sigaction action = {.sa_handler = ignore, .sa_flags = SA_RESTART};
    struct itimerval timer = {{0, 3000}, {0, 3000}}, none = {{0, 0}, {0, 0}};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &timer, NULL);
    for (long thread = 0; thread < THREADS; thread++)
        pthread_create(&threads[thread], NULL, work, (void *)(uintptr_t)(atol(argv[2]) * THREADS + thread));
    for (int thread = 0; thread < THREADS; thread++)
        pthread_join(threads[thread], NULL);
    setitimer(ITIMER_REAL, &none, NULL);
    for (int fd = 3; fd <= LAST; fd++)
        close(fd);
    for (int kind = 0; kind < KINDS; kind++)
        for (int error = 0; error < ERRNOS; error++)
            if (seen[kind][error])
                printf("%s %s %ld\n", kinds[kind], error ? strerrorname_np(error) : "ok", seen[kind][error]);
    puts("done");
    if (!fgets(line, sizeof(line), stdin))
        return 2;
    return wrong != 0;
}
