/*
 * For LD_PRELOAD: what user namespaces are where AppArmor restricts them, as on Ubuntu 24.04.
 *
 * An ordinary user's program may make one there, and is moved into a profile that denies it all capabilities. Here it
 * gives them up itself, so that the kernel refuses what it refuses there. One refusal is AppArmor's own: when bwrap opens
 * its uid_map from a descriptor of its directory in /proc, the path is a disconnected one, which the profile does not let it open.
 * Programs with the set-user-ID bit are not concerned: not there, as they are root, and not here, as nothing is
 * preloaded into them.
 *
 * The file that RESTRICTED names has the value of the sysctl, and is what programs open as
 * /proc/sys/kernel/apparmor_restrict_unprivileged_userns.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SYSCTL "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"

/* Exported by the C library, and declared nowhere in it. */
int capget(struct __user_cap_header_struct *header, struct __user_cap_data_struct *sets);
int capset(struct __user_cap_header_struct *header, const struct __user_cap_data_struct *sets);

static int without_rights;

/* The functions of the C library itself. Libraries of the program may call ours before this one is set up. */
static int next_openat(int directory, const char *path, int flags, int mode)
{
	return ((int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, "openat"))(directory, path, flags, mode);
}

static long next_syscall(long number, long a, long b, long c, long d, long e, long f)
{
	return ((long (*)(long, ...))dlsym(RTLD_NEXT, "syscall"))(number, a, b, c, d, e, f);
}

static int open_at(int directory, const char *path, int flags, va_list rest)
{
	const char *setting = getenv("RESTRICTED");
	int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;

	if (setting && !strcmp(path, SYSCTL))
		path = setting;
	if (without_rights && directory != AT_FDCWD && !strcmp(path, "uid_map")) {
		errno = EACCES;
		return -1;
	}
	return next_openat(directory, path, flags, mode);
}

int open(const char *path, int flags, ...)
{
	va_list rest;
	int result;

	va_start(rest, flags);
	result = open_at(AT_FDCWD, path, flags, rest);
	va_end(rest);
	return result;
}

int open64(const char *path, int flags, ...) __attribute__((alias("open")));

int openat(int directory, const char *path, int flags, ...)
{
	va_list rest;
	int result;

	va_start(rest, flags);
	result = open_at(directory, path, flags, rest);
	va_end(rest);
	return result;
}

int openat64(int directory, const char *path, int flags, ...) __attribute__((alias("openat")));

/* Whether this process would lose its rights in a user namespace that it makes. */
static int restricted(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct sets[2];
	char value = '0';
	int file = open(SYSCTL, O_RDONLY | O_CLOEXEC);

	if (file >= 0) {
		if (read(file, &value, 1) != 1)
			value = '0';
		close(file);
	}
	return value == '1' && !capget(&header, sets) && !(sets[0].effective & 1 << CAP_SYS_ADMIN);
}

static void give_up_rights(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[2] = { { 0 } };

	if (capset(&header, none))
		_exit(125);
	without_rights = 1;
}

int unshare(int flags)
{
	int concerned = flags & CLONE_NEWUSER && restricted();
	int result = ((int (*)(int))dlsym(RTLD_NEXT, "unshare"))(flags);

	if (concerned && !result)
		give_up_rights();
	return result;
}

/* bwrap has no other way to make a clone with namespaces of its own. */
long syscall(long number, ...)
{
	long a[6], result;
	va_list rest;
	int i, concerned;

	va_start(rest, number);
	for (i = 0; i < 6; i++)
		a[i] = va_arg(rest, long);
	va_end(rest);
	concerned = number == SYS_clone && a[0] & CLONE_NEWUSER && restricted();
	result = next_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
	if (concerned && !result)
		give_up_rights();
	return result;
}
