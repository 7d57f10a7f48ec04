/* What each way to ask tells of a node, before it is opened and of its open file; then an ioctl, and poll(2). */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static void tell(const char *how, int failed, const struct stat *found)
{
	if (failed)
		printf("%s: %s\n", how, strerror(errno));
	else
		printf("%s: %s %u:%u %o\n", how, S_ISCHR(found->st_mode) ? "device" : "file",
		       major(found->st_rdev), minor(found->st_rdev), found->st_mode & 07777);
}

static void tellx(const char *how, int directory, const char *path, int flags)
{
	struct statx found;
	struct stat short_form;

	memset(&short_form, 0, sizeof short_form);
	int failed = statx(directory, path, flags, STATX_BASIC_STATS, &found);
	short_form.st_mode = found.stx_mode;
	short_form.st_rdev = makedev(found.stx_rdev_major, found.stx_rdev_minor);
	tell(how, failed, &short_form);
}

int main(int argc, char **argv)
{
	struct stat found;
	const char *path = argv[argc - 1];

	tell("stat", stat(path, &found), &found);
	tell("lstat", lstat(path, &found), &found);
	tellx("statx", AT_FDCWD, path, 0);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0) {
		printf("open: %s\n", strerror(errno));
		return 1;
	}
	tell("fstat", fstat(fd, &found), &found);
	tell("fstatat", fstatat(fd, "", &found, AT_EMPTY_PATH), &found);
	tellx("statx of open file", fd, "", AT_EMPTY_PATH);
	struct pollfd asked = {fd, POLLIN, 0};
	printf("poll: %d\n", poll(&asked, 1, 0) >= 0);
	printf("close-on-exec: %d\n", fcntl(fd, F_GETFD) == FD_CLOEXEC);
	printf("ioctl: %d\n", ioctl(fd, 0x3b64));
	return 0;
}
