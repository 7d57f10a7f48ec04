/*
 * faultpoint [-c CHILD] [-n CALL] [-s SIGNAL] [-g] [-w] [-f] -- COMMAND...
 *
 * Runs a command and, at its system call number CALL, sends it a signal: a fault at a place that is counted, not timed.
 * CHILD is which of the processes that the command starts is meant, from 1 on; 0 is the command, and 2.1 the first
 * that the second one starts. With -g the signal goes to the command's process group, as Ctrl-C at a terminal does.
 * Without -n nothing is sent. With -w CALL counts only calls that change something (see changes.h), for the signal.
 * With -f the signal comes at the latest at the first call that starts a process.
 *
 * Prints the command's status, as a shell has it, when it has ended. Returns when no descendant is left, not even one
 * that has become a daemon, and then prints how many calls the process made before the signal or its end, how many of
 * them change something, and the numbers of the first mkdir(2) and of the first that starts a process among all calls
 * (0 if there was none).
 */
#include "changes.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static void check(long result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(125);
	}
}

static int status_of(int wait_status)
{
	return WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
}

static int is_mkdir(const struct __ptrace_syscall_info *call)
{
#ifdef SYS_mkdir
	if (call->entry.nr == SYS_mkdir)
		return 1;
#endif
	return call->entry.nr == SYS_mkdirat;
}

/* Whether a call starts a process, and not a thread. */
static int is_fork(pid_t pid, const struct __ptrace_syscall_info *call)
{
	uint64_t flags = 0;
	struct iovec local = {&flags, sizeof(flags)};
	struct iovec remote = {(void *)(uintptr_t)call->entry.args[0], sizeof(flags)};

	switch (call->entry.nr) {
#ifdef SYS_fork
	case SYS_fork:
#endif
#ifdef SYS_vfork
	case SYS_vfork:
#endif
		return 1;
	case SYS_clone: /* s390x has the stack first */
#ifdef __s390__
		return !(call->entry.args[1] & CLONE_THREAD);
#else
		return !(call->entry.args[0] & CLONE_THREAD);
#endif
	case SYS_clone3: /* flags are the first member of struct clone_args */
		process_vm_readv(pid, &local, 1, &remote, 1, 0);
		return !(flags & CLONE_THREAD);
	}
	return 0;
}

int main(int argc, char **argv)
{
	long call = -1, calls = 0, changes = 0, first_mkdir = 0, first_fork = 0;
	int number = SIGKILL, group = 0, only_changes = 0, until_fork = 0, option, status, command_status = -1;
	int entering = 1, started = 0;
	char *child = "0"; /* what is left of the way to the wanted process */
	pid_t command, parent, wanted;

	while ((option = getopt(argc, argv, "+c:n:s:gwf")) != -1) {
		switch (option) {
		case 'c': child = optarg; break;
		case 'n': call = atol(optarg); break;
		case 's': number = atoi(optarg); break;
		case 'g': group = 1; break;
		case 'w': only_changes = 1; break;
		case 'f': until_fork = 1; break;
		default: return 125;
		}
	}
	check(prctl(PR_SET_CHILD_SUBREAPER, 1), "prctl");
	command = fork();
	check(command, "fork");
	if (command == 0) {
		setpgid(0, 0);
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		execvp(argv[optind], argv + optind);
		perror(argv[optind]);
		_exit(127);
	}
	check(waitpid(command, &status, 0), "waitpid");
	check(ptrace(PTRACE_SETOPTIONS, command, 0,
		     PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL |
		     (atoi(child) ? PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE : 0)), "ptrace");
	parent = command;
	wanted = atoi(child) ? 0 : command;
	ptrace(wanted ? PTRACE_SYSCALL : PTRACE_CONT, command, 0, 0);
	for (;;) {
		/* Until the wanted process is born, its parent alone is listened to, and then the newborn. */
		pid_t pid = waitpid(wanted || !parent ? -1 : parent, &status, __WALL);
		int deliver = 0, event;

		if (pid < 0 && errno == EINTR)
			continue;
		if (pid < 0)
			break;
		if (!WIFSTOPPED(status)) {
			if (pid == parent)
				parent = 0;
			if (pid == command) {
				command_status = status_of(status);
				printf("%d\n", command_status);
				fflush(stdout);
			}
			continue;
		}
		event = status >> 16; /* of fork, of exec */
		if (event == PTRACE_EVENT_FORK || event == PTRACE_EVENT_VFORK || event == PTRACE_EVENT_CLONE) {
			unsigned long born = 0;

			ptrace(PTRACE_GETEVENTMSG, pid, 0, &born);
			if (pid == parent && !wanted) {
				waitpid(born, &status, __WALL);
				if (++started < atoi(child)) {
					ptrace(PTRACE_DETACH, born, 0, 0);
				} else if (strchr(child, '.')) {
					child = strchr(child, '.') + 1;
					started = 0;
					parent = born;
					ptrace(PTRACE_CONT, born, 0, 0);
				} else {
					wanted = born;
					ptrace(PTRACE_SYSCALL, born, 0, 0);
				}
			}
		} else if (!event && WSTOPSIG(status) == (SIGTRAP | 0x80)) {
			if (pid == wanted && entering) {
				struct __ptrace_syscall_info info;
				int counts;

				check(ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof(info), &info), "ptrace");
				calls++;
				counts = changes_something(pid, info.entry.nr, info.entry.args, number != SIGKILL);
				changes += counts;
				if (!first_mkdir && is_mkdir(&info))
					first_mkdir = calls;
				if (!first_fork && is_fork(pid, &info))
					first_fork = calls;
				if ((only_changes ? counts && changes == call : calls == call) ||
				    (until_fork && calls == first_fork)) {
					kill(group ? -command : pid, number);
					ptrace(PTRACE_DETACH, pid, 0, 0);
					continue;
				}
			}
			if (pid == wanted)
				entering = !entering;
		} else if (!event && WSTOPSIG(status) != SIGSTOP) {
			deliver = WSTOPSIG(status);
		}
		if (pid == wanted) {
			ptrace(PTRACE_SYSCALL, pid, 0, deliver);
		} else if (pid == parent && !wanted) {
			ptrace(PTRACE_CONT, pid, 0, deliver);
		} else {
			ptrace(PTRACE_DETACH, pid, 0, deliver);
		}
	}
	printf("%ld %ld %ld %ld\n", calls, changes, first_mkdir, first_fork);
	return 0;
}
