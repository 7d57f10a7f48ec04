"""`apfs exec`: commands that see an emulated host at /sys and /dev, and otherwise the real machine.

These steps run in this order, in these modules:

1. `run` mounts a host for the command, unless a mounted one is given. That host ends with `apfs exec` in any case.
2. `compose` determines what the command will see: which directories of /sys, /dev and /run are real, which are the
   host's, and which are merged; and `module-tools.sh` in place of modprobe and related tools. bwrap(1) creates the
   namespaces. In the middle of its work, it waits for a process of `assemble`, which mounts those directories faster,
   and which ends everything if `apfs exec` is killed.
3. `run` forks. Before the child becomes bwrap, `supervisor` installs a filter for system calls in it, which stops VFIO
   ioctls, because a file system cannot execute them. `seccomp` has the kernel interface for that.
4. In the parent, `supervisor` answers the stopped calls on behalf of the host. It reads and writes the memory of the
   calling process, and installs descriptors in it, with functions of `process`.
5. The process of `assemble` joins the namespaces that bwrap has created, with `namespaces`. With `uevents`, it makes
   the kernel send the host's uevents there, and with `devtmpfs`, it makes the nodes that they announce.
6. The command runs. `run` waits for it and exits with its exit status.

`linux` has the system calls that Python lacks. The design is described in docs/adr/0007 (namespaces and uevents) and
docs/adr/0008 (ioctls); the protocol between supervisor and host, in `apfs.ctl.channel`.
"""
