/*
 * The calls that a VMM makes for a vfio_ap device, each with its result, for comparison with what Linux answers.
 *
 *     sequence legacy GROUP UUID       container and group
 *     sequence cdev INDEX              device node and iommufd
 *
 * Written against linux/vfio.h of the system; what older releases of it lack is declared here.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* Later headers have padding behind the last field. What a program says of its size comes back to it. */
#define INFO_SIZE (offsetof(struct vfio_device_info, cap_offset) + sizeof(uint32_t))
#ifndef VFIO_DEVICE_BIND_IOMMUFD
struct vfio_device_bind_iommufd { uint32_t argsz, flags; int32_t iommufd; uint32_t out_devid; };
struct vfio_device_attach_iommufd_pt { uint32_t argsz, flags, pt_id; };
struct vfio_device_detach_iommufd_pt { uint32_t argsz, flags; };
#define VFIO_DEVICE_BIND_IOMMUFD _IO(VFIO_TYPE, VFIO_BASE + 18)
#define VFIO_DEVICE_ATTACH_IOMMUFD_PT _IO(VFIO_TYPE, VFIO_BASE + 19)
#define VFIO_DEVICE_DETACH_IOMMUFD_PT _IO(VFIO_TYPE, VFIO_BASE + 20)
#endif
#define IOAS_DESTROY _IO(';', 0x80)
#define IOAS_ALLOC _IO(';', 0x81)
#define IOAS_IOVA_RANGES _IO(';', 0x84)
#define IOAS_MAP _IO(';', 0x85)
#define IOAS_UNMAP _IO(';', 0x86)
struct ioas_alloc { uint32_t size, flags, id; };
struct iova_range { uint64_t start, last; };
struct ioas_ranges { uint32_t size, id, count, reserved; uint64_t ranges, alignment; };
struct ioas_map { uint32_t size, flags, id, reserved; uint64_t va, length, iova; };
struct ioas_unmap { uint32_t size, id; uint64_t iova, length; };
struct ioas_destroy { uint32_t size, id; };

#define CALL(name, expression)                                                        \
	do {                                                                          \
		errno = 0;                                                            \
		result = (expression);                                                \
		printf("%s: %s%s", name, result < 0 ? "error " : "",                  \
		       result < 0 ? strerrorname(errno) : number(result));            \
	} while (0)

static int result;

static const char *number(int value)
{
	static char text[16];
	snprintf(text, sizeof text, "%d", value);
	return text;
}

/* glibc has a function for this, musl has none. */
static const char *strerrorname(int error)
{
	static const struct { int error; const char *name; } names[] = {
		{ EBADF, "EBADF" }, { EBADFD, "EBADFD" }, { EBUSY, "EBUSY" }, { EEXIST, "EEXIST" }, { EINVAL, "EINVAL" },
		{ EMSGSIZE, "EMSGSIZE" }, { ENOENT, "ENOENT" }, { ENOTTY, "ENOTTY" },
	};
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		if (names[i].error == error)
			return names[i].name;
	return number(error);
}

static int must(int value, const char *what)
{
	if (value < 0) {
		perror(what);
		exit(1);
	}
	return value;
}

/* New descriptors are told as numbers relative to the lowest free one. */
static int new_descriptor(const char *name, int fd)
{
	int cloexec = fd >= 0 && fcntl(fd, F_GETFD) & FD_CLOEXEC;
	printf("%s: %s\n", name, fd < 0 ? strerrorname(errno) : cloexec ? "close-on-exec" : "inherited");
	return must(fd, name);
}

