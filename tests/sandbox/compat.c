/*
 * System calls of the 32-bit interface, from a 64-bit program: ioctls of VFIO are served, and nothing else is.
 *
 *     compat GROUP
 */
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>

enum { READ = 3, CLOSE = 6, IOCTL = 54 };

static int call(int number, int fd, uint32_t second, uint32_t third)
{
	int result;
	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(number), "b"(fd), "c"(second), "d"(third)
			 : "memory", "r8", "r9", "r10", "r11");
	return result;
}

int main(int argc, char **argv)
{
	int container = open("/dev/vfio/vfio", O_RDWR), group = open(argv[argc - 1], O_RDWR);
	struct vfio_group_status *status =
		mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	if (container < 0 || group < 0 || status == MAP_FAILED) {
		perror("compat");
		return 1;
	}
	status->argsz = sizeof *status;
	int result = call(IOCTL, group, VFIO_GROUP_GET_STATUS, (uintptr_t)status);
	printf("VFIO_GROUP_GET_STATUS %d flags %u\n", result, status->flags);
	printf("VFIO_CHECK_EXTENSION %d\n", call(IOCTL, container, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU));
	printf("read %d\n", call(READ, container, (uintptr_t)status, 8));
	printf("close %d\n", call(CLOSE, container, VFIO_GET_API_VERSION, 0));
	printf("ioctl %d\n", call(IOCTL, container, VFIO_GET_API_VERSION, 0));
	return 0;
}
