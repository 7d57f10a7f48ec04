"""`/ctl`: what a hardware console, a hypervisor or a fault would do, and what happened, as files.

A verb is written to `console`, one per write; the table `VERBS` is the whole language.
"""

from __future__ import annotations

import errno
import json
import select
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apfs import __version__
from apfs.ap.qinfo import Apqn, Response, card_name
from apfs.kernel.bitmap import NONE, Mask
from apfs.kernel.errors import KernelError
from apfs.kernel.journal import LogLine, Refusal, Uevent, Verb
from apfs.kernel.kobject import Special
from apfs.kernel.kstrtox import kstrtoul
from apfs.kernel.openfile import PAGE_SIZE, READY, TextFile
from apfs.vfio.channel import Channel
from apfs.vfio_ap.attributes import matrix_mdev
from apfs.vfio_ap.client import Vm

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs.ap.card import ApCard
    from apfs.host import Host
    from apfs.kernel.journal import Journal, Record
    from apfs.vfio_ap.matrix import Matrix, MatrixMdev

CONSOLE = "/ctl/console"


@dataclass(frozen=True, slots=True)
class ConsoleVerb:
    """A verb: its arguments as a user writes them, what it does, and the function that does it."""

    usage: str
    summary: str
    run: Callable[[Host, list[str]], None]
    least: int
    most: int | None = None
    """Number of arguments; no upper limit if None."""


def _adapter(word: str) -> int:
    """Return the adapter of `5`, `0x05` or `card05`."""
    if word.startswith("card"):
        word = "0x" + word.removeprefix("card")
    return kstrtoul(word)


def _apqn(word: str) -> Apqn:
    apqn = Apqn.parse(word)
    if apqn is None:
        raise KernelError(errno.EINVAL, f"not a queue such as 05.00ab: {word!r}")
    return apqn


def _on(word: str) -> bool:
    if word not in ("on", "off"):
        raise KernelError(errno.EINVAL, f"expected on or off, not {word!r}")
    return word == "on"


def _fields(words: list[str]) -> dict[str, int]:
    fields = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise KernelError(errno.EINVAL, f"expected FIELD=VALUE, not {word!r}")
        fields[name] = kstrtoul(value)
    return fields


def _errno(word: str) -> int:
    number = getattr(errno, word, None) if word.isidentifier() else None
    if not isinstance(number, int):
        raise KernelError(errno.EINVAL, f"not the name of an error such as EIO: {word!r}")
    return number


def _help(host: Host, _words: list[str]) -> None:
    for name, verb in VERBS.items():
        host.journal.log("info", f"console: {f'{name} {verb.usage}'.strip()}: {verb.summary}")


def _plug(host: Host, words: list[str]) -> None:
    host.plug(_adapter(words[0]), words[1], _fields(words[2:]))


def _tapq(host: Host, words: list[str]) -> None:
    fields = _fields(words[1:])
    if "." in words[0]:
        host.set_tapq(_apqn(words[0]).apid, fields, _apqn(words[0]).apqi)
    else:
        host.set_tapq(_adapter(words[0]), fields)


def _fail_reset(host: Host, words: list[str]) -> None:
    response = kstrtoul(words[1]) if len(words) > 1 else int(Response.OTHERWISE_CHANGED)
    if not 0 < response <= 0xFF:  # noqa: PLR2004 -- response codes have a byte
        raise KernelError(errno.EINVAL, f"{response} is not a response code of a failed reset")
    host.fail_reset(_apqn(words[0]), response)


def _fault(host: Host, words: list[str]) -> None:
    accesses = kstrtoul(words[2]) if len(words) > 2 else 1  # noqa: PLR2004 -- the third word is optional
    if not words[0].startswith("/") or not accesses:
        raise KernelError(errno.EINVAL, "expected an absolute path as seen in the mount, and at least one access")
    host.inject(words[0], _errno(words[1]), accesses)


def _kvm(host: Host, word: str) -> None:
    if word not in ("auto", "none"):
        raise KernelError(errno.EINVAL, f"expected auto or none, not {word!r}")
    host.vfio.kvm = "auto" if word == "auto" else "none"


