#include "changes.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/prctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILE_NAME(name, ...) \
	char name[64]; \
	snprintf(name, sizeof(name), __VA_ARGS__)

static int starts_with(const char *text, const char *start)
{
	return !strncmp(text, start, strlen(start));
}

static int read_link(const char *file, char *target)
{
	ssize_t length = readlink(file, target, PATH_MAX - 1);

	target[length < 0 ? 0 : length] = 0;
	return length > 0;
}

/* Whether a path, or the mount of that number, is in a FUSE file system, as the process sees it. Asks no server. */
static int is_fuse(pid_t pid, const char *path, int mount)
{
	FILE_NAME(name, "/proc/%d/mountinfo", pid);
	FILE *mounts = fopen(name, "r");
	char *line = NULL;
	size_t room = 0;
	int found = 0;

	while (mounts && !found && getline(&line, &room, mounts) > 0) {
		char place[PATH_MAX];
		int number;

		if (!strstr(line, " - fuse") || sscanf(line, "%d %*s %*s %*s %4095s", &number, place) != 2)
			continue;
		found = path ? starts_with(path, place) : number == mount;
	}
	free(line);
	if (mounts)
		fclose(mounts);
	return found;
}

/* Whether a descriptor is of a file or directory of an ordinary file system, without a lock, or of no use to others. */
static int is_plain(pid_t pid, int descriptor)
{
	char target[PATH_MAX], line[256];
	FILE_NAME(name, "/proc/%d/fd/%d", pid, descriptor);
	FILE_NAME(info_name, "/proc/%d/fdinfo/%d", pid, descriptor);
	FILE *info;
	int mount = -1, locked = 0;

	if (!read_link(name, target))
		return 1; /* there is none: EBADF */
	if (!strcmp(target, "anon_inode:[pidfd]") || !strcmp(target, "anon_inode:[eventpoll]") ||
	    !strcmp(target, "/dev/null") || !strcmp(target, "/dev/urandom"))
		return 1;
	if (target[0] != '/' || starts_with(target, "/dev/"))
		return 0;
	info = fopen(info_name, "r");
	while (info && fgets(line, sizeof(line), info)) {
		sscanf(line, "mnt_id: %d", &mount);
		locked |= starts_with(line, "lock:");
	}
	if (info)
		fclose(info);
	return mount >= 0 && !locked && !is_fuse(pid, NULL, mount);
}

/* Write down the path that an argument means, by its text alone. */
static int path_of(pid_t pid, int directory, uint64_t address, char *path)
{
	char text[PATH_MAX], base[PATH_MAX] = "";
	struct iovec local = {text, 0}, remote = {(void *)(uintptr_t)address, 0};
	FILE_NAME(name, "/proc/%d/fd/%d", pid, directory);
	FILE_NAME(cwd, "/proc/%d/cwd", pid);
	size_t length = 0;

	/* By bytes: what is behind its end may not be readable. */
	for (; length < sizeof(text); length++) {
		local = (struct iovec){text + length, 1};
		remote = (struct iovec){(void *)(uintptr_t)(address + length), 1};
		if (process_vm_readv(pid, &local, 1, &remote, 1, 0) != 1)
			return 0;
		if (!text[length])
			break;
	}
	if (length == sizeof(text))
		return 0;
	if (text[0] != '/' && !read_link(directory == AT_FDCWD ? cwd : name, base))
		return 0;
	return snprintf(path, 2 * PATH_MAX, "%s%s%s", base, base[0] ? "/" : "", text) > 0;
}

static int opening_changes(pid_t pid, int directory, uint64_t address, int flags)
{
	char path[2 * PATH_MAX];

	if (flags & O_PATH)
		return 0;
	if (flags & (O_CREAT | O_TRUNC) || (flags & O_TMPFILE) == O_TMPFILE)
		return 1;
	if (!path_of(pid, directory, address, path))
		return 1;
	if (!strcmp(path, "/dev/null") || !strcmp(path, "/dev/urandom"))
		return 0;
	return (flags & O_ACCMODE) != O_RDONLY || starts_with(path, "/dev/") || is_fuse(pid, path, 0);
}

static int control_changes(int command)
{
	switch (command) {
	case F_DUPFD:
	case F_DUPFD_CLOEXEC:
	case F_GETFD:
	case F_SETFD: /* goes with the process */
	case F_GETFL:
	case F_GETLK:
	case F_GETPIPE_SZ:
		return 0;
	}
	return 1;
}

static int ioctl_changes(unsigned long request)
{
	switch (request) {
	case TCGETS:
	case TIOCGWINSZ:
	case FIONREAD:
	case FIOCLEX:
	case FIONCLEX:
		return 0;
	}
	return 1;
}

