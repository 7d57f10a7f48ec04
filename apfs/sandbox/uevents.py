"""Sends the emulated host's uevents to the kernel uevent multicast group of a network namespace.

The process that has assembled a sandbox follows `ctl/uevents` of the mount and sends new events. The kernel broadcasts
an event that it gets with its own SEQNUM, as if it had created the event. If no udevd runs, the process also sends
udevd's messages, because libudev's monitors listen only to udevd.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import struct
import sys
from typing import TYPE_CHECKING, NamedTuple

from apfs.mounts import table
from apfs.sandbox import linux

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import FileIO
    from pathlib import Path

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


class Carrier:
    """Carries the events of a mount to a sandbox, those of a guest until it ends.

    The process that has it makes it outside, and goes on with it in the sandbox. When it cannot carry events any more,
    it says so, and that is its end.
    """

    def __init__(self, mount: Path) -> None:
        """Listen to the mount from now on."""
        self._mount = mount
        self._follow: Callable[[Event], None] = lambda _: None
        self._sender: Sender | None = None
        self._source: FileIO | None = None
        self._ours = False
        with self._ending():
            place = mount / "ctl/uevents"
            self._ours = os.access(place, os.W_OK)
            self._source = place.open("r+b" if self._ours else "rb", buffering=0)
            events = parse(self._source.read().decode("latin-1"))
            self._last = events[-1].sequence if events else "0"

    @property
    def source(self) -> int | None:
        """What can be read when there are events, as long as they can be carried."""
        return None if self._source is None else self._source.fileno()

    def start(self, follow: Callable[[Event], None], network: int | None, *, become_root: bool) -> None:
        """Be ready to carry events, in the sandbox's user and mount namespaces.

        `follow` gets them first, and then whoever listens in a private network, by a descriptor of that. The
        process has to `become_root` for them if the sandbox has its own users. The host is told what has been
        delivered: a write that sends events returns afterwards, as in Linux. Of another user's mount nobody may hold up
        the writes.
        """
        self._follow = follow
        with self._ending():
            if network is not None:
                linux.enter(network, linux.CLONE_NEWNET)
                if become_root:  # libudev believes only messages whose sender is root in the listener's eyes
                    os.setresgid(0, 0, 0)
                    os.setresuid(0, 0, 0)
                self._sender = Sender()
            self._tell(self._last)

    def carry(self, found: int) -> None:
        """Carry the events that have come, when poll(2) has `found` something at the source."""
        with self._ending():
            text = self._source.read() if self._source else None
            events = parse(text.decode("latin-1")) if text else []
            for event in events:
                self._follow(event)
                if self._sender is not None:
                    self._sender.as_kernel(event)
                    if not has_udevd():
                        self._sender.as_udevd(event)
            if events:
                self._tell(events[-1].sequence)
            if found & select.POLLHUP:
                self._end()

    def _tell(self, sequence: str) -> None:
        """Tell the host what has been delivered."""
        if self._ours and self._source is not None:
            self._source.write(sequence.encode())

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            self._end()  # the host is gone already, and the reason is reported elsewhere
        except OSError as error:
            self._end()
            lost = error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
            said = str(table.gone(str(self._mount), error)) if lost else f"uevents are not delivered: {error}"
            print(f"apfs: {said}", file=sys.stderr)  # noqa: T201

    def _end(self) -> None:
        if self._source is not None:
            with contextlib.suppress(OSError):  # a host that is told of it may be gone
                self._source.close()
            self._source = None


def has_udevd() -> bool:
    """Whether a udevd runs in the sandbox that this process is in: it has made its control file a socket."""
    try:
        return stat.S_ISSOCK(os.stat("/run/udev/control").st_mode)  # noqa: PTH116 -- faster
    except OSError:
        return False