VERBS: dict[str, ConsoleVerb] = {
    "help": ConsoleVerb("", "list the verbs in ctl/kmsg", _help, 0, 0),
    "plug": ConsoleVerb("ADAPTER TYPE [FIELD=VALUE]...", "insert a card, such as CEX8C", _plug, 2),
    "unplug": ConsoleVerb("ADAPTER", "take a card out", lambda host, words: host.unplug(_adapter(words[0])), 1, 1),
    "add-domain": ConsoleVerb(
        "N...", "give usage domains to the host", lambda host, words: host.change_domains(add=map(kstrtoul, words)), 1
    ),
    "remove-domain": ConsoleVerb(
        "N...", "take usage domains away", lambda host, words: host.change_domains(remove=map(kstrtoul, words)), 1
    ),
    "add-control-domain": ConsoleVerb(
        "N...",
        "give control domains to the host",
        lambda host, words: host.change_domains(add=map(kstrtoul, words), control=True),
        1,
    ),
    "remove-control-domain": ConsoleVerb(
        "N...",
        "take control domains away",
        lambda host, words: host.change_domains(remove=map(kstrtoul, words), control=True),
        1,
    ),
    "configure": ConsoleVerb(
        "ADAPTER on|off",
        "configure or deconfigure a card from outside",
        lambda host, words: host.configure(_adapter(words[0]), on=_on(words[1])),
        2,
        2,
    ),
    "checkstop": ConsoleVerb(
        "ADAPTER on|off",
        "check-stop a card, or repair it",
        lambda host, words: host.checkstop(_adapter(words[0]), on=_on(words[1])),
        2,
        2,
    ),
    "tapq": ConsoleVerb("ADAPTER|APQN FIELD=VALUE...", "change fields of the TAPQ word of a card or queue", _tapq, 2),
    "scan": ConsoleVerb("", "make the AP bus scan now", lambda host, _words: host.scan(), 0, 0),
    "tick": ConsoleVerb("SECONDS", "let time pass", lambda host, words: host.tick(_seconds(words[0])), 1, 1),
    "fail-reset": ConsoleVerb(
        "APQN [CODE]", "make the next reset of a queue end with a response code (7)", _fail_reset, 1, 2
    ),
    "fault": ConsoleVerb("PATH ERRNO [N]", "make the next N accesses of an attribute fail (1)", _fault, 2, 3),
    "clear-faults": ConsoleVerb("", "take back fault and fail-reset", lambda host, _words: host.clear_faults(), 0, 0),
    "kvm": ConsoleVerb(
        "auto|none",
        "whether programs that open devices through VFIO stand for a VM each, or have none",
        lambda host, words: _kvm(host, words[0]),
        1,
        1,
    ),
    "modprobe": ConsoleVerb("MODULE", "load a kernel module", lambda host, words: host.modprobe(words[0]), 1, 1),
    "rmmod": ConsoleVerb("MODULE", "unload a kernel module", lambda host, words: host.rmmod(words[0]), 1, 1),
}

_DAY = 86400


def _seconds(word: str) -> int:
    seconds = kstrtoul(word)
    if seconds > _DAY:
        raise KernelError(errno.EINVAL, f"{seconds} s is more than a day")
    return seconds


def run_verb(host: Host, text: str) -> None:
    """Carry out one verb; EINVAL for what is none, else what the verb refuses."""
    name, *words = text.split() or [""]
    verb = VERBS.get(name)
    if verb is None:
        raise KernelError(errno.EINVAL, f"no verb {name!r}: write help and read ctl/kmsg")
    if len(words) < verb.least or (verb.most is not None and len(words) > verb.most):
        raise KernelError(errno.EINVAL, f"usage: {name} {verb.usage}".rstrip())
    host.journal.add(Verb(text.strip()))
    verb.run(host, words)


class ConsoleFile:
    """The open console."""

    seekable = True

    def __init__(self, host: Host) -> None:
        self._host = host

    def read(self, _offset: int, _size: int) -> bytes:
        """Refuse with EIO: nothing can be read from the console."""
        raise KernelError(errno.EIO, "the console is write-only")

    def write(self, data: bytes) -> int:
        """Carry out one verb, which a newline may end."""
        text = data[:PAGE_SIZE].decode("latin-1")
        try:
            run_verb(self._host, text)
        except KernelError as error:
            self._host.journal.add(Refusal("console", CONSOLE, text, error.name, error.why))
            raise
        return len(data)

    def poll(self) -> int:
        """Report readiness, always."""
        return READY

    def close(self) -> None:
        """Let go of the file."""


