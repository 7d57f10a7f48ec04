"""The supervisor of a sandbox's processes: answers their VFIO ioctls on behalf of the emulated host.

Calls for device nodes are passed on to `apfs.sandbox.nodes`.

It does what the core cannot do: it determines which file a descriptor refers to, copies memory, and installs
descriptors. It does not know the calls and their meaning; see `apfs.ctl.channel` for its protocol.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import select
import socket
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apfs.sandbox import process, seccomp
from apfs.sandbox.nodes import OpenNodes
from apfs.vfio import uapi

if TYPE_CHECKING:
    from apfs.sandbox.seccomp import Nodes, Notification

# Most replies fit into the first. The buffer for the second takes longer to make than everything else together.
_CHUNK, _LONG_CHUNK = 1 << 12, 1 << 20
_EVENTFD = "anon_inode:[eventfd]"
# With O_DIRECT the kernel reads streams for splice(2) as it does for read(2), instead of by pages, up to a size of 0.
_ACCESS = {"r": os.O_RDONLY | os.O_DIRECT, "w": os.O_WRONLY, "rw": os.O_RDWR}
_ONE = struct.pack("=Q", 1)
_RLIMIT = struct.Struct("=QQ")
"""struct rlimit64: soft and hard limit."""
_UNLIMITED = (1 << 64) - 1


class Supervisor:
    """Serves one listener with one emulated host."""

    def __init__(self, listener: int, mount: Path, nodes: Nodes) -> None:
        """Open the host's channel; `OSError` if it cannot be, EACCES for others than the user who mounted it.

        This process may have as many descriptors as it can from now on: it keeps all eventfds of all processes.
        """
        self._listener = listener
        self._control = os.open(mount / "ctl", os.O_PATH | os.O_DIRECTORY)
        self._channel = os.open("ioctl", os.O_RDWR, dir_fd=self._control)
        self._device = os.fstat(self._control).st_dev
        self._nodes = OpenNodes(listener, mount, nodes)
        self._eventfds: dict[int, int] = {}
        self._next_eventfd = 0
        self._explained = False
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._lockable = _lockable()

    def close(self) -> None:
        """Let go of the host and of all eventfds."""
        for fd in (*self._eventfds.values(), self._channel, self._control, self._listener):
            with contextlib.suppress(OSError):  # a host that is told of it may be gone
                os.close(fd)
        self._nodes.close()

    def serve(self, *until: int) -> set[int]:
        """Serve until one of some descriptors can be read or its other end is closed, and return those."""
        # Not poll(2), which would ask the server each time whether the channel has something: epoll is notified.
        with select.epoll() as poll:
            for fd in (*until, self._channel, self._listener):
                poll.register(fd, select.EPOLLIN)
            while True:
                ready = dict(poll.poll())
                found = ready.keys() & set(until)
                if found:
                    return found
                if ready.get(self._channel, 0) & select.EPOLLIN:
                    self._do_signals()
                elif self._channel in ready:
                    # The host is gone. Whoever waits for an answer gets ENODEV, see below.
                    poll.unregister(self._channel)
                if ready.get(self._listener, 0) & select.EPOLLIN:
                    notification = seccomp.receive(self._listener)
                    if notification is not None:
                        self._serve_one(notification)
                elif self._listener in ready:
                    poll.unregister(self._listener)  # no process is left that could make an ioctl

    def _serve_one(self, notification: Notification) -> None:
        """Answer one notification, whatever happens: a process that gets no answer cannot go on."""
        try:
            if notification.number in seccomp.IOCTL_NUMBERS[notification.arch]:
                value = self._answer(notification)
            elif notification.number in seccomp.PRLIMIT_NUMBERS[notification.arch]:
                value = self._limit(notification)
            else:
                value = self._file_call(notification)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENOSYS):
                self._explain(error)
            value = -errno.ENODEV if error.errno in _CONNECTION_LOST else -(error.errno or errno.EIO)
        except Exception as error:  # noqa: BLE001 -- see above
            print(f"apfs: a defect in serving a system call: {error!r}", file=sys.stderr)  # noqa: T201
            value = -errno.EIO
        if value is None:
            seccomp.proceed(self._listener, notification.id)
        else:
            seccomp.respond(self._listener, notification.id, value)

    def _file_call(self, notification: Notification) -> int | None:
        """Return the value of a call for a file, None if the kernel is to carry it out."""
        try:
            return self._nodes.answer(notification)
        except PermissionError as error:
            # It may be for any file. If it is for a node, the kernel refuses.
            self._explain(error)
            return None

    def _explain(self, error: OSError) -> None:
        if self._explained:
            return
        self._explained = True
        message = f"apfs: VFIO cannot be served: no access to the memory and files of a process ({error})"
        print(f"{message}; in a container, --cap-add SYS_PTRACE helps", file=sys.stderr)  # noqa: T201

    def _answer(self, notification: Notification) -> int | None:
        """Return the value of an ioctl, None if the kernel is to carry it out.

        All duplicates are closed before the process goes on, so that its own close(2) is the last one.
        """
        argument = notification.args[2]
        with contextlib.ExitStack() as duplicates:
            try:
                fd = duplicates.enter_context(process.duplicate(notification.pid, notification.descriptor(0)))
            except OSError as error:
                if error.errno in (errno.EBADF, errno.ESRCH):
                    return None
                raise
            if not self._is_ours(fd):
                return None
            command = notification.flags(1)
            size = uapi.WINDOWS.get(command, uapi.MEMORY)
            memory = process.read_memory(notification.pid, argument, size)
            described, other = self._describe(duplicates, notification.pid, command, memory)
            if not seccomp.is_valid(self._listener, notification.id):
                return -errno.EINTR  # nobody gets it: what was read may belong to another process
            request = {
                "cmd": command,
                "arg": argument,
                "memory": memory.hex(),
                "descriptor": described,
                "full": command in uapi.NEEDS_ROOM and process.is_full(notification.pid),
                "pointed": _pointed(notification.pid, command, memory).hex(),
            }
            reply = self._ask(request, fd, other)
        return None if reply is None else self._carry_out(notification, reply)

    def _is_ours(self, fd: int) -> bool:
        """Whether an open file is one of the host. FUSE keeps others' mounts even from being asked (EACCES)."""
        try:
            return os.fstat(fd).st_dev == self._device
        except PermissionError:
            return False

    def _limit(self, notification: Notification) -> int | None:
        """Return 0 for a limit of locked memory that root of the emulated host could set, and this process cannot.

        libvirt raises it for each guest with a VFIO device. In a container without CAP_SYS_RESOURCE that would be the
        end of the guest, for memory that nobody locks: the emulated host has no DMA.
        """
        new = process.read_memory(notification.pid, notification.args[2], _RLIMIT.size)
        if len(new) < _RLIMIT.size:
            return None
        soft, hard = _RLIMIT.unpack(new)
        return 0 if soft <= hard and hard > self._lockable else None

    def _describe(
        self, duplicates: contextlib.ExitStack, pid: int, command: int, memory: bytes
    ) -> tuple[str | int | None, int | None]:
        """Return what the descriptor in an argument refers to, as the channel wants it, and a duplicate of a file."""
        offset = uapi.DESCRIPTOR_AT.get(command)
        if offset is None or len(memory) < offset + uapi.S32.size:
            return None, None
        (number,) = uapi.S32.unpack(memory[offset:])
        try:
            fd = duplicates.enter_context(process.duplicate(pid, number))
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            return None, None
        if self._is_ours(fd):
            return "file", fd
        if command not in uapi.KEEPS_EVENTFD or str(Path(f"/proc/self/fd/{fd}").readlink()) != _EVENTFD:
            return "foreign", None
        self._next_eventfd += 1
        self._eventfds[self._next_eventfd] = os.dup(fd)
        return self._next_eventfd, None

    def _ask(self, request: dict[str, Any], fd: int, other: int | None) -> dict[str, Any] | None:
        os.write(self._channel, json.dumps(request).encode())
        for shown in (fd, other):
            if shown is not None:
                _look(shown, select.POLLIN)
        reply: dict[str, Any] | None = self._read_line()
        kept = request["descriptor"]
        if isinstance(kept, int) and (reply is None or reply["value"] < 0):
            os.close(self._eventfds.pop(kept))
        return reply

    def _read_line(self) -> Any:  # noqa: ANN401 -- JSON
        pieces = [os.read(self._channel, _CHUNK)]
        while not pieces[-1].endswith(b"\n"):
            pieces.append(os.read(self._channel, _LONG_CHUNK))
        return json.loads(b"".join(pieces))

    def _carry_out(self, notification: Notification, reply: dict[str, Any]) -> int:
        """Give the process what the reply has for it, and return the value of the ioctl."""
        value: int = reply["value"]
        writes = [(address, bytes.fromhex(data)) for address, data in reply["writes"]]
        file = reply["file"]
        if file is not None:
            number = self._hand_over(notification, file, writes)
            if number < 0:
                return number
            if file["at"] is None:
                value = number
            else:
                writes.append((file["at"], uapi.S32.pack(number)))
        if writes and not seccomp.is_valid(self._listener, notification.id):
            return -errno.EINTR
        written = [process.write_memory(notification.pid, address, data) for address, data in writes]
        return value if all(written) else -errno.EFAULT

    def _writable(self, notification: Notification, address: int, size: int) -> bool:
        """Whether memory can be written, found out by writing what is there."""
        present = process.read_memory(notification.pid, address, size)
        if len(present) < size or not seccomp.is_valid(self._listener, notification.id):
            return False
        return process.write_memory(notification.pid, address, present)

    def _hand_over(self, notification: Notification, file: dict[str, Any], writes: list[tuple[int, bytes]]) -> int:
        """Give the process a new file; return the number of its descriptor or (negative) an errno.

        The file is opened in any case, so that it is closed when the process cannot have it.
        """
        fd = os.open(f"fds/{file['name']}", _ACCESS[file["access"]], dir_fd=self._control)
        try:
            # A descriptor that is given cannot be taken back, so that the memory is tried before.
            if not all(self._writable(notification, address, len(data)) for address, data in writes):
                return -errno.EMFILE if process.is_full(notification.pid) else -errno.EFAULT
            return seccomp.add_descriptor(self._listener, notification.id, fd)
        except OSError as error:
            return -(error.errno or errno.EIO)
        finally:
            os.close(fd)

    def _do_signals(self) -> None:
        """Signal eventfds, and close those that nobody wants any more."""
        try:
            todo = self._read_line()
        except OSError:
            return  # the host is gone, as the next look at the channel will tell
        for number in todo["signal"]:
            fd = self._eventfds.get(number)
            # A counter that is full would block; there is a signal to be seen already.
            if fd is not None and _look(fd, select.POLLOUT):
                os.write(fd, _ONE)
        for number in todo["drop"]:
            fd = self._eventfds.pop(number, None)
            if fd is not None:
                os.close(fd)


