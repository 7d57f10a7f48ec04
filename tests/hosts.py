"""The hosts that tests have, without a mount: what is done to them, and what is seen of them and of their journal."""

import errno
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pytest

from apfs.errors import KernelError
from apfs.host import Host
from apfs.journal.history import History, R
from apfs.journal.records import GuestUpdate, Interrupt, LogLine, QueuesReset, Record, Uevent
from apfs.scenario.reader import loads
from apfs.sysfs.entries import Stat
from apfs.testing.files import Shell

MATRIX = "/sys/devices/vfio_ap/matrix"
TYPE = f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough"
CREATE = f"{TYPE}/create"
AP_DRIVER = "/sys/bus/ap/drivers/vfio_ap"
ZCRYPT_DRIVER = "/sys/bus/ap/drivers/cex4queue"
MDEV_DRIVER = "/sys/bus/mdev/drivers/vfio_ap_mdev"
CONSOLE = "/ctl/console"
PAGE = 4096
ASKING = ("serialnr", "API_ordinalnr", "FW_version", "op_modes", "mkvps")
"""Attributes for which zcrypt asks the card."""

M1 = "11111111-aaaa-4aaa-8aaa-111111111111"
M2 = "22222222-bbbb-4bbb-8bbb-222222222222"
M3 = "33333333-cccc-4ccc-8ccc-333333333333"
M4 = "44444444-dddd-4ddd-8ddd-444444444444"

ASSIGN = ("assign_adapter", "assign_domain", "assign_control_domain")
UNASSIGN = ("unassign_adapter", "unassign_domain", "unassign_control_domain")

# The host of the worked examples: cards 5 and 6 released to vfio_ap, card 7 kept by zcrypt.
WORKED = """
name = "worked"
[qci]
domains = [0x04, 0x47, 0xab, 0xff]
max_adapter = 63
max_domain = 255
[[card]]
adapters = [5, 6, 7]
type = "CEX8C"
[masks]
apmask = "-5-6"
"""

# The same hardware with nothing released: queues are given away one by one, by override.
RESERVED = WORKED.partition("[masks]")[0]

# One queue, which is in the last table: a mediated device that further keys may be added to.
ONE_QUEUE = f"""
[qci]
domains = [4]
[[card]]
adapter = 5
type = "CEX8C"
[masks]
apmask = "0x0"
[[mdev]]
uuid = "{M1}"
adapters = [5]
domains = [4]
"""

# No card at all and nothing reserved: every number can be assigned, none reaches a guest.
BARE = """
name = "bare"
[masks]
apmask = "0x0"
"""


def mask_text(numbers: Iterable[int]) -> str:
    """Return a mask as sysfs shows it, made the slow way."""
    chosen = set(numbers)
    bits = "".join("1" if number in chosen else "0" for number in range(256))
    return f"0x{int(bits, 2):064x}"


def config_text(adapters: Iterable[int] = (), domains: Iterable[int] = (), control: Iterable[int] = ()) -> str:
    """Return the canonical line of `ap_config`."""
    return ",".join(map(mask_text, (adapters, domains, control))) + "\n"


def product(adapters: Iterable[int], domains: Iterable[int]) -> list[str]:
    """Return the lines of `matrix` where both sides have something."""
    rows = list(domains)
    return [f"{adapter:02x}.{domain:04x}" for adapter in adapters for domain in rows]


def attempt(call: Callable[[], object]) -> str:
    """Return the name of the errno that a call is refused with, nothing if it succeeds."""
    try:
        call()
    except KernelError as error:
        return error.name
    return ""


@contextmanager
def refused(name: str) -> Iterator[None]:
    """Expect a refusal with this errno."""
    with pytest.raises(KernelError) as caught:
        yield
    assert caught.value.errno == getattr(errno, name), str(caught.value)
    assert caught.value.why


