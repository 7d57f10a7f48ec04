"""Wording of a status for people, shared by tables on a terminal and report pages.

Everything here is derived from the content of `ctl/status`: the document of `apfs.ctl.status`, or its JSON.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from apfs.ap.mask import Mask

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

ADAPTER, DOMAIN = 2, 4
"""Hex digits of their numbers."""

_EXCEPTIONS = {
    "overrides": "driver_override {}",
    "bad_resets": "not passed to guests: last reset ended with response code {}",
    "failing_resets": "next reset will end with response code {}",
    "unanswered": "requests that will get no answer: {}",
}


def mask(numbers: Iterable[int]) -> Mask:
    """Return the mask of what a status has: a `Mask`, or a list of numbers."""
    return numbers if isinstance(numbers, Mask) else Mask.from_numbers(numbers)


def ranges(numbers: Iterable[int], digits: int) -> str:
    """Return numbers of adapters or domains as people read them; nothing for none."""
    return _ranges(mask(numbers).bits, digits)


@lru_cache(4096)
def _ranges(bits: int, digits: int) -> str:
    # A host has the same few masks in many places, and a report shows it at many moments.
    return Mask(bits).ranges(digits)


def machine(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what the bus has bound and what the machine gives it, as titles and texts; these are empty for none."""
    bindings, domain = document["bindings"], document["ap_domain"]
    complete = "complete" if bindings["complete"] else "not complete"
    yield "bindings", f"{bindings['bound']} of {bindings['queues']} queues, {complete}"
    for name, digits in (("adapters", ADAPTER), ("usage_domains", DOMAIN), ("control_domains", DOMAIN)):
        numbers = document[name]
        text = "not known: the machine has no QCI" if numbers is None else ranges(numbers, digits)
        yield name.replace("_", " "), text
    yield "default domain", "" if domain < 0 else f"{domain:04x}"


def without_kvm(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a machine without KVM means, for others nothing."""
    if document["kvm"] == "none":
        yield "kvm", "none: programs cannot open devices"


def exceptions(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield APQNs and what is special about these queues, in the order of the kinds."""
    for name, text in _EXCEPTIONS.items():
        for apqn, value in document[name].items():
            yield apqn, text.format(value)


def bindings(guest: Mapping[str, Any]) -> str:
    """Return how far the queues of a guest are bound."""
    found = guest["bindings"]
    return "complete" if found["complete"] else f"{found['bound']} bound"
