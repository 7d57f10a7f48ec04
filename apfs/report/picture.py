"""A picture: the state of a host at one moment, small enough for a page with thousands of them.

Pictures are trees of dictionaries with texts as leaves; sets of numbers are written as ranges. The difference between
two pictures is a merge patch (RFC 7396), so nothing in a picture is null.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apfs.ap.mask import ALL, NONE, Mask, ap_hex2bitmap
from apfs.ap.names import Apqn
from apfs.report import words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Picture = dict[str, Any]

_NAMED = 4
"""How many of the queues that keep an adapter from a guest are named."""
_LOOKS_LATER = "nothing is in the way any more: vfio_ap looks again when the next change makes it filter"


def picture(document: Mapping[str, Any]) -> Picture:
    """Return the picture of a status: of `apfs.ctl.status.document`, or of the JSON in a `ctl/status`."""
    cards = {int(apid, 16): card for apid, card in document["cards"].items()}
    return {
        "host": dict(_host(document)),
        "masks": {
            "apmask": words.ranges(ap_hex2bitmap(document["apmask"]), words.ADAPTER),
            "aqmask": words.ranges(ap_hex2bitmap(document["aqmask"]), words.DOMAIN),
        },
        "cards": {f"{apid:02x}": _card(card) for apid, card in cards.items()},
        "mdevs": {uuid: _mdev(mdev, _Filter(document, cards)) for uuid, mdev in document["mdevs"].items()},
        "guests": {uuid: _guest(guest) for uuid, guest in document["guests"].items()},
        "exceptions": _exceptions(document),
        "faults": {path: f"{fault['errno']}, {fault['accesses']}x" for path, fault in document["faults"].items()},
    }


def patch(before: Picture, after: Picture) -> Picture:
    """Return what makes one picture of another (RFC 7396): what is new or different, and null for what is gone."""
    changes: Picture = {key: None for key in before if key not in after}
    # Mostly few of thousands: what a request does not concern is the same object.
    for key in [key for key, value in after.items() if before.get(key) is not value]:
        was, value = before.get(key), after[key]
        if isinstance(value, dict) and isinstance(was, dict):
            if value != was and (inner := patch(was, value)):
                changes[key] = inner
        elif value != was:
            changes[key] = value
    return changes


def _domains(numbers: Iterable[int]) -> str:
    return words.ranges(numbers, words.DOMAIN)


def _host(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from ((title, text or "none") for title, text in words.machine(document))
    yield "modules", " ".join(document["modules"])
    yield from words.without_kvm(document)
    if document["unbound_mdevs"]:
        yield "devices without a driver", " ".join(document["unbound_mdevs"])


def _card(card: Mapping[str, Any]) -> Picture:
    bound = {driver: words.mask(domains) for driver, domains in card["drivers"].items()}
    zcrypt = bound.pop("cex4queue", NONE)
    offline = words.mask(card["offline"])
    state = [word for flag, word in (("online", "offline"), ("config", "deconfigured")) if not card[flag]]
    queues = {
        "zcrypt": zcrypt - offline,
        "offline": zcrypt & offline,
        **bound,
        "unbound": card["unbound"],
        "deconfigured": card["deconfigured"],
        "checkstopped": card["checkstopped"],
    }
    return {
        "type": " ".join(filter(None, (card["type"], card["mode"]))),
        "driver": card["driver"] or "none",
        "state": ", ".join(state + ["check-stopped"] * card["chkstop"]) or "online",
        "queues": {name: text for name, domains in queues.items() if (text := _domains(domains))},
    }


def _mdev(mdev: Mapping[str, Any], filtered: _Filter) -> Picture:
    return {
        "opened by": mdev["opener"] or "nobody",
        "guest": "runs" if mdev["guest"] else "none",
        "migration": mdev["migration_state"] or "not offered",
        "matrix": _matrix(mdev["matrix"]),
        "guest_matrix": _matrix(mdev["guest_matrix"]),
        "filtered": dict(filtered.reasons(mdev["matrix"], mdev["guest_matrix"])),
    }


def _matrix(matrix: Mapping[str, Iterable[int]]) -> dict[str, str]:
    return {
        axis: words.ranges(numbers, words.ADAPTER if axis == "adapters" else words.DOMAIN)
        for axis, numbers in matrix.items()
    }


def _guest(guest: Mapping[str, Any]) -> Picture:
    return {
        "cards": words.ranges(guest["cards"], words.ADAPTER) or "none",
        "queues": f"{guest['bindings']['queues']}, {words.bindings(guest)}",
        "modules": " ".join(guest["modules"]),
        "mode": "Secure Execution" if guest["secure_execution"] else "usual",
        "guests": " ".join(guest["guests"]) or "none",
    }


def _exceptions(document: Mapping[str, Any]) -> dict[str, str]:
    texts: dict[str, list[str]] = {}
    for apqn, text in words.exceptions(document):
        texts.setdefault(apqn, []).append(text)
    return {apqn: "; ".join(found) for apqn, found in sorted(texts.items())}


class _Filter:
    """Says why the guest of a device does not get all that is assigned (vfio_ap_mdev_filter_matrix)."""

    def __init__(self, document: Mapping[str, Any], cards: Mapping[int, Mapping[str, Any]]) -> None:
        self._cards = cards
        self._bad_resets = document["bad_resets"]
        adapters, domains = document["adapters"], document["usage_domains"]
        self._adapters = ALL if adapters is None else words.mask(adapters)
        self._host_domains = ALL if domains is None else words.mask(domains)

    def reasons(
        self, assigned: Mapping[str, Iterable[int]], guest: Mapping[str, Iterable[int]]
    ) -> Iterator[tuple[str, str]]:
        """Yield each adapter and domain that is assigned and that the guest's matrix lacks, and why it does."""
        domains = words.mask(assigned["domains"])
        for apid in words.mask(assigned["adapters"]) - words.mask(guest["adapters"]):
            yield f"{apid:02x}", self._adapter(apid, domains & self._host_domains)
        for apqi in domains - words.mask(guest["domains"]):
            absent = apqi not in self._host_domains
            yield f"{apqi:04x}", "not a usage domain of the host" if absent else _LOOKS_LATER

    def _adapter(self, apid: int, domains: Mask) -> str:
        card = self._cards.get(apid)
        if apid not in self._adapters:
            return "not an adapter of the host"
        if card is None:
            return "no card is there"
        bound = {driver: words.mask(numbers) for driver, numbers in card["drivers"].items()}
        rest = domains - bound.get("vfio_ap", NONE)
        unbound = rest & words.mask(card["unbound"])
        groups = [(rest & bound.get("cex4queue", NONE), "with zcrypt"), (unbound, "without a driver")]
        groups.append((rest - groups[0][0] - unbound, "not there"))
        found = [f"{_queues(apid, queues)} {why}" for queues, why in groups if queues]
        found += [
            f"{apqn}: its last reset ended with response code {response}"
            for apqn, response in self._bad_resets.items()
            if apqn.startswith(f"{apid:02x}.") and int(apqn[3:], 16) in domains
        ]
        return "; ".join(found) or _LOOKS_LATER


def _queues(apid: int, domains: Mask) -> str:
    names = [str(Apqn(apid, apqi)) for apqi in domains]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return " ".join(names[:_NAMED]) + more