class Bench(Shell):
    """A host on the bench: a shell on it, and what has been in its journal since the last `mark`."""

    def __init__(self, text: str = WORKED, *, vfio_ap: bool = False) -> None:
        """Boot a scenario; with `vfio_ap`, load that module afterwards."""
        super().__init__(Host(loads(text)))
        if vfio_ap:
            self.host.modprobe("vfio_ap")
        self._mark = self.host.journal.last

    # -- writing ----------------------------------------------------------------------------------------------------

    def store(self, path: str, data: str | bytes) -> str:
        """Write to a file, and return the errno's name; success must have taken every byte."""
        raw = data.encode("latin-1") if isinstance(data, str) else data

        def write() -> None:
            assert self.write(path, raw) == min(len(raw), 4096)

        return attempt(write)

    def create(self, *uuids: str) -> None:
        """Create mediated devices."""
        for uuid in uuids:
            self.echo(uuid, CREATE)

    def put(self, uuid: str, name: str, text: object) -> int:
        """Write a line to a file of a mediated device."""
        return self.echo(text, f"{MATRIX}/{uuid}/{name}")

    def assign(
        self, uuid: str, adapters: Iterable[int] = (), domains: Iterable[int] = (), control: Iterable[int] = ()
    ) -> None:
        """Assign numbers one by one."""
        for name, numbers in zip(ASSIGN, (adapters, domains, control), strict=True):
            for number in numbers:
                self.put(uuid, name, number)

    def run_guest(self, uuid: str, text: object = 1) -> None:
        """Start (1) or stop (0) a guest."""
        self.echo(text, f"/dev/vfio-ap/{uuid}/guest")

    def give(self, *apqns: str) -> None:
        """Give queues to vfio_ap by override, as far as the driver: override, unbind, bind."""
        for apqn in apqns:
            self.echo("vfio_ap", f"{queue(apqn)}/driver_override")
            self.echo(apqn, f"{ZCRYPT_DRIVER}/unbind")
            self.echo(apqn, f"{AP_DRIVER}/bind")

    def unbind(self, *apqns: str) -> None:
        """Take queues from vfio_ap."""
        for apqn in apqns:
            self.echo(apqn, f"{AP_DRIVER}/unbind")

    def bind(self, *apqns: str) -> None:
        """Give queues to vfio_ap that may go there."""
        for apqn in apqns:
            self.echo(apqn, f"{AP_DRIVER}/bind")

    # -- reading ----------------------------------------------------------------------------------------------------

    def shown(self, path: str) -> str:
        """Return the content of a file, or the name of the errno that reading it gives."""
        try:
            return self.read(path).decode("latin-1")
        except KernelError as error:
            return error.name

    def names(self, path: str) -> set[str]:
        """Return the names in a directory, with a character for each byte, as `store` takes them."""
        return {name.encode("utf-8", "surrogateescape").decode("latin-1") for name in self.ls(path)}

    def driver(self, device: str) -> str | None:
        """Return the name of a device's driver."""
        return self.readlink(f"{device}/driver").rsplit("/", 1)[1] if "driver" in self.names(device) else None

    def drivers(self) -> dict[str, str | None]:
        """Return the drivers of all queues, by name of the queue."""
        devices = "/sys/bus/ap/devices"
        return {name: self.driver(f"{devices}/{name}") for name in self.ls(devices) if "." in name}

    def show(self, uuid: str, name: str) -> str:
        """Return the content of a file of a mediated device."""
        return self.cat(f"{MATRIX}/{uuid}/{name}")

    def lines(self, uuid: str, name: str) -> list[str]:
        """Return its lines, each of which must end with a newline."""
        text = self.show(uuid, name)
        assert text == "" or text.endswith("\n")
        return text.split("\n")[:-1]

    def matrix(self, uuid: str) -> list[str]:
        """Return what is assigned."""
        return self.lines(uuid, "matrix")

    def guest_matrix(self, uuid: str) -> list[str]:
        """Return what a guest has or would have."""
        return self.lines(uuid, "guest_matrix")

    def guest_control_domains(self, uuid: str) -> list[int]:
        """Return the control domains a guest has or would have, which sysfs does not show."""
        domains: list[int] = self.status()["mdevs"][uuid]["guest_matrix"]["control_domains"]
        return domains

    def queue_status(self, apqn: str) -> str:
        """Return the status of a queue that is bound to vfio_ap."""
        return self.cat(f"{queue(apqn)}/status")

    def dump(self, *roots: str) -> dict[str, str]:
        """Return everything that can be seen below some directories (all but the journal), by path.

        Links have their text, files their permissions and content, directories their number of links. What asks a card
        is not read: it makes the bus scan if nobody answers.
        """
        return {path: self._seen(path, found) for root in roots or ("/sys", "/dev") for path, found in self.find(root)}

    def _seen(self, path: str, found: Stat) -> str:
        mode = stat.S_IMODE(found.mode)
        if stat.S_ISLNK(found.mode):
            return f"link {self.readlink(path)}"
        if stat.S_ISDIR(found.mode):
            return f"dir {mode:04o} {found.nlink}"
        if not stat.S_ISREG(found.mode) or found.size != PAGE:
            # What is no attribute might change by being read.
            return f"{found.mode:o} {found.size}"
        return f"{mode:04o} {self.shown(path) if mode & 0o444 and path.rsplit('/', 1)[1] not in ASKING else ''}"

    # -- the journal --------------------------------------------------------------------------------------------------

    def mark(self) -> None:
        """Forget what the journal has so far."""
        self._mark = self.host.journal.last

    @property
    def journal(self) -> History:
        """What happened since the mark, and with it the answers of `uevents`, `refusals` ..."""
        return super().journal.since(self._mark)

    def records(self, kind: type[R]) -> list[R]:
        """Return the records of a kind since the mark."""
        return self.journal.of_kind(kind)

    def story(self, *kinds: type[Record]) -> list[Record]:
        """Return the records of some kinds since the mark, in their order."""
        return [record for record in self.journal if isinstance(record, kinds)]

    def log(self) -> list[str]:
        """Return the kernel log since the mark, each line with its level in front."""
        return [f"{record.level} {record.text}" for record in self.journal.of_kind(LogLine)]

    def pushes(self) -> list[tuple[str, str, str]]:
        """Return the masks that guests were given since the mark."""
        return [
            (record.adapters, record.domains, record.control_domains) for record in self.journal.of_kind(GuestUpdate)
        ]

    def heard(self) -> list[Uevent]:
        """Return the uevents since the mark, and set it."""
        records = self.records(Uevent)
        self.mark()
        return records

    def events(self) -> list[str]:
        """Return what was heard, each as action, path below `/devices/ap` and keys, blanks between."""
        return [
            " ".join(
                (
                    event.action,
                    event.devpath.removeprefix("/devices/ap/"),
                    *(f"{key}={text}" for key, text in event.keys),
                )
            )
            for event in self.heard()
        ]

    def short_events(self) -> list[str]:
        """Return what was heard without the keys that every event of a device has."""
        common = ("DEVTYPE=", "DRIVER=", "DEV_TYPE=", "MODALIAS=", "MODE=")
        return [" ".join(word for word in event.split(" ") if not word.startswith(common)) for event in self.events()]

    def interrupts(self) -> list[tuple[str, str]]:
        """Return the interrupts of VFIO devices since the mark."""
        return [(record.mdev, record.irq) for record in self.journal.of_kind(Interrupt)]

    def resets(self) -> list[int]:
        """Return how many queues were reset each time since the mark."""
        return [record.count for record in self.journal.of_kind(QueuesReset)]


def queue(apqn: str) -> str:
    """Return the directory of a queue."""
    return f"/sys/devices/ap/card{apqn[:2]}/{apqn}"


def built(text: str = WORKED) -> Bench:
    """Return the state after the first worked example: M1 with adapters 5, 6 and domains 4, 0xab."""
    bench = Bench(text)
    bench.create(M1)
    bench.assign(M1, (5, 6), (4, 0xAB), (4, 0xAB))
    bench.mark()
    return bench


def apqns_in(line: str) -> list[str]:
    """Return the queues that a log line names."""
    return re.findall(r"\b[0-9a-f]{2}\.[0-9a-f]{4}\b", line)
