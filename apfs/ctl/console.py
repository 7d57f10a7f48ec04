"""`ctl/console`: verbs that simulate an operator at the hardware console, a hypervisor or a fault.

Each write is one verb; the table `VERBS` has all of them.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apfs.ap.names import Apqn
from apfs.ap.qinfo import Response
from apfs.errors import KernelError
from apfs.journal.records import Verb
from apfs.kernel.kstrtox import kstrtoul
from apfs.sysfs.openfile import PAGE_SIZE, SpecialFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs.system import System

CONSOLE = "/ctl/console"


@dataclass(frozen=True, slots=True)
class ConsoleVerb:
    """A verb: its arguments as a user writes them, what it does, and the function that does it."""

    usage: str
    summary: str
    run: Callable[[System, list[str]], None]
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


def _help(system: System, _words: list[str]) -> None:
    for name, verb in VERBS.items():
        system.journal.log("info", f"console: {f'{name} {verb.usage}'.strip()}: {verb.summary}")


def _plug(system: System, words: list[str]) -> None:
    system.plug(_adapter(words[0]), words[1], _fields(words[2:]))


def _tapq(system: System, words: list[str]) -> None:
    fields = _fields(words[1:])
    if "." in words[0]:
        system.set_tapq(_apqn(words[0]).apid, fields, _apqn(words[0]).apqi)
    else:
        system.set_tapq(_adapter(words[0]), fields)


def _queues(word: str) -> tuple[int, int | None]:
    """Return adapter and domain of `05.00ab`; no domain of `5`, which means all of them."""
    if "." not in word:
        return _adapter(word), None
    apqn = _apqn(word)
    return apqn.apid, apqn.apqi


def _load_key(system: System, words: list[str]) -> None:
    place, name, pattern, *rest = words
    if rest not in ([], ["incomplete"]):
        raise KernelError(errno.EINVAL, f"expected incomplete or nothing, not {rest[0]!r}")
    system.load_key(*_queues(place), name, "" if pattern == "none" else pattern, complete=not rest)


def _fail_reset(system: System, words: list[str]) -> None:
    response = kstrtoul(words[1]) if len(words) > 1 else int(Response.OTHERWISE_CHANGED)
    if not 0 < response <= 0xFF:  # noqa: PLR2004 -- response codes have a byte
        raise KernelError(errno.EINVAL, f"{response} is not a response code of a failed reset")
    system.fail_reset(_apqn(words[0]), response)


def _requests(system: System, words: list[str]) -> None:
    fields = _fields(words[1:])
    unknown = fields.keys() - {"count", "waiting", "pending", "load"}
    if unknown:
        raise KernelError(errno.EINVAL, f"no field {min(unknown)!r}: there are count, waiting, pending, load")
    system.send(_apqn(words[0]), **fields)


def _no_answer(system: System, words: list[str]) -> None:
    requests = kstrtoul(words[1]) if len(words) > 1 else 1
    if not requests:
        raise KernelError(errno.EINVAL, "expected at least one request")
    system.leave_unanswered(_apqn(words[0]), requests)


def _fault(system: System, words: list[str]) -> None:
    accesses = kstrtoul(words[2]) if len(words) > 2 else 1  # noqa: PLR2004 -- the third word is optional
    if not words[0].startswith("/") or not accesses:
        raise KernelError(errno.EINVAL, "expected an absolute path as seen in the mount, and at least one access")
    system.inject(words[0], _errno(words[1]), accesses)


def _kvm(system: System, word: str) -> None:
    if word not in ("auto", "none"):
        raise KernelError(errno.EINVAL, f"expected auto or none, not {word!r}")
    system.vfio.kvm = "auto" if word == "auto" else "none"


VERBS: dict[str, ConsoleVerb] = {
    "help": ConsoleVerb("", "list the verbs in ctl/kmsg", _help, 0, 0),
    "plug": ConsoleVerb("ADAPTER TYPE [FIELD=VALUE]...", "insert a card, such as CEX8C", _plug, 2),
    "unplug": ConsoleVerb("ADAPTER", "remove a card", lambda system, words: system.unplug(_adapter(words[0])), 1, 1),
    "add-domain": ConsoleVerb(
        "N...",
        "add usage domains to the host",
        lambda system, words: system.change_domains(add=map(kstrtoul, words)),
        1,
    ),
    "remove-domain": ConsoleVerb(
        "N...",
        "remove usage domains from the host",
        lambda system, words: system.change_domains(remove=map(kstrtoul, words)),
        1,
    ),
    "add-control-domain": ConsoleVerb(
        "N...",
        "add control domains to the host",
        lambda system, words: system.change_domains(add=map(kstrtoul, words), control=True),
        1,
    ),
    "remove-control-domain": ConsoleVerb(
        "N...",
        "remove control domains from the host",
        lambda system, words: system.change_domains(remove=map(kstrtoul, words), control=True),
        1,
    ),
    "configure": ConsoleVerb(
        "ADAPTER on|off",
        "configure or deconfigure a card, as an operator",
        lambda system, words: system.configure(_adapter(words[0]), on=_on(words[1])),
        2,
        2,
    ),
    "checkstop": ConsoleVerb(
        "ADAPTER on|off",
        "check-stop a card, or repair it",
        lambda system, words: system.checkstop(_adapter(words[0]), on=_on(words[1])),
        2,
        2,
    ),
    "tapq": ConsoleVerb("ADAPTER|APQN FIELD=VALUE...", "change fields of the TAPQ word of a card or queue", _tapq, 2),
    "load-key": ConsoleVerb(
        "ADAPTER|APQN KEY PATTERN|none [incomplete]",
        "load a new master key: aes, apka, asym or wk, by its verification pattern",
        _load_key,
        3,
        4,
    ),
    "set-key": ConsoleVerb(
        "ADAPTER|APQN KEY",
        "make the new master key the current one",
        lambda system, words: system.set_key(*_queues(words[0]), words[1]),
        2,
        2,
    ),
    "scan": ConsoleVerb("", "make the AP bus scan now", lambda system, _words: system.scan(), 0, 0),
    "tick": ConsoleVerb("SECONDS", "advance the time", lambda system, words: system.tick(_seconds(words[0])), 1, 1),
    "fail-reset": ConsoleVerb(
        "APQN [CODE]", "make the next reset of a queue end with a response code (7)", _fail_reset, 1, 2
    ),
    "fault": ConsoleVerb("PATH ERRNO [N]", "make the next N accesses of an attribute fail (1)", _fault, 2, 3),
    "no-answer": ConsoleVerb(
        "APQN [N]", "leave the next N requests of the zcrypt drivers to a queue unanswered (1)", _no_answer, 1, 2
    ),
    "requests": ConsoleVerb(
        "APQN FIELD=VALUE...",
        "add requests to the count of a queue, and set how many are in progress: count, waiting, pending, load",
        _requests,
        2,
    ),
    "clear-faults": ConsoleVerb(
        "", "cancel fault, fail-reset and no-answer", lambda system, _words: system.clear_faults(), 0, 0
    ),
    "kvm": ConsoleVerb(
        "auto|none",
        "whether a program that opens devices through VFIO counts as a VM, or has none",
        lambda system, words: _kvm(system, words[0]),
        1,
        1,
    ),
    "se-guest": ConsoleVerb(
        "UUID on|off",
        "whether the next guest of a mediated device is in Secure Execution mode",
        lambda system, words: system.set_guest_mode(words[0], secure_execution=_on(words[1])),
        2,
        2,
    ),
    "config-events": ConsoleVerb(
        "UUID on|off",
        "whether the guest of a mediated device is notified of changes at once, as by QEMU from 10.1",
        lambda system, words: system.set_config_events(words[0], told=_on(words[1])),
        2,
        2,
    ),
    "modprobe": ConsoleVerb("MODULE", "load a kernel module", lambda system, words: system.modprobe(words[0]), 1, 1),
    "rmmod": ConsoleVerb("MODULE", "unload a kernel module", lambda system, words: system.rmmod(words[0]), 1, 1),
}

_DAY = 86400


def _seconds(word: str) -> int:
    seconds = kstrtoul(word)
    if seconds > _DAY:
        raise KernelError(errno.EINVAL, f"{seconds} s is more than a day")
    return seconds


def run_verb(system: System, text: str) -> None:
    """Carry out one verb; EINVAL for an unknown one, else what the verb itself refuses with."""
    name, *words = text.split() or [""]
    verb = VERBS.get(name)
    if verb is None:
        raise KernelError(errno.EINVAL, f"no verb {name!r}: write help and read ctl/kmsg")
    if len(words) < verb.least or (verb.most is not None and len(words) > verb.most):
        raise KernelError(errno.EINVAL, f"usage: {name} {verb.usage}".rstrip())
    verb.run(system, words)
    system.journal.add(Verb(text.strip()))


class ConsoleFile(SpecialFile):
    """The open console: takes one verb per write, with or without a newline at its end."""

    writing = "console"

    def __init__(self, system: System) -> None:
        super().__init__(system.journal, CONSOLE)
        self._system = system

    def on_read(self, _offset: int, _size: int) -> bytes:
        """Refuse with EIO, as an attribute without a show function does."""
        raise KernelError(errno.EIO, "the console is write-only")

    def on_write(self, data: bytes) -> int:
        """Carry the verb out."""
        run_verb(self._system, data[:PAGE_SIZE].decode("latin-1"))
        return len(data)
