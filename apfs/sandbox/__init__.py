"""`apfs exec`: commands that see an emulated host at /sys and /dev, and otherwise the real machine.

What happens, in this order, and which module does it:

1. `run` mounts a host for the command, unless it is to use one that is mounted. That host ends with `apfs exec`,
   however that ends.
2. `compose` says what the command will see: which directories of /sys, /dev and /run are real, which are the host's,
   and which are put together from both; and `module-tools.sh` in place of modprobe and its like. bwrap(1) makes the
   namespaces. In the middle of its work it waits for `assemble`, which mounts those directories faster, and which
   ends everything if `apfs exec` is killed.
3. `run` forks. Before the child becomes bwrap, `supervisor` installs a filter of system calls in it: VFIO ioctls stop
   there, which a file system cannot carry out. `seccomp` knows the kernel's interface for that.
4. In the parent `supervisor` answers the stopped calls as the host says. It reads and writes the memory of the
   process that made the call, and gives it descriptors: `process` knows how.
5. When bwrap has made the network namespace, `uevents` forks a process that joins it and has the kernel send the host's
   uevents there. `namespaces` knows how to join.
6. The command runs. `run` waits for it and ends with its exit status.

`linux` has the system calls that Python lacks. What the parts rely on is written down in docs/adr/0007 (namespaces and
uevents) and docs/adr/0008 (ioctls); how the supervisor and the host talk, in `apfs.ctl.channel`.
"""
