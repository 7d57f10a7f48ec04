"""What can happen on a host: frozen records, one class for each kind.

A record is made when its statement has become true. Whether a request succeeds or is refused is known at its end, so
its outcome (`Store`, `Verb`, `Ioctl` or `Refusal`) comes after everything that it led to.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

# The vocabulary of the fields that have one; docs/console.md says what the words mean.
Operation = Literal["open", "read", "write", "fsync", "console", "ioctl"]
Action = Literal["add", "remove", "change", "move", "online", "offline", "bind", "unbind"]
Level = Literal["err", "warn", "notice", "info"]
Irq = Literal["request", "config_changed"]
MigrationState = Literal["STOP", "RUNNING", "STOP_COPY", "RESUMING"]

Keys = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Record:
    """Base of all records."""

    kind: ClassVar[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the record's fields as JSON-able values, `type` first."""
        return {"type": self.kind, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Store(Record):
    """A write to an attribute that succeeded."""

    kind = "store"
    path: str
    data: str


@dataclass(frozen=True, slots=True)
class Refusal(Record):
    """A request that was refused, with the errno that the caller got, and the reason, which sysfs cannot tell."""

    kind = "refusal"
    operation: Operation
    path: str
    data: str
    errno: str
    why: str


@dataclass(frozen=True, slots=True)
class Uevent(Record):
    """An event as the kernel sends it (kobject_uevent_env). `keys` are those after ACTION, DEVPATH and SUBSYSTEM."""

    kind = "uevent"
    action: Action
    devpath: str
    subsystem: str
    keys: Keys

    def environment(self) -> Keys:
        """Return all keys in the order in which they are sent, without SEQNUM, which is known when they are sent."""
        head = (("ACTION", self.action), ("DEVPATH", self.devpath), ("SUBSYSTEM", self.subsystem))
        return head + self.keys

    def as_dict(self) -> dict[str, Any]:
        """Return the fields with the keys as an object."""
        return {
            "type": self.kind,
            "action": self.action,
            "devpath": self.devpath,
            "subsystem": self.subsystem,
            "keys": dict(self.keys),
        }


@dataclass(frozen=True, slots=True)
class LogLine(Record):
    """A line of the kernel log, with the name of its printk level."""

    kind = "log"
    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class GuestUpdate(Record):
    """The AP resources of a running guest were set (kvm_arch_crypto_set_masks); masks in hex."""

    kind = "guest"
    mdev: str
    adapters: str
    domains: str
    control_domains: str


@dataclass(frozen=True, slots=True)
class Interrupt(Record):
    """A VFIO interrupt (eventfd) of a mediated device was signalled."""

    kind = "interrupt"
    mdev: str
    irq: Irq


@dataclass(frozen=True, slots=True)
class Ioctl(Record):
    """A VFIO or iommufd ioctl that succeeded; one that failed is a `Refusal` with the operation `ioctl`."""

    kind = "ioctl"
    path: str
    request: str


@dataclass(frozen=True, slots=True)
class QueuesReset(Record):
    """Queues were zeroized by the vfio_ap driver; `failed` maps an APQN to a response code other than zero."""

    kind = "reset"
    count: int
    failed: dict[str, int]


@dataclass(frozen=True, slots=True)
class Migration(Record):
    """A mediated device has reached the next migration state."""

    kind = "migration"
    mdev: str
    before: MigrationState
    after: MigrationState


@dataclass(frozen=True, slots=True)
class Verb(Record):
    """A console verb was carried out; one that was refused is a `Refusal` with the operation `console`."""

    kind = "verb"
    text: str


@dataclass(frozen=True, slots=True)
class Crash(Record):
    """A defect of the emulation itself: an unexpected exception, answered with EIO."""

    kind = "crash"
    operation: str
    traceback: str


KINDS: dict[str, type[Record]] = {
    kind.kind: kind
    for kind in (Store, Refusal, Uevent, LogLine, GuestUpdate, Interrupt, Ioctl, QueuesReset, Migration, Verb, Crash)
}
"""Classes of records by the `type` that `ctl/journal` gives them."""
