"""Migration streams by their grammar, with mistakes, into a target whose host changes meanwhile; beside a naive target.

A story is a list of steps, so that it can be saved and gone through again. After each write

* the answer is that of the naive target, and so is the kernel log;
* a refusal is the last record of the journal, and leaves `ctl/status` as it is;
* what the device has is what the naive target says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from apfs.ap.qinfo import TAPQ_VALID
from apfs.journal.records import Refusal
from apfs.sysfs.entries import BOTH
from apfs.vfio_ap.migration.revision import MigrationFile
from tests.fuzz.inputs import damaged
from tests.hosts import AP_DRIVER, M1, M2, MATRIX, Bench, attempt
from tests.vfio_ap.naive import Naive, NaiveFile, NaiveHost, NaiveNext, NaiveV2, NaiveV4
from tests.vfio_ap.streams import Entry, events, forecast, next_stream, stream, v4_stream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from random import Random

NAIVE: dict[str, type[Naive]] = {"v2": NaiveV2, "v4": NaiveV4, "next": NaiveNext}
STATES = ("STOP", "RUNNING", "STOP_COPY", "RESUMING")
NO_STATES = ("ERROR", "RUNNING_P2P", "PRE_COPY", "8", "x")
ADAPTERS, DOMAINS = (1, 5, 6, 7), (4, 9, 0x47, 0xFF)
STEPS = 25
CLIENT = f"/dev/vfio-ap/{M1}"
_COUNTS = (0, 1, 2, 3, 4, 65535, 65536, 65537, 2**31 - 1, 2**31, 2**32 - 1)
_FIELDS = ("apsc", "mex4k", "cca", "accel", "apxa", "slcf", "class", "bs", "at", "nd", "ml")

Step = list[Any]
"""A word for what is done, and with what, as JSON has it."""


# -- machines ---------------------------------------------------------------------------------------------------------


def machine(random: Random) -> str:
    """Return a scenario with one device or two, most often of queues that it can have."""
    driver = random.choice(tuple(NAIVE))
    domains = sorted(random.sample(DOMAINS, random.randrange(1, 4)))
    adapters = sorted(random.sample(ADAPTERS, random.randrange(1, 4)))
    text = f'driver = "{driver}"\n[qci]\ndomains = {domains}\ncontrol_domains = {[*domains, 0x55]}\n'
    for adapter in adapters:
        kind = random.choice(("CEX8C", "CEX8C", "CEX7P", "CEX7C", "CEX8A"))
        text += f'[[card]]\nadapter = {adapter}\ntype = "{kind}"\n'
        if random.random() < 0.2:
            text += f"tapq = {{ {random.choice(_FIELDS)} = {random.randrange(2)} }}\n"
    if random.random() < 0.2:
        text += f'[[queue]]\napqn = "{adapters[0]:02x}.{domains[0]:04x}"\ntapq = {{ bs = {random.randrange(4)} }}\n'
    reserved = random.choice(adapters) if random.random() < 0.3 else None
    free = [adapter for adapter in adapters if adapter != reserved]
    text += f'[masks]\napmask = "{",".join(f"-{adapter}" for adapter in range(256) if adapter != reserved)}"\n'
    if reserved and random.random() < 0.5:
        text += f'aqmask = "-{domains[0]}"\n'  # this domain of it is free
    ours = random.sample(free, random.randrange(len(free) + 1)) if driver == "v2" or random.random() < 0.3 else []
    text += (
        f'[[mdev]]\nuuid = "{M1}"\nguest = true\nadapters = {ours}\ndomains = {domains}\ncontrol_domains = {domains}\n'
    )
    theirs = [adapter for adapter in free if adapter not in ours]
    if theirs and random.random() < 0.3:
        text += f'[[mdev]]\nuuid = "{M2}"\nadapters = {theirs[:1]}\ndomains = {domains[:1]}\n'
    return text


# -- streams ----------------------------------------------------------------------------------------------------------


@dataclass
class Parts:
    """What a stream consists of."""

    driver: str
    entries: list[Entry]
    control_domains: list[int] = field(default_factory=list)
    count: int | None = None

    def packed(self) -> bytes:
        """Return the bytes."""
        count = None if self.count is None else self.count % 2**32
        if self.driver == "next":
            return next_stream(self.entries, self.control_domains, count)
        return (stream if self.driver == "v2" else v4_stream)(self.entries, count)


def mistaken(parts: Parts, random: Random) -> None:
    """Change something about the structure of a stream."""
    entries = parts.entries
    match random.randrange(9):
        case 0:
            parts.count = random.choice((*_COUNTS, len(entries) - 1, len(entries) + 1))
        case 1:
            parts.driver = random.choice(tuple(NAIVE))
        case 2:
            parts.control_domains = random.sample((0, 4, 9, 0x47, 0x55, 255), random.randrange(4))
        case 3:
            random.shuffle(entries)
        case 4:
            entries.insert(random.randrange(len(entries) + 1), (random.getrandbits(64), random.getrandbits(16)))
        case _ if not entries:
            return
        case 5:
            entries.append(random.choice(entries))
        case 6:
            parts.entries = random.sample(entries, random.randrange(len(entries) + 1))
        case 7:
            place = random.randrange(len(entries))
            entries[place] = (entries[place][0] ^ 1 << random.randrange(64), entries[place][1])
        case _:
            place = random.randrange(len(entries))
            other = random.choice(ADAPTERS) << 8 | random.choice(DOMAINS)
            entries[place] = (entries[place][0], random.choice((other, random.getrandbits(16))))


def finished(parts: Parts, random: Random) -> bytes:
    """Return the bytes of a stream, now and then with mistakes that have nothing to do with its structure."""
    data = parts.packed()
    match random.randrange(8):
        case 0:
            return data[: random.randrange(len(data) + 1)]
        case 1:
            return data + random.randbytes(random.choice((1, 4, 16)))
        case 2:
            place = random.randrange(len(data))
            return data[:place] + random.randbytes(1) + data[place + 1 :]
        case 3:
            return damaged(data, random)
        case _:
            return data


def pieces(data: bytes, random: Random) -> Iterator[bytes]:
    """Yield data in pieces of all sizes, none among them."""
    while data:
        # The first choice is the one when a source of choices has run dry, so it has to come to an end.
        size = random.choice((len(data), 0, 1, 3, 4, 8, 12, 16, 17, 48, random.randrange(len(data) + 1)))
        yield data[:size]
        data = data[size:]


# -- a target ---------------------------------------------------------------------------------------------------------


class Open(NamedTuple):
    """An open file, and what a naive target has in its place; None for a file of a source."""

    file: MigrationFile
    naive: Naive
    theirs: NaiveFile | None


class Product:
    """APQNs as the products of numbers of adapters and domains."""

    def __init__(self, *pairs: tuple[list[int], list[int]]) -> None:
        self._pairs = [(set(adapters), set(domains)) for adapters, domains in pairs]

    def __contains__(self, apqn: object) -> bool:
        assert isinstance(apqn, int)
        return any(apqn >> 8 in adapters and apqn & 0xFF in domains for adapters, domains in self._pairs)


def _members(mask: str) -> list[int]:
    """Return the numbers of a mask as sysfs shows it."""
    return [number for number, bit in enumerate(f"{int(mask, 0):0256b}") if bit == "1"]


class Story:
    """A target, and what has been done to it."""

    def __init__(self, scenario: str) -> None:
        self.scenario = scenario
        self.bench = Bench(scenario)
        self.driver: str = self.bench.status()["driver"]
        self.steps: list[Step] = []
        self.answers: list[str] = []
        self.files: list[Open] = []
        self.state = "RUNNING"
        self.naive = self._opened()

    def _opened(self) -> Naive:
        return NAIVE[self.driver](NaiveHost({}))

    # -- what the naive target knows of the host ----------------------------------------------------

    def _look(self) -> None:
        """Tell the naive target what the host is like now."""
        status, host = self.bench.status(), self.naive.host
        mdevs = status["mdevs"]
        matrix = mdevs[M1]["matrix"]
        host.log.clear()
        host.control_domains = set(status["control_domains"])
        host.reserved = Product((_members(status["apmask"]), _members(status["aqmask"])))
        host.taken = Product(
            *((one["matrix"]["adapters"], one["matrix"]["domains"]) for uuid, one in mdevs.items() if uuid != M1)
        )
        host.assigned = set(matrix["adapters"]), set(matrix["domains"]), set(matrix["control_domains"])
        bound = {int(name, 16): card["drivers"].get("vfio_ap", []) for name, card in status["cards"].items()}
        if self.driver == "v2":
            self._recorded(mdevs[M1]["guest_matrix"], bound)
            return
        asked = {
            apid << 8 | apqi: self.bench.host.machine.tapq(apid, apqi)
            for apid, apqis in bound.items()
            for apqi in apqis
        }
        host.words = {apqn: word for apqn, (_, word) in asked.items()}
        host.responses = {apqn: int(response) for apqn, (response, _) in asked.items() if response not in TAPQ_VALID}

    def _recorded(self, guest: dict[str, list[int]], bound: dict[int, list[int]]) -> None:
        """Take the words of v2 from what sysfs shows of the cards."""
        host, members = self.naive.host, [(apid, apqi) for apid in guest["adapters"] for apqi in guest["domains"]]
        there = [(apid, apqi) for apid, apqi in members if apqi in bound.get(apid, [])]
        cards = {apid: f"/sys/devices/ap/card{apid:02x}" for apid, _ in there}
        words = {
            apid: int(self.bench.cat(f"{card}/ap_functions"), 0) << 32 | int(self.bench.cat(f"{card}/raw_hwtype")) << 24
            for apid, card in cards.items()
        }
        host.words = {apid << 8 | apqi: words[apid] for apid, apqi in there}
        host.lost = len(members) - len(there)

    def fitting(self) -> Parts:
        """Return what a stream consists of that the target takes, if it takes any."""
        self._look()
        host = self.naive.host
        adapters = {apqn >> 8 for apqn in host.words if apqn not in host.reserved and apqn not in host.taken}
        entries = [(word, apqn) for apqn, word in host.words.items() if apqn >> 8 in adapters]
        return Parts(self.driver, sorted(entries, key=lambda entry: entry[1]), sorted(host.control_domains))

    # -- steps --------------------------------------------------------------------------------------

    def do(self, what: str, *with_: Any) -> None:  # noqa: ANN401 -- whatever JSON has
        """Take a step, and look what came of it."""
        self.steps.append([what, *with_])
        getattr(self, f"_{what}")(*with_)

    def _go(self, state: str) -> None:
        answer = self.bench.store(f"{CLIENT}/migration_state", state)
        if not self.naive.open:
            assert answer == ("EINVAL" if state in ("8", "x") else "ENODEV"), answer
        elif state not in STATES:
            assert answer == "EINVAL"
        else:
            assert answer == ""
            self._went(state)
        assert self.bench.cat(f"{CLIENT}/migration_state") == f"{self.state}\n"

    def _went(self, state: str) -> None:
        if state != self.state:
            if self.state in ("STOP_COPY", "RESUMING"):
                self.naive.leave()
            self.state = state
            self._look()
            if state == "RESUMING":
                theirs = self.naive.session()
                self._open(theirs)
            elif state == "STOP_COPY":
                self._open(None)

    def _open(self, theirs: NaiveFile | None) -> None:
        tree = self.bench.host.tree
        file = tree.open(tree.resolve(f"{CLIENT}/data_stream"), BOTH)
        assert isinstance(file, MigrationFile)
        self.files.append(Open(file, self.naive, theirs))

    def _write(self, number: int, content: str) -> str:
        """Write to one of the files, and compare all that comes of it."""
        if not self.files:
            return ""
        one, data = self.files[number % len(self.files)], bytes.fromhex(content)
        self._look()
        one.naive.host = self.naive.host
        before = self.bench.read("/ctl/status")
        self.bench.mark()
        taken: list[int] = []
        answer = attempt(lambda: taken.append(one.file.write(data)))
        self.answers.append(answer)
        if answer:
            self._refused(answer, before)
        if one.theirs is None:
            assert answer == "EBADF"
            return answer
        expected = one.naive.write(one.theirs, data)
        assert (answer or taken[0]) == expected, (answer or taken[0], expected)
        if answer == "EADDRINUSE":  # these lines are those of ap_config
            assert {line.partition(" ")[0] for line in self.bench.log()} == {"warn"}
        else:
            assert events(self.bench) == one.naive.host.log
        matrix = self.bench.status()["mdevs"][M1]["matrix"]
        assert (matrix["adapters"], matrix["domains"], matrix["control_domains"]) == tuple(
            map(sorted, one.naive.host.assigned)
        )
        return answer

    def _refused(self, answer: str, before: bytes) -> None:
        (_, record) = self.bench.host.journal.since(self.bench.host.journal.last - 1)[0]
        assert isinstance(record, Refusal)
        assert (record.operation, record.errno) == ("write", answer)
        assert record.why
        assert self.bench.read("/ctl/status") == before

    def _whole(self, content: str) -> None:
        """Write a stream at once, in a session of its own, and compare that with the forecast."""
        if self.naive.open:
            self._go("STOP")
            told = forecast(self.bench, bytes.fromhex(content), M1)["errno"]
            self._go("RESUMING")
            assert (self._write(-1, content) or None) == told

    def _read(self, number: int, size: int) -> None:
        if self.files:
            one = self.files[number % len(self.files)]
            self._refusable(lambda: one.file.read(0, size), {"EBADF"} if one.theirs else {"ENODEV", "EIO", "EINVAL"})

    def _sync(self, number: int) -> None:
        if self.files:
            self._refusable(self.files[number % len(self.files)].file.sync, {"EINVAL"})

    def _refusable(self, call: Any, answers: set[str]) -> None:  # noqa: ANN401 -- any call
        assert attempt(call) in {"", *answers}

    def _close(self, number: int) -> None:
        if self.files:
            self.files.pop(number % len(self.files)).file.close()

    def _reset(self) -> None:
        answer = self.bench.store(f"{CLIENT}/reset", "1")
        assert answer in (("", "EIO") if self.naive.open else ("ENODEV",)), answer
        if not answer:
            self.naive.reset()
            if self.driver != "v2":
                self.state = "RUNNING"

    def _guest(self, there: str) -> None:
        assert self.bench.store(f"{CLIENT}/guest", there) == ""
        if there == "0" and self.naive.open:
            self.naive.leave()
            self.naive.open = False
            self.state = "RUNNING"
        elif there == "1" and not self.naive.open:
            self.naive = self._opened()

    def _store(self, path: str, text: str) -> None:
        """Write to some other file, whatever becomes of it."""
        if self.bench.exists(path):
            self.bench.store(path, text)

    def end(self) -> None:
        """Close all, and see that the device is as it would be without any session."""
        for one in self.files:
            one.file.close()
        self.files.clear()
        self._guest("1")
        self._go("RUNNING")
        before = self.bench.status()["mdevs"][M1]
        self._guest("0")
        self._guest("1")
        assert self.bench.status()["mdevs"][M1] == before

    def saved(self) -> str:
        """Return the story as a file of the corpus."""
        return json.dumps({"scenario": self.scenario, "steps": self.steps}, indent=1) + "\n"


def replay(file: Path) -> Story:
    """Go through a story of the corpus."""
    saved = json.loads(file.read_text())
    story = Story(saved["scenario"])
    for what, *with_ in saved["steps"]:
        story.do(what, *with_)
    story.end()
    return story


# -- any story --------------------------------------------------------------------------------------------------------


def _change(story: Story, random: Random) -> None:
    """Change the host."""
    bound = [f"{apqn >> 8:02x}.{apqn & 0xFF:04x}" for apqn in story.naive.host.words]
    apqn = random.choice((*bound, f"{random.choice(ADAPTERS):02x}.{random.choice(DOMAINS):04x}"))
    adapter = random.choice(ADAPTERS)
    number = random.choice((*ADAPTERS, *DOMAINS))
    verb = random.choice(
        (
            f"tapq {apqn} {random.choice(_FIELDS)}={random.randrange(2)}",
            f"unplug {adapter}",
            f"plug {adapter} CEX8C",
            f"configure {adapter} {random.choice(('on', 'off'))}",
            f"checkstop {adapter} {random.choice(('on', 'off'))}",
            "scan",
        )
    )
    path, text = random.choice(
        (
            (f"{AP_DRIVER}/{random.choice(('bind', 'unbind'))}", apqn),
            (
                f"{MATRIX}/{M1}/{random.choice(('assign', 'unassign'))}_{random.choice(('adapter', 'domain'))}",
                str(number),
            ),
            (
                f"{MATRIX}/{M2}/{random.choice(('assign', 'unassign'))}_{random.choice(('adapter', 'domain'))}",
                str(number),
            ),
            ("/sys/bus/ap/apmask", f"{random.choice('+-')}{adapter}"),
            ("/ctl/console", verb),
            ("/ctl/console", verb),
        )
    )
    story.do("store", path, text)


def go_on(story: Story, random: Random) -> None:
    """Take a step or several."""
    how = random.random()
    if how < 0.45:
        parts = story.fitting()
        for _ in range(random.choice((0, 0, 1, 1, 2))):
            mistaken(parts, random)
        data = finished(parts, random)
        if data and random.random() < (0.8 if story.driver == "v4" else 0.4):
            if story.driver == "v4":  # which takes one stream only
                story.do("guest", "0")
                story.do("guest", "1")
            story.do("whole", data.hex())
            return
        if random.random() < 0.7:
            story.do("go", "RESUMING")
        number = -1 if random.random() < 0.9 else random.randrange(4)
        for piece in pieces(data, random):
            story.do("write", number, piece.hex())
            if random.random() < 0.05:
                _change(story, random)
    elif how < 0.6:
        story.do("go", random.choice((*STATES, *STATES, *NO_STATES)))
    elif how < 0.78:
        _change(story, random)
    else:
        number = random.randrange(4)
        story.do(
            *random.choice(
                (
                    ("reset",),
                    ("guest", random.choice("01")),
                    ("read", number, random.choice((0, 1, 17, 4096))),
                    ("sync", number),
                    ("close", number),
                )
            )
        )


def some_story(random: Random) -> int:
    """Go through a story of its own; return how many steps it had."""
    story = Story(machine(random))
    try:
        for _ in range(STEPS):
            go_on(story, random)
        story.end()
    except BaseException as error:
        error.add_note(story.saved())
        raise
    return len(story.steps)