static void device(int fd)
{
	struct vfio_device_info info = {.argsz = INFO_SIZE};
	CALL("DEVICE_GET_INFO", ioctl(fd, VFIO_DEVICE_GET_INFO, &info));
	printf(" argsz %u flags %#x regions %u irqs %u\n", info.argsz, info.flags, info.num_regions, info.num_irqs);
	int request = must(eventfd(0, EFD_CLOEXEC), "eventfd");
	for (unsigned index = 0; index < 3; index++) {
		struct vfio_irq_info irq = {.argsz = sizeof irq, .index = index};
		CALL("DEVICE_GET_IRQ_INFO", ioctl(fd, VFIO_DEVICE_GET_IRQ_INFO, &irq));
		printf(" index %u flags %#x count %u\n", irq.index, irq.flags, irq.count);
		struct { struct vfio_irq_set head; int32_t fd; } set = {
			{.argsz = sizeof set, .index = index, .count = 1,
			 .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER}, request};
		CALL("DEVICE_SET_IRQS", ioctl(fd, VFIO_DEVICE_SET_IRQS, &set));
		puts("");
		set.fd = -1;
		CALL("DEVICE_SET_IRQS drop", ioctl(fd, VFIO_DEVICE_SET_IRQS, &set));
		puts("");
	}
	CALL("DEVICE_RESET", ioctl(fd, VFIO_DEVICE_RESET));
	puts("");
	union { uint64_t align; char bytes[16]; } buffer = {0};
	struct vfio_device_feature *feature = (void *)buffer.bytes;
	feature->argsz = 16;
	feature->flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIGRATION;
	CALL("FEATURE GET MIGRATION", ioctl(fd, VFIO_DEVICE_FEATURE, feature));
	printf(" flags %llu\n", (unsigned long long)((struct vfio_device_feature_migration *)feature->data)->flags);
	feature->flags = VFIO_DEVICE_FEATURE_PROBE | 6;
	CALL("FEATURE PROBE DMA_LOGGING_START", ioctl(fd, VFIO_DEVICE_FEATURE, feature));
	puts("");
	struct vfio_device_feature_mig_state *state = (void *)feature->data;
	for (unsigned target = VFIO_DEVICE_STATE_STOP; target <= VFIO_DEVICE_STATE_STOP_COPY; target += 2) {
		feature->flags = VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE;
		state->device_state = target;
		CALL("FEATURE SET MIG_DEVICE_STATE", ioctl(fd, VFIO_DEVICE_FEATURE, feature));
		printf(" state %u data_fd %s\n", state->device_state, state->data_fd < 0 ? "none" : "some");
	}
	new_descriptor("data_fd", state->data_fd);
	unsigned char stream[4096];
	ssize_t length = read(state->data_fd, stream, sizeof stream);
	printf("stream:");
	for (ssize_t i = 0; i < length; i++)
		printf("%s%02x", i % 8 ? "" : " ", stream[i]);
	printf("\nread again: %zd\n", read(state->data_fd, stream, sizeof stream));
	printf("write: %s\n", write(state->data_fd, "x", 1) < 0 ? strerrorname(errno) : "taken");
	close(state->data_fd);
	state->device_state = VFIO_DEVICE_STATE_RUNNING;
	CALL("FEATURE SET RUNNING", ioctl(fd, VFIO_DEVICE_FEATURE, feature));
	printf(" state %u data_fd %d\n", state->device_state, state->data_fd);
	char byte;
	printf("read of the device: %s\n", read(fd, &byte, 1) < 0 ? strerrorname(errno) : "done");
	printf("pread of the device: %s\n", pread(fd, &byte, 1, 0) < 0 ? strerrorname(errno) : "done");
	struct vfio_region_info region = {.argsz = sizeof region};
	CALL("DEVICE_GET_REGION_INFO", ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, &region));
	puts("");
}

static int legacy(const char *group_path, const char *uuid)
{
	int group = must(open(group_path, O_RDWR), group_path);
	printf("group opened again: %s\n", open(group_path, O_RDWR) < 0 ? strerrorname(errno) : "done");
	struct vfio_group_status status = {.argsz = sizeof status};
	CALL("GROUP_GET_STATUS", ioctl(group, VFIO_GROUP_GET_STATUS, &status));
	printf(" flags %u\n", status.flags);
	int container = must(open("/dev/vfio/vfio", O_RDWR), "/dev/vfio/vfio");
	CALL("GET_API_VERSION", ioctl(container, VFIO_GET_API_VERSION));
	puts("");
	CALL("CHECK_EXTENSION TYPE1v2", ioctl(container, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU));
	puts("");
	CALL("SET_IOMMU without a group", ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	puts("");
	CALL("GROUP_GET_DEVICE_FD without a container", ioctl(group, VFIO_GROUP_GET_DEVICE_FD, uuid));
	puts("");
	CALL("GROUP_SET_CONTAINER", ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
	puts("");
	CALL("GROUP_GET_STATUS", ioctl(group, VFIO_GROUP_GET_STATUS, &status));
	printf(" flags %u\n", status.flags);
	CALL("SET_IOMMU", ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	puts("");
	struct { struct vfio_iommu_type1_info info; char rest[128]; } iommu = {.info = {.argsz = sizeof iommu.info}};
	CALL("IOMMU_GET_INFO", ioctl(container, VFIO_IOMMU_GET_INFO, &iommu));
	printf(" argsz %u flags %u pages %#llx caps at %u\n", iommu.info.argsz, iommu.info.flags,
	       (unsigned long long)iommu.info.iova_pgsizes, iommu.info.cap_offset);
	CALL("IOMMU_GET_INFO", ioctl(container, VFIO_IOMMU_GET_INFO, &iommu));
	for (uint32_t at = iommu.info.cap_offset; at; at = ((struct vfio_info_cap_header *)((char *)&iommu + at))->next)
		printf(" cap %u", ((struct vfio_info_cap_header *)((char *)&iommu + at))->id);
	puts("");
	void *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof map, .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)memory, .iova = 0, .size = 1 << 20};
	CALL("IOMMU_MAP_DMA", ioctl(container, VFIO_IOMMU_MAP_DMA, &map));
	puts("");
	CALL("IOMMU_MAP_DMA again", ioctl(container, VFIO_IOMMU_MAP_DMA, &map));
	puts("");
	errno = 0;
	int fd = new_descriptor("GROUP_GET_DEVICE_FD", ioctl(group, VFIO_GROUP_GET_DEVICE_FD, uuid));
	device(fd);
	CALL("GROUP_UNSET_CONTAINER", ioctl(group, VFIO_GROUP_UNSET_CONTAINER, &container));
	puts("");
	struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof unmap, .iova = 0, .size = 1 << 20};
	CALL("IOMMU_UNMAP_DMA", ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap));
	printf(" size %#llx\n", (unsigned long long)unmap.size);
	close(fd);
	CALL("GROUP_UNSET_CONTAINER", ioctl(group, VFIO_GROUP_UNSET_CONTAINER, &container));
	puts("");
	return 0;
}