def _pointed(pid: int, command: int, memory: bytes) -> bytes:
    """Return the array that an argument points at, as far as it can be read."""
    if command not in uapi.POINTED:
        return b""
    address, length, size = uapi.POINTED[command]
    if len(memory) < max(address + uapi.U64.size, length + uapi.U32.size):
        return b""
    (start,) = uapi.U64.unpack(memory[address:])
    (count,) = uapi.U32.unpack(memory[length:])
    return process.read_memory(pid, start, min(count * size, uapi.POINTED_MOST))


def _lockable() -> int:
    """Raise this process's limit of locked memory as far as possible, and return it: nobody else here has more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, resource.RLIM_INFINITY))
    except ValueError:  # what Python makes of EPERM here
        return hard
    return _UNLIMITED


def _look(fd: int, events: int) -> list[tuple[int, int]]:
    """Call poll(2) once, without waiting."""
    poll = select.poll()
    poll.register(fd, events)
    return poll.poll(0)


_CONNECTION_LOST = (errno.ENOTCONN, errno.ECONNABORTED)


def stop_calls(channel: socket.socket, nodes: Nodes) -> None:
    """Install the filter for this process and all that it starts; called between fork and exec.

    The channel gets the listener, or the errno of why there is none.
    """
    try:
        listener = seccomp.install(seccomp.program(uapi.TYPE, nodes))
    except OSError as error:
        channel.send(str(error.errno).encode())
        return
    socket.send_fds(channel, (b"0",), (listener,))
    os.close(listener)


def supervise(channel: socket.socket, mount: Path, nodes: Nodes) -> tuple[Supervisor | None, Nodes]:
    """Return the supervisor for what `stop_calls` sent, and how nodes can be shown.

    None, with a warning, if VFIO ioctls cannot be served; without one if the supervisor of an outer sandbox serves this
    host already, and if nothing was sent: the process was killed, which its parent notices. Nodes are regular files if
    there is nobody to open them. `OSError` if the host has ended, or if there are no descriptors. What was sent is open
    then: without it, calls would fail, and bwrap would complain before it is killed.
    """
    with channel:
        said, listeners, _, _ = socket.recv_fds(channel, 16, 1)
    if listeners:
        try:
            return Supervisor(listeners[0], mount, nodes), nodes
        except PermissionError as error:
            os.close(listeners[0])
            why = f"{mount}/ctl/ioctl: {error.strerror}"
    elif not said:
        return None, nodes
    elif int(said) != errno.EBUSY:
        why, nodes = os.strerror(int(said)), "files"
    elif _is_nested(mount):
        # The supervisor of the outer sandbox opens nodes in this one if it does so in its own.
        return None, nodes if Path("/dev/iommu").is_char_device() else "files"
    else:
        why = "another program, such as an outer apfs exec with another host, watches the system calls already"
        nodes = "files"
    print(f"apfs: VFIO ioctls are not served: {why}", file=sys.stderr)  # noqa: T201
    return None, nodes


def _is_nested(mount: Path) -> bool:
    """Whether this process is in a sandbox itself, with the same host."""
    outer = os.environ.get("APFS_MOUNT")
    return outer is not None and Path(outer).exists() and Path(outer).stat().st_dev == mount.stat().st_dev
