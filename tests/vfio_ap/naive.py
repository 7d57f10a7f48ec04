"""Naive targets of all revisions: the rules one after the other, with nothing but numbers, strings of bits, lists."""

from collections.abc import Container
from dataclasses import dataclass, field

from .streams import Event, pair

FACILITIES = ("F1", "F2", "F3", "M1", "M2", "M3", "X1", "L1")
USABLE = "00"


def bits(word: int, first: int, last: int) -> str:
    """Return bits of a word, of which 0 is the highest."""
    return f"{word:064b}"[first : last + 1]


def name(apqn: int) -> str:
    return f"{apqn >> 8:02x}.{apqn & 0xFF:04x}"


@dataclass
class NaiveHost:
    """A host: what is bound to vfio_ap, what is reserved, what other devices have, and what this one has."""

    words: dict[int, int]
    """Word by APQN of the queues that are bound to vfio_ap. For v2 those in records, of the guest matrix only."""
    responses: dict[int, int] = field(default_factory=dict)
    """Response code of TAPQ by APQN, if it is none that comes with information."""
    control_domains: set[int] = field(default_factory=set)
    reserved: Container[int] = ()
    taken: Container[int] = ()
    assigned: tuple[set[int], set[int], set[int]] = field(default_factory=lambda: (set(), set(), set()))
    log: list[Event] = field(default_factory=list)
    lost: int = 0
    """How many APQNs of the guest matrix have no queue."""


class RefusedError(Exception):
    """A write that is refused."""


def compatible_v4(source: int, target: int) -> bool:
    if bits(source, 0, 17) == bits(target, 0, 17) and bits(source, 32, 39) == bits(target, 32, 39):
        return True
    if bits(source, 0, 31) != bits(target, 0, 31) or bits(source, 16, 17) != USABLE:
        return False
    return int(bits(source, 32, 39), 2) <= int(bits(target, 32, 39), 2)


def compatible_next(source: int, target: int) -> bool:
    if bits(source, 16, 17) != USABLE or bits(target, 16, 17) != USABLE:
        return False
    if bits(source, 0, 17) == bits(target, 0, 17) and bits(source, 32, 39) == bits(target, 32, 39):
        return True
    if bits(source, 0, 7) != bits(target, 0, 7):
        return False
    if int(bits(source, 32, 39), 2) > int(bits(target, 32, 39), 2):
        return False
    return not (bits(source, 8, 8) == "1" and bits(target, 8, 8) == "0")


def diagnosis(source: int, target: int, apqn: int) -> list[Event]:
    """Return the lines about a queue that is not compatible."""
    lines: list[Event] = [("Q0", name(apqn))]
    for bit, key in enumerate(FACILITIES):
        if bits(source, bit, bit) != bits(target, bit, bit):
            lines += pair(key, "present" if bits(source, bit, bit) == "1" else "absent", name(apqn))
    types = int(bits(source, 32, 39), 2), int(bits(target, 32, 39), 2)
    if types[0] > types[1]:
        lines.append(("T1", f"{types[0]:02x}", f"{types[1]:02x}"))
    states = int(bits(source, 16, 17), 2), int(bits(target, 16, 17), 2)
    if states != (0, 0):
        lines.append(("B1", f"{states[0]:x}", f"{states[1]:x}", name(apqn)))
    if bits(source, 8, 8) == "1" and bits(target, 8, 8) == "0":
        lines += pair("K1", "native", name(apqn))
    return lines


@dataclass
class NaiveFile:
    position: int = 0
    received: bytes = b""
    """Of v2, as well as the next two."""
    limit: int = 0
    over: bool = False