_RECORDS = 500
"""Records that a view of the journal turns into text at once; they take some milliseconds."""


class JournalFile:
    """An open view of the journal: grows while it is open, and poll says when there is more to read."""

    seekable = True

    def __init__(self, source: Journal, render: Callable[[Journal, list[tuple[int, Record]]], str]) -> None:
        self._journal = source
        self._render = render
        self._restart()

    def _restart(self) -> None:
        self._text = b""
        self._start = 0
        """Offset of the text that is kept: what was read before is not."""
        self._end = 0
        """Offset behind what was read last."""
        self._seen = 0
        """The last record that is part of the text."""

    def read(self, offset: int, size: int) -> bytes:
        """Return a part of the text; from offset 0 on, and for what was read before, it is made anew."""
        if offset == 0 or offset < self._start:
            self._restart()
        wanted = offset + size - self._start
        while len(self._text) < wanted and self._seen < self._journal.last:
            # No more than is asked for: making all of a full journal would keep everybody waiting for seconds.
            records = self._journal.since(self._seen, _RECORDS)
            self._text += self._render(self._journal, records).encode()
            self._seen = records[-1][0]
        skipped = min(offset - self._start, len(self._text))
        self._text = self._text[skipped:]
        self._start += skipped
        piece = self._text[offset - self._start :][:size]
        self._end = self._start + len(piece)
        return piece

    def write(self, _data: bytes) -> int:
        """Refuse with EBADF: the mode lets nobody open it for writing."""
        raise KernelError(errno.EBADF, "read-only")

    def poll(self) -> int:
        """Report whether there is something behind what was read last."""
        more = self._journal.last > self._seen or self._start + len(self._text) > self._end
        return select.POLLIN | select.POLLRDNORM if more else 0

    def close(self) -> None:
        """Let go of the file."""


def kmsg(_journal: Journal, records: list[tuple[int, Record]]) -> str:
    """Return the kernel log, one line per line."""
    return "".join(f"{record.text}\n" for _, record in records if isinstance(record, LogLine))


def uevents(journal: Journal, records: list[tuple[int, Record]]) -> str:
    """Return the events, each as the `action@devpath` line and the keys that the kernel sends, and an empty line."""
    events = [(journal.uevents_until(number), record) for number, record in records if isinstance(record, Uevent)]
    blocks = []
    for sequence, record in events:
        keys = (*record.environment(), ("SEQNUM", str(sequence)))
        # APMASK ends with a newline on the wire, which would end the block here.
        lines = "".join(f"{key}={value.rstrip()}\n" for key, value in keys)
        blocks.append(f"{record.action}@{record.devpath}\n{lines}\n")
    return "".join(blocks)


def journal(_journal: Journal, records: list[tuple[int, Record]]) -> str:
    """Return everything that happened, one JSON object per line."""
    return "".join(f"{json.dumps({'seq': sequence} | record.as_dict())}\n" for sequence, record in records)


def _matrix(matrix: Matrix) -> dict[str, list[int]]:
    return {"adapters": list(matrix.apm), "domains": list(matrix.aqm), "control_domains": list(matrix.adm)}


def _card(card: ApCard, assigned: Mask, in_use: Mask) -> dict[str, object]:
    """Return a card and its queues; `assigned` and `in_use` are what mediated devices and guests have of it."""
    usable = card.queue_config - card.queue_chkstop
    to_vfio = card.all_bound() - card.zcrypt_bound()
    return {
        "type": card_name(card.hwtype, card.hwinfo),
        "mode": card.mode,
        "driver": card.driver.name if card.driver else None,
        "hwinfo": f"{card.hwinfo:016x}",
        "config": card.config,
        "online": card.online and card.usable,
        "chkstop": card.chkstop,
        "drivers": {driver.name: list(domains) for driver, domains in card.bound.items() if domains},
        "unbound": list(card.queues - card.all_bound()),
        "assigned": list(to_vfio & assigned),
        "in_use": list(to_vfio & in_use),
        "offline": list(card.zcrypt_bound() - (card.queue_online & usable)),
        "deconfigured": list(card.queues - card.queue_config),
        "checkstopped": list(card.queue_chkstop),
    }