static int cdev(const char *path)
{
	int fd = must(open(path, O_RDWR), path);
	int iommufd = must(open("/dev/iommu", O_RDWR), "/dev/iommu");
	struct vfio_device_info info = {.argsz = INFO_SIZE};
	CALL("DEVICE_GET_INFO unbound", ioctl(fd, VFIO_DEVICE_GET_INFO, &info));
	puts("");
	struct vfio_device_bind_iommufd bind = {.argsz = sizeof bind, .iommufd = fd};
	CALL("BIND_IOMMUFD to itself", ioctl(fd, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	puts("");
	bind.iommufd = iommufd;
	CALL("BIND_IOMMUFD", ioctl(fd, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	printf(" id %u\n", bind.out_devid);
	CALL("BIND_IOMMUFD again", ioctl(fd, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	puts("");
	struct ioas_alloc ioas = {.size = sizeof ioas};
	CALL("IOAS_ALLOC", ioctl(iommufd, IOAS_ALLOC, &ioas));
	printf(" id %u\n", ioas.id);
	struct vfio_device_attach_iommufd_pt attach = {.argsz = sizeof attach, .pt_id = 77};
	CALL("ATTACH_IOMMUFD_PT unknown", ioctl(fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach));
	puts("");
	attach.pt_id = ioas.id;
	CALL("ATTACH_IOMMUFD_PT", ioctl(fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach));
	printf(" id %u\n", attach.pt_id);
	struct iova_range ranges[4];
	struct ioas_ranges list = {.size = sizeof list, .id = ioas.id, .ranges = (uintptr_t)ranges};
	CALL("IOAS_IOVA_RANGES", ioctl(iommufd, IOAS_IOVA_RANGES, &list));
	printf(" count %u\n", list.count);
	CALL("IOAS_IOVA_RANGES", ioctl(iommufd, IOAS_IOVA_RANGES, &list));
	printf(" %llx-%llx alignment %llu\n", (unsigned long long)ranges[0].start, (unsigned long long)ranges[0].last,
	       (unsigned long long)list.alignment);
	void *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct ioas_map map = {.size = sizeof map, .flags = 7, .id = ioas.id, .va = (uintptr_t)memory, .length = 1 << 20};
	CALL("IOAS_MAP", ioctl(iommufd, IOAS_MAP, &map));
	puts("");
	device(fd);
	struct ioas_destroy destroy = {.size = sizeof destroy, .id = ioas.id};
	CALL("DESTROY in use", ioctl(iommufd, IOAS_DESTROY, &destroy));
	puts("");
	struct vfio_device_detach_iommufd_pt detach = {.argsz = sizeof detach};
	CALL("DETACH_IOMMUFD_PT", ioctl(fd, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach));
	puts("");
	struct ioas_unmap unmap = {.size = sizeof unmap, .id = ioas.id, .length = UINT64_MAX};
	CALL("IOAS_UNMAP", ioctl(iommufd, IOAS_UNMAP, &unmap));
	printf(" length %#llx\n", (unsigned long long)unmap.length);
	CALL("DESTROY", ioctl(iommufd, IOAS_DESTROY, &destroy));
	puts("");
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "legacy"))
		return legacy(argv[2], argv[3]);
	if (argc == 3 && !strcmp(argv[1], "cdev"))
		return cdev(argv[2]);
	fputs("usage: sequence legacy GROUP UUID | sequence cdev NODE\n", stderr);
	return 2;
}