static int prctl_changes(unsigned long option)
{
	switch (option) {
	case PR_GET_DUMPABLE:
	case PR_GET_NAME:
	case PR_SET_NAME:
	case PR_CAPBSET_READ:
	case PR_GET_NO_NEW_PRIVS:
#ifdef PR_SET_VMA
	case PR_SET_VMA:
#endif
		return 0;
	}
	return 1;
}

int changes_something(pid_t pid, long number, const uint64_t *args, int handles_signals)
{
	switch (number) {
	/* What only tells something. */
#ifdef SYS_access
	case SYS_access:
	case SYS_stat:
	case SYS_lstat:
	case SYS_readlink:
	case SYS_getpgrp:
	case SYS_getdents:
	case SYS_time:
#endif
	case SYS_faccessat:
	case SYS_faccessat2:
	case SYS_newfstatat:
	case SYS_fstat:
	case SYS_statx:
	case SYS_statfs:
	case SYS_fstatfs:
	case SYS_readlinkat:
	case SYS_getxattr:
	case SYS_lgetxattr:
	case SYS_fgetxattr:
	case SYS_getdents64:
	case SYS_getcwd:
	case SYS_getpid:
	case SYS_gettid:
	case SYS_getppid:
	case SYS_getpgid:
	case SYS_getsid:
	case SYS_getuid:
	case SYS_geteuid:
	case SYS_getresuid:
	case SYS_getgid:
	case SYS_getegid:
	case SYS_getresgid:
	case SYS_getgroups:
	case SYS_getpriority:
	case SYS_getrlimit:
	case SYS_getrusage:
	case SYS_capget:
	case SYS_sched_getaffinity:
	case SYS_sched_getparam:
	case SYS_sched_getscheduler:
	case SYS_uname:
	case SYS_sysinfo:
	case SYS_times:
	case SYS_gettimeofday:
	case SYS_clock_gettime:
	case SYS_clock_getres:
	case SYS_getrandom:
	case SYS_getsockname:
	case SYS_getpeername:
	case SYS_getsockopt:
	case SYS_process_vm_readv:
		return 0;
	/* What only changes the memory of the process, or how it runs. */
#ifdef SYS_arch_prctl
	case SYS_arch_prctl:
#endif
	case SYS_brk:
	case SYS_mprotect:
	case SYS_mremap:
	case SYS_munmap:
	case SYS_madvise:
	case SYS_mincore:
	case SYS_membarrier:
	case SYS_set_tid_address:
	case SYS_set_robust_list:
	case SYS_get_robust_list:
	case SYS_rseq:
	case SYS_sched_yield:
	case SYS_sigaltstack:
	case SYS_chdir:
	case SYS_fchdir:
	case SYS_umask:
	case SYS_lseek:
	case SYS_fadvise64:
		return 0;
	/* New descriptors that nobody else has yet, or of what is open already. */
#ifdef SYS_pipe
	case SYS_pipe:
	case SYS_eventfd:
	case SYS_epoll_create:
#endif
	case SYS_pipe2:
	case SYS_eventfd2:
	case SYS_epoll_create1:
	case SYS_epoll_ctl:
	case SYS_socket:
	case SYS_socketpair:
	case SYS_pidfd_open:
	case SYS_memfd_create:
	case SYS_timerfd_create:
	case SYS_timerfd_settime:
	case SYS_dup:
		return 0;
	/* What waits, and what says how signals are handled. */
#ifdef SYS_poll
	case SYS_poll:
	case SYS_select:
	case SYS_epoll_wait:
	case SYS_pause:
#endif
	case SYS_ppoll:
	case SYS_pselect6:
	case SYS_epoll_pwait:
	case SYS_futex:
	case SYS_nanosleep:
	case SYS_clock_nanosleep:
	case SYS_restart_syscall:
	case SYS_rt_sigreturn:
		return handles_signals;
	case SYS_rt_sigaction:
	case SYS_rt_sigprocmask:
		return handles_signals && args[1];
	/* What depends on the arguments. */
	case SYS_read:
	case SYS_pread64:
	case SYS_readv:
	case SYS_close:
		return !is_plain(pid, args[0]);
	case SYS_openat:
		return opening_changes(pid, args[0], args[1], args[2]);
#ifdef SYS_open
	case SYS_open:
		return opening_changes(pid, AT_FDCWD, args[0], args[1]);
#endif
	case SYS_mmap:
		return args[3] & MAP_SHARED && args[2] & PROT_WRITE && !(args[3] & MAP_ANONYMOUS);
	case SYS_prlimit64:
		return args[2] != 0;
	case SYS_fcntl:
		return control_changes(args[1]);
	case SYS_ioctl:
		return ioctl_changes(args[1]);
	case SYS_prctl:
		return prctl_changes(args[0]);
	}
	return 1;
}
