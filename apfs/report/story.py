"""What happened on a host as steps: each request with its outcome, its effects and its changes."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from typing import TYPE_CHECKING, Any

from apfs.journal.records import Ioctl, Migration, Refusal, Store
from apfs.journal.text import printable, summary
from apfs.report.picture import Picture, patch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from apfs.journal.history import History
    from apfs.journal.records import Record
    from apfs.report.moments import Moment, Verdicts

Story = dict[str, Any]
"""A host as the page has it; `story` makes them."""
Step = dict[str, Any]
"""A request and all that it led to, or a part of that."""

SHOWN = 100
"""Records of a step that a page has; of a store to `apmask` that moves 65,536 queues it has this many, and counts."""


def story(title: str, history: History, moments: Iterator[Moment], facts: dict[str, str], note: str = "") -> Story:
    """Return a host as the page has it.

    `moments` are pictures with the number of the record after which the host was like that, ascending. The first one is
    also that of all that was before. `facts` are about the host as such, `note` about what the page cannot show.
    """
    table, axes = _Cards(), _Axes()
    first = next(moments)
    picture = table.numbered(first.picture)
    axes.add(picture)
    host: Story = {"title": title, "facts": facts, "note": note, "first": picture, "steps": []}
    coming = next(moments, None)
    for records in history.requests():
        step = _step(records)
        before = picture
        while coming and coming.after <= records[-1][0]:
            picture = table.numbered(coming.picture)
            if coming.verdicts:
                step["verdicts"] = _verdicts(coming.verdicts)
            if not coming.same and not host["note"]:
                host["note"] = _OTHERWISE.format(coming.after)
            coming = next(moments, None)
        if changes := patch(before, picture):
            step["patch"] = changes
            axes.add(changes)
        host["steps"].append(step)
    return {**host, "cards": table.cards, "axes": axes.numbers(table.cards)}


_OTHERWISE = (
    "At record {}, making the requests once more came to something else than on this host: from there on the matrix is "
    "not sure. It may be that another version of apfs recorded it, or that a program called methods of the host."
)


class _Cards:
    """The cards of all pictures, each once: of 256 in a picture most are alike, and so are those of the next one."""

    def __init__(self) -> None:
        self.cards: list[Picture] = []
        self._numbers: dict[str, int] = {}

    def numbered(self, picture: Picture) -> Picture:
        """Return a picture with numbers in place of its cards."""
        return {**picture, "cards": {apid: self._number(card) for apid, card in picture["cards"].items()}}

    def _number(self, card: Picture) -> int:
        number = self._numbers.setdefault(repr(card), len(self.cards))
        if number == len(self.cards):
            self.cards.append(card)
        return number


def _step(records: list[tuple[int, Record]]) -> Step:
    *effects, (number, outcome) = records
    if not outcome.outcome:
        effects, what, where, why, kind = records, "what happened by itself", "", "", "none"
    else:
        what, where = _request(outcome)
        why, kind = summary(outcome)[1], outcome.kind
    step: Step = {"first": records[0][0], "last": number, "kind": kind, "what": what}
    if where:
        step["where"] = where
    if why:
        step["why"] = why
    if isinstance(outcome, Refusal):
        step["errno"] = outcome.errno
    if effects:
        step["effects"] = [
            [sequence, record.kind, *filter(None, summary(record))] for sequence, record in effects[:SHOWN]
        ]
    if len(effects) > SHOWN:
        step["left"] = dict(Counter(record.kind for _, record in effects[SHOWN:]))
    if moved := _migrations(effects):
        step["migration"] = moved
    return step


def _request(outcome: Record) -> tuple[str, str]:
    """Return what was asked for in few words, and of whom."""
    match outcome:
        case Store(path, data) | Refusal("write", path, data):
            folder, _, name = path.rpartition("/")
            return printable(f"{name} \N{LEFTWARDS ARROW} {data.strip()}"), printable(folder)
        case Refusal("console", path, data):
            return printable(data.strip()), printable(path)
        case Refusal(operation, path, data):
            folder, _, name = path.rpartition("/")
            return printable(f"{operation} {name} {data}".strip()), printable(folder)
        case Ioctl(path, request):
            return request, printable(path)
        case _:
            return summary(outcome)[0], ""


def _migrations(effects: list[tuple[int, Record]]) -> list[list[str]]:
    """Return the migration states that devices went through: UUID, before, after."""
    return [[record.mdev, record.before, record.after] for _, record in effects if isinstance(record, Migration)]


def _verdicts(verdicts: Verdicts) -> Step:
    """Return verdicts as the page has them, with no more rows than it shows of records."""
    findings = [list(finding) for finding in verdicts.findings[:SHOWN]]
    fitting = list(verdicts.fitting[: SHOWN - len(findings)])
    left = len(verdicts.findings) + len(verdicts.fitting) - len(findings) - len(fitting)
    return {"findings": findings, "fitting": fitting, "left": left}


class _Axes:
    """The adapters and domains that there are, or that are assigned, at any moment."""

    def __init__(self) -> None:
        self._adapters: set[str] = set()
        self._domains: set[str] = set()

    def add(self, picture: Picture) -> None:
        """Take note of those of a picture, or of what changes in one."""
        self._adapters.update(picture.get("cards", ()))
        for mdev in picture.get("mdevs", {}).values():
            matrix = (mdev or {}).get("matrix", {})  # nothing is left of a device that is gone
            self._adapters.add(matrix.get("adapters", ""))
            self._domains.add(matrix.get("domains", ""))

    def numbers(self, cards: Iterable[Picture]) -> dict[str, list[int]]:
        """Return the numbers of both, ascending."""
        domains = self._domains.union(*(card["queues"].values() for card in cards))
        return {"adapters": _all(self._adapters), "domains": _all(domains)}


def _all(texts: set[str]) -> list[int]:
    return sorted({number for text in texts for number in _numbers(text)})


def _numbers(ranges: str) -> Iterator[int]:
    """Yield the numbers of a text that `Mask.ranges` made."""
    for run in ranges.split():
        first, _, last = run.partition("-")
        yield from range(int(first, 16), int(last or first, 16) + 1)


def together(stories: Sequence[Story]) -> list[list[int]]:
    """Return the order of the steps of all hosts: pairs of host and step.

    Hosts do not share a clock. What is known is that a stream leaves before it arrives: a source reaches STOP_COPY
    before the target of the same device leaves RESUMING, and releases the device later than that. Other steps of
    several hosts may have been in any order; those of the host that is named first are shown first.
    """
    order: list[list[int]] = []
    done = [0] * len(stories)

    def up_to(host: int, end: int) -> None:
        order.extend([host, index] for index in range(done[host], end))
        done[host] = max(done[host], end)

    for source, sent, target, received in _transfers(stories):
        up_to(source, sent + 1)
        up_to(target, received + 1)
    for host, story in enumerate(stories):
        up_to(host, len(story["steps"]))
    return order


def _transfers(stories: Sequence[Story]) -> list[tuple[int, int, int, int]]:
    """Return the migrations between hosts: source and its step, target and its step."""
    found = []
    for source, target in permutations(range(len(stories)), 2):
        sent, received = _sent(stories[source]), _received(stories[target])
        for uuid, steps in sent.items():
            pairs = zip(steps, received.get(uuid, ()), strict=False)
            found += [(source, left, target, arrived) for left, arrived in pairs]
    return sorted(found, key=lambda transfer: transfer[1] + transfer[3])


def _sent(host: Story) -> dict[str, list[int]]:
    steps: dict[str, list[int]] = {}
    for index, step in enumerate(host["steps"]):
        for uuid, _, after in step.get("migration", ()):
            if after == "STOP_COPY":
                steps.setdefault(uuid, []).append(index)
    return steps


def _received(host: Story) -> dict[str, list[int]]:
    """Return the steps in which devices left RESUMING, or a stream was refused, whichever came first."""
    steps: dict[str, list[int]] = {}
    resuming: set[str] = set()
    for index, step in enumerate(host["steps"]):
        refused = step["kind"] == "refusal" and step["what"].startswith("data_stream")
        left = {uuid for uuid in resuming if refused and step.get("where", "").endswith(uuid)}
        for uuid, before, after in step.get("migration", ()):
            if after == "RESUMING":
                resuming.add(uuid)
            elif before == "RESUMING" and uuid in resuming:
                left.add(uuid)
        for uuid in left:
            steps.setdefault(uuid, []).append(index)
        resuming -= left
    return steps
