"""Sends the emulated host's uevents to the kernel uevent multicast group of a network namespace.

A process joins the namespace of a sandbox, follows `ctl/uevents` of the mount and sends new events. The kernel
broadcasts an event that it gets with its own SEQNUM, as if it had created the event. If no udevd runs, the process also
sends udevd's messages, because libudev's monitors listen only to udevd.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import stat
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from apfs.mounts import table
from apfs.mounts.server import close_others, end_with
from apfs.sandbox import linux, namespaces

if TYPE_CHECKING:
    from collections.abc import Callable

NETLINK_KOBJECT_UEVENT = 15
_MESSAGE, _REQUEST, _ACK, _ERROR = 16, 1, 4, 2
_HEADER = struct.Struct("=IHHII")
_UDEV_GROUP = 2
_UDEV_MAGIC = 0xFEEDCAFE


class Event(NamedTuple):
    """An event: keys in wire order, the first three being ACTION, DEVPATH, SUBSYSTEM; SEQNUM taken out.

    Values have a character for each byte.
    """

    keys: tuple[tuple[str, str], ...]
    sequence: str

    def get(self, name: str) -> str:
        """Return the value of a key, empty if it is missing."""
        return dict(self.keys).get(name, "")


def parse(text: str) -> list[Event]:
    """Return the events in the form in which ctl/uevents has them."""
    events = []
    for block in filter(None, text.split("\n\n")):
        pairs = [line.partition("=")[::2] for line in block.split("\n")[1:] if line]
        # The values of these end with a newline on the wire.
        keys = [(key, value + "\n" if key in ("APMASK", "AQMASK") else value) for key, value in pairs]
        events.append(Event(tuple(pair for pair in keys if pair[0] != "SEQNUM"), dict(pairs)["SEQNUM"]))
    return events


def kernel_message(event: Event) -> bytes:
    """Return a netlink message that asks the kernel to broadcast an event (uevent_net_rcv_skb, Linux 4.18)."""
    body = f"{event.get('ACTION')}@{event.get('DEVPATH')}\0".encode("latin-1")
    body += b"".join(f"{key}={value}\0".encode("latin-1") for key, value in event.keys)
    return _HEADER.pack(_HEADER.size + len(body), _MESSAGE, _REQUEST | _ACK, int(event.sequence) & 0xFFFFFFFF, 0) + body


def udev_message(event: Event) -> bytes:
    """Return the message by which udevd tells libudev's monitors of an event (struct monitor_netlink_header)."""
    pairs = (*event.keys, ("SEQNUM", event.sequence), ("USEC_INITIALIZED", "1"))
    lines = (f"{key}={value}".removesuffix("\n") for key, value in pairs)
    properties = b"".join(f"{line}\0".encode("latin-1") for line in lines)
    header = b"libudev\0" + struct.pack(">I", _UDEV_MAGIC) + struct.pack("=III", 40, 40, len(properties))
    hashes = (murmur2(event.get(name).encode("latin-1")) if event.get(name) else 0 for name in ("SUBSYSTEM", "DEVTYPE"))
    return header + struct.pack(">II", *hashes) + bytes(8) + properties


def murmur2(data: bytes) -> int:
    """Return Austin Appleby's MurmurHash2 of 32 bits with seed 0, by which monitors filter subsystems.

    Words are read in the byte order of the machine, so that the hash is another one on s390x: libudev does the same.
    """
    mask, multiplier, rotation = 0xFFFFFFFF, 0x5BD1E995, 24
    state = len(data)
    whole = len(data) // 4 * 4
    for (word,) in struct.iter_unpack("=I", data[:whole]):
        mixed = word * multiplier & mask
        mixed = (mixed ^ mixed >> rotation) * multiplier & mask
        state = state * multiplier & mask ^ mixed
    if whole < len(data):
        state = (state ^ int.from_bytes(data[whole:], "little")) * multiplier & mask
    state = (state ^ state >> 13) * multiplier & mask
    return state ^ state >> 15