class Naive:
    """What both have."""

    newest = False

    def __init__(self, host: NaiveHost) -> None:
        self.host = host
        self.current: NaiveFile | None = None
        self.open = True

    def session(self) -> NaiveFile:
        self.current = NaiveFile()
        return self.current

    def leave(self) -> None:
        """End a session: files live on."""

    def write(self, file: NaiveFile, data: bytes) -> int | str:
        """Return how many bytes are taken, or the errno."""
        try:
            self.take(file, data)
        except RefusedError as refused:
            return str(refused)
        return len(data)

    def take(self, file: NaiveFile, data: bytes) -> None:
        raise NotImplementedError

    def reset(self) -> None:
        raise NotImplementedError

    def settle(self, entries: list[tuple[int, int]], control: set[int] | None) -> None:
        """Check a complete stream and give the device what it says."""
        host = self.host
        unbound = [apqn for _, apqn in entries if apqn not in host.words]
        if unbound:
            host.log += [("U1", name(apqn)) for apqn in unbound]
            raise RefusedError("ENODEV")
        lacking = sorted((control or set()) - host.control_domains)
        if lacking:
            host.log += [("C1", f"{domain:04x}") for domain in lacking]
            raise RefusedError("ENODEV")
        answer = ""
        for word, apqn in entries:
            if apqn in host.responses:
                answer = "ENODEV" if host.responses[apqn] == 1 else "EIO"
                host.log.append(("R1", name(apqn)))
            elif not (compatible_next if self.newest else compatible_v4)(word, host.words[apqn]):
                answer = "EINVAL" if self.newest else "EFAULT"
                host.log += diagnosis(word, host.words[apqn], apqn)
        if answer:
            raise RefusedError(answer)
        adapters, domains = {apqn >> 8 for _, apqn in entries}, {apqn & 0xFF for _, apqn in entries}
        product = [apid << 8 | apqi for apid in adapters for apqi in domains]
        if any(apqn in host.reserved for apqn in product):
            raise RefusedError("EADDRNOTAVAIL")
        if any(apqn in host.taken for apqn in product):
            raise RefusedError("EADDRINUSE")
        if not self.newest and any(apqn not in host.words for apqn in product):
            raise RefusedError("ECANCELED")
        host.assigned = adapters, domains, host.assigned[2] if control is None else control


class NaiveV2(Naive):
    """A stream in pieces, which is compared with what the target has."""

    def session(self) -> NaiveFile:
        self.leave()
        self.current = NaiveFile(limit=8 + 16 * (len(self.host.words) + self.host.lost))
        return self.current

    def leave(self) -> None:
        if self.current:
            self.current.over = True

    def take(self, file: NaiveFile, data: bytes) -> None:
        words, log = self.host.words, self.host.log
        if file.over:
            log.append(("W1",))
            raise RefusedError("EIO")
        length = len(file.received) + len(data)
        if length > file.limit:
            log.append(("W4", str(length), str(file.limit)))
            raise RefusedError("EIO")
        file.received += data
        if length < 4:
            return
        count, ours = int.from_bytes(file.received[:4], "big", signed=True), len(words) + self.host.lost
        if count != ours:
            log.append(("N1", str(count), str(ours)))
            raise RefusedError("ENODEV" if count < ours else "E2BIG")
        if length == file.limit:
            self.compare(entries_of(file.received[8:])[:count])

    def compare(self, entries: list[tuple[int, int]]) -> None:
        lacking = [apqn for _, apqn in entries if apqn not in self.host.words]
        if lacking:
            self.host.log += [("A1", name(apqn)) for apqn in lacking]
            raise RefusedError("ENODEV")
        for source, apqn in entries:
            target = self.host.words[apqn]
            types = int(bits(source, 32, 39), 2), int(bits(target, 32, 39), 2)
            if bits(source, 0, 17) == bits(target, 0, 17) and types[0] == types[1]:
                continue
            if bits(source, 0, 31) == bits(target, 0, 31) and types[0] <= types[1]:
                continue
            self.host.log += [("Q0", name(apqn)), *self.differences(source, target, apqn)]
            raise RefusedError("EFAULT")

    @staticmethod
    def differences(source: int, target: int, apqn: int) -> list[Event]:
        lines: list[Event] = []
        for bit, key in enumerate(FACILITIES):
            if bits(source, bit, bit) != bits(target, bit, bit):
                lines += pair(key, "present" if bits(source, bit, bit) == "1" else "absent", name(apqn))
        if bits(source, 8, 8) == "1" and bits(target, 8, 8) == "0":
            lines += pair("K1", "native", name(apqn))
        lines.append(("T1", *(f"{int(bits(word, 32, 39), 2):02x}" for word in (source, target))))
        states = [f"{int(bits(word, 16, 17), 2):x}" for word in (source, target)]
        if states != ["0", "0"]:
            lines.append(("B1", *states, name(apqn)))
        return lines

    def reset(self) -> None:
        pass


