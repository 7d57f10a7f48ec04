"""Types of records in the journal: one frozen class for each kind of event.

A record is created after the fact that it states. Whether a request succeeds or is refused is known only at its end, so
its outcome (`Store`, `Verb`, `Ioctl`, `Refusal` ...) follows everything that it caused.

A replay repeats requests from their outcomes (`apfs.replay`), so everything that can change the state of a host has
one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

# The vocabulary of the fields that have one; docs/console.md says what the words mean.
Operation = Literal["open", "read", "write", "fsync", "console", "ioctl"]
Action = Literal["add", "remove", "change", "move", "online", "offline", "bind", "unbind"]
Level = Literal["err", "warn", "notice", "info"]
Irq = Literal["request", "config_changed"]
MigrationState = Literal["STOP", "RUNNING", "STOP_COPY", "RESUMING"]
Direction = Literal["read", "write"]

Keys = tuple[tuple[str, str], ...]
Details = dict[str, Any]
"""JSON values by name."""


@dataclass(frozen=True, slots=True)
class Record:
    """Base of all records."""

    kind: ClassVar[str]
    outcome: ClassVar[bool] = False
    """Whether it says what became of something that was asked of the host from outside."""

    def as_dict(self) -> dict[str, Any]:
        """Return the record's fields as JSON-able values, `type` first."""
        return {"type": self.kind, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Store(Record):
    """A write to an attribute that succeeded."""

    kind = "store"
    outcome = True
    path: str
    data: str


@dataclass(frozen=True, slots=True)
class _Detailed:
    """An outcome with what is not for people: `input` is what else the request consists of, `answer` what it gave.

    Two records that differ in nothing else are equal; as text they are not. What has no details has no such key.
    """

    input: Details | None = field(default=None, compare=False, kw_only=True)
    answer: Details | None = field(default=None, compare=False, kw_only=True)

    kind: ClassVar[str]
    outcome: ClassVar[bool] = True

    def as_dict(self) -> dict[str, Any]:
        """Return the fields; `input` and `answer` only if there is something in them."""
        fields = {"type": self.kind, **asdict(self)}
        for name in ("input", "answer"):
            details = fields.pop(name)
            if details is not None:
                fields[name] = details
        return fields


@dataclass(frozen=True, slots=True)
class Refusal(_Detailed, Record):
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
class Ioctl(_Detailed, Record):
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
    outcome = True
    text: str


@dataclass(frozen=True, slots=True)
class Open(Record):
    """A file was opened that keeps something in use while it is open: of VFIO, iommufd, or a migration session.

    `file` is the number by which other records name it; files that share everything, as those of a migration session
    do, share the number. `access` is `r`, `w`, `rw` or, for ioctls only, empty.
    """

    kind = "open"
    outcome = True
    path: str
    access: str
    file: int


@dataclass(frozen=True, slots=True)
class Close(Record):
    """Such a file was closed."""

    kind = "close"
    outcome = True
    path: str
    file: int


@dataclass(frozen=True, slots=True)
class Transfer(Record):
    """A piece of a migration stream was read or written; `size` is what was asked for, `content` in hex what came."""

    kind = "transfer"
    outcome = True
    path: str
    file: int
    direction: Direction
    size: int
    content: str


@dataclass(frozen=True, slots=True)
class Read(Record):
    """Reading an attribute had an effect: a scan, for want of a queue to ask, or one answer fewer that is left out."""

    kind = "read"
    outcome = True
    path: str


@dataclass(frozen=True, slots=True)
class Setattr(Record):
    """Permissions, ownership or times of a file were changed; None for what was left alone."""

    kind = "setattr"
    outcome = True
    path: str
    mode: int | None
    uid: int | None
    gid: int | None
    atime: int | None = None
    """Nanoseconds since the epoch, as `mtime`."""
    mtime: int | None = None


@dataclass(frozen=True, slots=True)
class Time(Record):
    """Time has passed by the clock of the front end."""

    kind = "time"
    outcome = True
    seconds: int


@dataclass(frozen=True, slots=True)
class Inside(Record):
    """The outcome of a request to the guest of a mediated device, as the guest's own journal has it too."""

    kind = "inside"
    outcome = True
    guest: str
    record: Record

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, with the record as an object."""
        return {"type": self.kind, "guest": self.guest, "record": self.record.as_dict()}


@dataclass(frozen=True, slots=True)
class Crash(_Detailed, Record):
    """A defect of the emulation itself: an unexpected exception, answered with EIO."""

    kind = "crash"
    operation: str
    traceback: str


KINDS: dict[str, type[Record]] = {
    kind.kind: kind
    for kind in (
        *(Store, Refusal, Uevent, LogLine, GuestUpdate, Interrupt, Ioctl, QueuesReset, Migration, Verb),
        *(Open, Close, Transfer, Read, Setattr, Time, Inside, Crash),
    )
}
"""Classes of records by the `type` that `ctl/journal` gives them."""

FORMAT = 1
"""Number of the form of journals. It grows when records get another meaning, not when there are new ones."""


@dataclass(frozen=True, slots=True)
class Header:
    """What is in front of a journal: the host as it was when it began, which a replay needs."""

    format: int
    apfs: str
    """Version of apfs."""
    guest: str | None
    """None for a host; the UUID of its mediated device for a guest, which can only be replayed with its host."""
    name: str
    scenario: str | None
    """Text of the scenario, in TOML; None for guests."""
    driver: str
    """Revision of the migration series."""
    kernel: Details
    """`version`, and by `changes` the features that are not as in that release."""
    clock: str
    """`real`, or `manual`: time passes only by the verb `tick`."""

    kind: ClassVar[str] = "host"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values, `type` first."""
        return {"type": self.kind, **asdict(self)}