class Sender:
    """Sends events in the network namespace in which it was made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT)
        self._socket.bind((0, 0))

    def as_kernel(self, event: Event) -> None:
        """Have the kernel broadcast an event. `PermissionError` without CAP_SYS_ADMIN in the namespace's owner.

        sendto succeeds even when the kernel refuses, so this waits for the kernel's answer.
        """
        self._socket.sendto(kernel_message(event), (0, 0))
        answer = self._socket.recv(8192)
        _, kind, _, _, _ = _HEADER.unpack_from(answer)
        code = struct.unpack_from("=i", answer, _HEADER.size)[0] if kind == _ERROR else 0
        if code:
            raise OSError(-code, os.strerror(-code))

    def as_udevd(self, event: Event) -> None:
        """Multicast an event as udevd does when it has processed it; nobody listening is no error."""
        try:
            self._socket.sendto(udev_message(event), (0, _UDEV_GROUP))
        except ConnectionRefusedError:
            return


def join(pid: int, *, network: bool) -> None:
    """Move this process into the user namespace of another, and if `network` into its network namespace."""
    if namespaces.join(pid, *(["net"] if network else [])) and network:
        # libudev believes only messages whose sender is root in the listener's eyes.
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


def has_udevd(pid: int) -> bool:
    """Whether a udevd runs in the sandbox: it has made its control file a socket."""
    try:
        return stat.S_ISSOCK(Path(f"/proc/{pid}/root/run/udev/control").stat().st_mode)
    except OSError:
        return False


def _pump(mount: Path, pid: int, ready: int, follow: Callable[[Event], None], *, network: bool) -> None:
    """Carry the mount's events to the sandbox of process `pid`, those of a guest until it ends.

    Closes `ready` when it listens.

    `follow` gets them first, and then, if there is a private `network`, whoever listens there. The host is told what
    has been delivered: a write that sends events returns afterwards, as in Linux. Of another user's mount nobody may
    hold up the writes.
    """
    place = mount / "ctl/uevents"
    ours = os.access(place, os.W_OK)
    with place.open("r+b" if ours else "rb", buffering=0) as source:
        events = parse(source.read().decode("latin-1"))
        if ours:
            source.write(events[-1].sequence.encode() if events else b"0")
        join(pid, network=network)
        sender = Sender() if network else None
        os.close(ready)
        poller = select.poll()
        poller.register(source, select.POLLIN)
        ended = 0
        while not ended:
            ((_, found),) = poller.poll()
            ended = found & select.POLLHUP
            text = source.read()
            if text is None:
                continue
            events = parse(text.decode("latin-1"))
            for event in events:
                follow(event)
                if sender is not None:
                    sender.as_kernel(event)
                    if not has_udevd(pid):
                        sender.as_udevd(event)
            if ours and events:
                source.write(events[-1].sequence.encode())


def start(mount: Path, pid: int, follower: Callable[[], Callable[[Event], None]], *, network: bool) -> tuple[int, int]:
    """Start a process that carries the mount's events to the sandbox of process `pid`.

    What `follower()` returns there is called for each event, before listeners in a private `network` get it. Returns
    the process's own pid, and a descriptor whose other end is closed when it listens, or has said why it cannot.
    """
    reader, writer = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        end_with(lambda: _work(mount, pid, writer, follower, network=network, parent=parent))
    os.close(writer)
    return child, reader


def _work(
    mount: Path, pid: int, ready: int, follower: Callable[[], Callable[[Event], None]], *, network: bool, parent: int
) -> None:
    linux.die_with_parent(parent=parent)
    for number in (signal.SIGINT, signal.SIGQUIT):  # they are for the command
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    close_others(ready)  # above all the other end of the server's lifeline
    try:
        _pump(mount, pid, ready, follower(), network=network)
    except FileNotFoundError:
        pass  # the sandbox is gone already, and the reason is reported elsewhere
    except OSError as error:
        lost = error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        said = str(table.gone(str(mount), error)) if lost else f"uevents are not delivered: {error}"
        print(f"apfs: {said}", file=sys.stderr)  # noqa: T201