def entries_of(data: bytes) -> list[tuple[int, int]]:
    assert len(data) % 16 == 0
    pieces = [data[start : start + 16] for start in range(0, len(data), 16)]
    return [(int.from_bytes(piece[:8], "big"), int.from_bytes(piece[8:10], "big")) for piece in pieces]


class NaiveV4(Naive):
    """A stream in one write. One that was taken is in the way of all others until the device is closed."""

    def __init__(self, host: NaiveHost) -> None:
        super().__init__(host)
        self.in_the_way = False

    def take(self, file: NaiveFile, data: bytes) -> None:
        if not self.open:
            raise RefusedError("ENODEV")
        if file is not self.current:
            raise RefusedError("ENXIO")
        if file.position == 0 and self.in_the_way:
            raise RefusedError("EFAULT")
        if file.position > 0:
            raise RefusedError("EIO" if self.in_the_way else "EFAULT")
        file.position += len(data)
        if len(data) < 16:
            raise RefusedError("EIO")
        count = int.from_bytes(data[:4], "big")
        if count > 65536:
            raise RefusedError("EINVAL")
        if len(data) > 16 + 16 * count:
            raise RefusedError("EIO")
        if len(data) == 16 + 16 * count:
            self.settle(entries_of(data[16:]), None)
            self.in_the_way = True

    def reset(self) -> None:
        pass


class NaiveNext(Naive):
    """A stream in pieces. What has come stays until a reset; that something has come is known until the close."""

    newest = True

    def __init__(self, host: NaiveHost) -> None:
        super().__init__(host)
        self.first_bytes = b""
        self.begun = False
        self.received: bytes | None = None
        self.size = 0

    def take(self, file: NaiveFile, data: bytes) -> None:  # noqa: C901, PLR0912 -- one rule after the other
        if data == b"":
            raise RefusedError("EINVAL")
        if not self.open:
            raise RefusedError("ENODEV")
        if file is not self.current:
            raise RefusedError("ENXIO")
        had_buffer = self.received is not None
        if self.begun and not had_buffer:
            raise RefusedError("EFAULT")
        if self.received is not None:
            if self.received[:8] != bytes.fromhex("7666617000000001"):
                raise RefusedError("EINVAL")
            if file.position + len(data) > self.size:
                raise RefusedError("EIO")
        where = file.position
        file.position += len(data)
        if self.received is None:
            first_bytes = self.first_bytes[:where] + data
            self.first_bytes = first_bytes[:12]
            if len(first_bytes) < 12:
                return
            self.begun = True
            count = int.from_bytes(first_bytes[8:12], "big")
            if count > 65536:
                raise RefusedError("EINVAL")
            self.size = 48 + 16 * count
            if len(first_bytes) > self.size:
                raise RefusedError("EIO")
            self.received = first_bytes + bytes(self.size - len(first_bytes))
        else:
            self.received = self.received[:where] + data + self.received[file.position :]
        if file.position == self.size:
            mask = f"{int.from_bytes(self.received[16:48], 'big'):0256b}"
            try:
                self.settle(entries_of(self.received[48:]), {n for n, bit in enumerate(mask) if bit == "1"})
            except RefusedError:
                if not had_buffer:
                    self.received = None
                raise

    def reset(self) -> None:
        self.current = None
        self.received = None