def _cards(host: Host, mdevs: list[MatrixMdev]) -> dict[str, dict[str, object]]:
    assigned, in_use = defaultdict[int, Mask](Mask), defaultdict[int, Mask](Mask)
    for mdev in mdevs:
        for apid in mdev.matrix.apm:
            assigned[apid] |= mdev.matrix.aqm
        for apid in mdev.shadow.apm if mdev.vm is not None else NONE:
            in_use[apid] |= mdev.shadow.aqm
    cards = sorted(host.ap_bus.cards.items())
    return {f"{apid:02x}": _card(card, assigned[apid], in_use[apid]) for apid, card in cards}


def _mdev(mdev: MatrixMdev) -> dict[str, object]:
    group = mdev.vdev.group
    opener = "program" if group.opener is not None or mdev.vdev.in_use else None
    return {
        "group": group.number,
        "device": f"vfio{mdev.vdev.index}",
        "opener": "guest" if isinstance(group.opener, Vm) else opener,
        "guest": mdev.vm is not None,
        "migration_state": mdev.state.name,
        "matrix": _matrix(mdev.matrix),
        "guest_matrix": _matrix(mdev.shadow),
    }


def status(host: Host) -> str:
    """Return the state of the host as one JSON object: masks, cards, queues, mediated devices, faults, modules."""
    bus = host.ap_bus
    supported = host.machine.configuration.supported
    bound, queues, complete = bus.bindings()
    devices = {mdev.uuid: matrix_mdev(mdev) for mdev in host.mdev_bus.mdevs}
    mdevs = {uuid: mdev for uuid, mdev in devices.items() if mdev}
    bad_resets = host.vfio_ap.driver.matrix_dev.bad_resets if host.vfio_ap else {}
    document = {
        "apfs": __version__,
        "scenario": host.scenario.name,
        "driver": host.scenario.driver,
        "secure_execution": host.machine.secure_execution,
        "clock": host.clock,
        "config_time": bus.config_time,
        "kvm": host.vfio.kvm,
        "bindings": {"bound": bound, "queues": queues, "complete": complete},
        "ap_domain": bus.default_domain,
        "adapters": list(bus.qci.adapters) if supported else None,
        "usage_domains": list(bus.qci.domains) if supported else None,
        "control_domains": list(bus.qci.control_domains) if supported else None,
        "apmask": bus.apmask.hex256(),
        "aqmask": bus.aqmask.hex256(),
        "cards": _cards(host, list(mdevs.values())),
        "overrides": {
            str(Apqn(apid, apqi)): name
            for apid, card in sorted(bus.cards.items())
            for apqi, name in sorted(card.overrides.items())
        },
        "bad_resets": {str(apqn): response for apqn, response in sorted(bad_resets.items())},
        "failing_resets": {str(apqn): response for apqn, response in sorted(host.machine.failing_resets.items())},
        "faults": {
            path: {"errno": KernelError(number, path).name, "accesses": accesses}
            for path, (number, accesses) in host.tree.faults.items()
        },
        "mdevs": {uuid: _mdev(mdev) for uuid, mdev in mdevs.items()},
        "unbound_mdevs": [uuid for uuid in devices if uuid not in mdevs],
        "modules": {module.name: {"refcnt": module.refcount} for module in host.modules.values() if module.loaded},
    }
    return json.dumps(document, indent=1) + "\n"


def _view(render: Callable[[Journal, list[tuple[int, Record]]], str]) -> Callable[[Host, bool, bool], JournalFile]:
    return lambda host, _read, _write: JournalFile(host.journal, render)


CTL_ENTRIES = (
    Special("console", 0o200, lambda host, _read, _write: ConsoleFile(host)),
    Special("kmsg", 0o444, _view(kmsg)),
    Special("uevents", 0o444, _view(uevents)),
    Special("journal", 0o444, _view(journal)),
    Special("ioctl", 0o600, lambda host, _read, _write: Channel(host.handed)),
    Special("status", 0o444, lambda host, _read, _write: TextFile(lambda: status(host))),
)
