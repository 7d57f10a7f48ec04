"""Output of `apfs status` and `apfs journal`: a host as tables, a record of its journal as a line."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.style import Style
from rich.table import Table
from rich.text import Text

from apfs.ap.mask import ALL, NONE, Mask, ap_hex2bitmap
from apfs.cli.terminal import without_padding
from apfs.journal.text import from_line, printable, summary
from apfs.kernel.profile import Profile
from apfs.report import words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console


Row = tuple[str, ...]

_CARD_COLUMNS = ("card", "type", "mode", "driver", "config", "online", "chkstop", "queues each")
_MATRIX_COLUMNS = ("uuid", "matrix", "adapters", "domains", "control")

_BOLD, _GOOD, _ODD, _WRONG = map(Style.parse, ("bold", "green", "yellow", "bold red"))
_CELLS = {
    **dict.fromkeys((("config", "0"), ("online", "0"), ("chkstop", "1")), _ODD),
    **dict.fromkeys((("state", word) for word in ("unbound", "offline", "deconfigured", "check-stopped")), _ODD),
    **dict.fromkeys((("state", "in use"), ("opened by", "guest"), ("opened by", "program")), _GOOD),
}
_TYPES = {"refusal": _WRONG, "crash": _WRONG, "store": _GOOD, "verb": Style.parse("magenta"), "log": _ODD}
_TYPE_WIDTH, _SEQUENCE_WIDTH = len("interrupt"), 6


def record(line: str, out: Console) -> str:
    """Return a line of `ctl/journal` as one for people: number, type, what happened, and for a refusal the reason.

    `ValueError` if it is not a record of this version of apfs.
    """
    sequence, entry = from_line(line)
    what, why = summary(entry)
    kind, separator = f"{entry.kind:<{_TYPE_WIDTH}}", ": " if why else ""
    if out.color_system is not None:
        kind, why = _TYPES.get(entry.kind, Style()).render(kind), _WRONG.render(why)
    return f"{sequence:>{_SEQUENCE_WIDTH}}  {kind}  {what}{separator}{why}\n"


def status(document: dict[str, Any], out: Console) -> str:
    """Return the content of `ctl/status` as tables. Those that would be empty are left out."""
    with out.capture() as captured:
        out.print(view(document))
    return without_padding(captured.get().rstrip())


def view(document: dict[str, Any]) -> Group:
    """Return these tables as something that can be drawn."""
    shown = ((title, table) for title, table in _tables(document) if table.row_count)
    return Group(*(part for title, table in shown for part in (Text(title, _BOLD), table, Text())))


def _tables(document: dict[str, Any]) -> Iterator[tuple[str, Table]]:
    cards = {int(apid, 16): card for apid, card in document["cards"].items()}
    mdevs = document["mdevs"]
    yield "host", _table((), _host(document))
    yield "cards", _table(_CARD_COLUMNS, _alike((apid, _card(card)) for apid, card in cards.items()))
    rows = ((apid, row) for apid, card in cards.items() for row in _queues(card))
    yield "queues", _table(("card", "driver", "state", "domains"), _alike(rows))
    yield "exceptions", _table(("card", "what", "domains"), _exceptions(document))
    yield "mediated devices", _table(("uuid", "group", "device", "opened by", "migration"), _mdevs(document))
    yield "matrices of mediated devices", _table(_MATRIX_COLUMNS, _matrices(mdevs))
    yield "guests", _table(("uuid", "cards", "queues", "bindings", "modules", "guests"), _guests(document["guests"]))
    faults = ((path, fault["errno"], str(fault["accesses"])) for path, fault in document["faults"].items())
    yield "injected faults", _table(("attribute", "error", "accesses"), faults)


def _table(columns: Row, rows: Iterable[Row]) -> Table:
    table = Table(box=None, show_header=bool(columns), header_style=_BOLD, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        # UUIDs are the last to be folded: half of one cannot be copied.
        table.add_column(name, overflow="fold", no_wrap=name == "uuid")
    for row in rows:
        table.add_row(*(_cell(name, text) for name, text in zip(columns or row, row, strict=True)))
    return table


def _cell(column: str, text: str) -> Text:
    return Text(", ").join(Text(word, _CELLS.get((column, word), "")) for word in printable(text).split(", "))


def _numbers(numbers: Iterable[int], digits: int) -> str:
    return words.ranges(numbers, digits) or "-"


def _host(document: dict[str, Any]) -> Iterator[Row]:
    clock = "" if document["clock"] == "real" else ", which pass by the console verb tick only"
    migration = "without live migration" if document["driver"] == "none" else document["driver"]
    yield "scenario", f"{document['scenario']}, vfio_ap {migration}, apfs {document['apfs']}"
    yield "scan", f"every {document['config_time']} s{clock}"
    yield from ((title, text or "-") for title, text in words.machine(document))
    yield "apmask", ap_hex2bitmap(document["apmask"]).ranges(words.ADAPTER) or "-"
    yield "aqmask", ap_hex2bitmap(document["aqmask"]).ranges(words.DOMAIN) or "-"
    yield "kernel", f"Linux {_kernel(document['kernel'])}"
    yield "modules", " ".join(document["modules"])
    if document["secure_execution"]:
        yield "secure execution", "guest: no live migration"
    yield from words.without_kvm(document)


def _kernel(kernel: dict[str, Any]) -> str:
    """Return a release with its changes."""
    return str(Profile.of(kernel["version"], kernel["changes"]))


def _alike(rows: Iterable[tuple[int, Row]]) -> Iterator[Row]:
    """Merge what is the same on several adapters, in the order in which it first occurs."""
    adapters: dict[Row, Mask] = {}
    for apid, row in rows:
        adapters[row] = adapters.get(row, NONE).with_(apid)
    return ((mask.ranges(words.ADAPTER), *row) for row, mask in adapters.items())


def _card(card: dict[str, Any]) -> Row:
    queues = len(card["unbound"]) + sum(map(len, card["drivers"].values()))
    flags = (str(int(card[flag])) for flag in ("config", "online", "chkstop"))
    return (card["type"], card["mode"] or "-", card["driver"] or "-", *flags, str(queues))


def _queues(card: dict[str, Any]) -> Iterator[Row]:
    """Yield driver, state and domains of the queues of a card that have these in common."""
    states = ("in_use", "assigned", "offline", "deconfigured", "checkstopped", "unbound")
    in_use, assigned, offline, deconfigured, checkstopped, unbound = (Mask.from_numbers(card[name]) for name in states)
    usable = ~(deconfigured | checkstopped)
    of_zcrypt = (("online", usable - offline), ("offline", usable & offline), ("", ~usable))
    of_vfio_ap = (("unassigned", ~assigned), ("assigned", assigned - in_use), ("in use", in_use))
    of_hardware = (("", usable), ("deconfigured", deconfigured), ("check-stopped", checkstopped))
    owners = {driver: Mask.from_numbers(domains) for driver, domains in sorted(card["drivers"].items())}
    for driver, bound in {**owners, "-": unbound}.items():
        of_driver = {"cex4queue": of_zcrypt, "-": (("unbound", ALL),)}.get(driver, of_vfio_ap)
        for (state, domains), (condition, affected) in product(of_driver, of_hardware):
            alike = bound & domains & affected
            if alike:
                yield driver, ", ".join(filter(None, (state, condition))), alike.ranges(words.DOMAIN)


def _exceptions(document: dict[str, Any]) -> Iterator[Row]:
    """Yield what is special about single queues."""
    rows: dict[tuple[str, str], Mask] = {}
    for apqn, text in words.exceptions(document):
        apid, _, apqi = apqn.partition(".")
        rows[apid, text] = rows.get((apid, text), NONE).with_(int(apqi, 16))
    return ((*row, domains.ranges(words.DOMAIN)) for row, domains in rows.items())


def _mdevs(document: dict[str, Any]) -> Iterator[Row]:
    for uuid, mdev in document["mdevs"].items():
        yield uuid, str(mdev["group"]), mdev["device"], mdev["opener"] or "-", mdev["migration_state"] or "-"
    for uuid in document["unbound_mdevs"]:
        yield uuid, "-", "-", "-", "unbound"


def _guests(guests: dict[str, Any]) -> Iterator[Row]:
    for uuid, guest in guests.items():
        mode = ", secure execution" if guest["secure_execution"] else ""
        cards, modules = _numbers(guest["cards"], words.ADAPTER), " ".join(guest["modules"])
        yield (
            uuid,
            cards,
            str(guest["bindings"]["queues"]),
            words.bindings(guest) + mode,
            modules,
            " ".join(guest["guests"]) or "-",
        )


def _matrices(mdevs: dict[str, Any]) -> Iterator[Row]:
    for uuid, mdev in mdevs.items():
        for name, label, matrix in ((uuid, "assigned", mdev["matrix"]), ("", "guest", mdev["guest_matrix"])):
            domains = (_numbers(matrix[axis], words.DOMAIN) for axis in ("domains", "control_domains"))
            yield name, label, _numbers(matrix["adapters"], words.ADAPTER), *domains
