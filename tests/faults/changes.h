#include <stdint.h>
#include <sys/types.h>

/*
 * Whether a system call, given by number and arguments, at whose entry a process has stopped, may change something that
 * others see when the process is killed: files, mounts, processes, locks, what is in a pipe, who has its ends. With
 * handles_signals, also whether it changes what a signal does: how that is handled, and what it interrupts.
 *
 * Between two such calls it makes no difference when a process is killed. A call that is not known counts as one that
 * changes something.
 */
int changes_something(pid_t pid, long number, const uint64_t *args, int handles_signals);
