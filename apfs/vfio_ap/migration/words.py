"""Differences between the TAPQ words of a source's and a target's queue, and their log messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from apfs.ap.qinfo import FAC, FIELDS

if TYPE_CHECKING:
    from apfs.ap.names import Apqn

# Bits 0 to 17 (facilities, class, bind state) and 32 to 39 (AP type).
_COMPARED = 0xFFFFC000FF000000
_CLASS_NATIVE = 0x80


class Characteristic(NamedTuple):
    """A property of a queue that a diagnostic can name."""

    key: str
    field: str
    text: str
    present: str
    absent: str


FACILITIES = (
    Characteristic("F1", "apsc", "special command (APSC) facility", "installed", "not installed"),
    Characteristic("F2", "mex4k", "4096-bit modulus-exponent (AP4KM) facility", "installed", "not installed"),
    Characteristic("F3", "crt4k", "4096-bit CRT (AP4KC) facility", "installed", "not installed"),
    Characteristic("M1", "cca", "CCA coprocessor mode", "installed", "not installed"),
    Characteristic("M2", "accel", "accelerator mode", "installed", "not installed"),
    Characteristic("M3", "ep11", "EP11 (XCP) coprocessor mode", "installed", "not installed"),
    Characteristic("X1", "apxa", "extended addressing (APXA) facility", "installed", "not installed"),
    Characteristic("L1", "slcf", "stateless command filtering (SLCF)", "available", "not available"),
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One characteristic in which a source queue is not what the target needs; `key` is stable, texts are not."""

    key: str
    characteristic: str
    source: str
    target: str

    def lines(self, apqn: Apqn) -> tuple[str, ...]:
        """Return the kernel log lines that report it."""
        if self.key == "T1":
            return (f"AP type: source {self.source}, target {self.target}",)
        if self.key == "B1":
            return (f"bind/associate state of queue {apqn}: source {self.source}, target {self.target}",)
        return (
            f"{self.characteristic} {self.source} for source queue {apqn}",
            f"{self.characteristic} {self.target} for target queue {apqn}",
        )


def headline(apqn: Apqn) -> str:
    """Return the line of the log before those about a queue that is not compatible."""
    return f"Migration incompatible: source queue {apqn} does not fit the target queue"


def all_equal(source: int, target: int) -> bool:
    """Whether facilities, class, bind state and AP type are equal."""
    return not (source ^ target) & _COMPARED


def newer(source: int, target: int) -> bool:
    """Whether the source's AP type is newer than the target's."""
    return FIELDS["at"].get(source) > FIELDS["at"].get(target)


def same_upper(source: int, target: int) -> bool:
    """Whether all of the upper halves are equal."""
    return FAC.get(source) == FAC.get(target)


def same_facilities(source: int, target: int) -> bool:
    """Whether the facilities are equal: bits 0 to 7."""
    return all(FIELDS[field].get(source) == FIELDS[field].get(target) for _, field, *_ in FACILITIES)


def bound(*words: int) -> bool:
    """Whether the bind state of one of them is another one than usable."""
    return any(FIELDS["bs"].get(word) for word in words)


def loses_functions(source: int, target: int) -> bool:
    """Whether the source has full native function and the target not."""
    return bool(FIELDS["class"].get(source) & _CLASS_NATIVE and not FIELDS["class"].get(target) & _CLASS_NATIVE)


def of_facilities(source: int, target: int) -> list[Difference]:
    """Return the differences in facilities and modes."""
    found = []
    for key, field, text, present, absent in FACILITIES:
        values = FIELDS[field].get(source), FIELDS[field].get(target)
        if values[0] != values[1]:
            found.append(Difference(key, text, *(present if value else absent for value in values)))
    return found


def of_class(source: int, target: int) -> list[Difference]:
    """Return what is to be said of the class: nothing if the source has fewer functions."""
    if loses_functions(source, target):
        return [Difference("K1", "card class", "full native function", "stateless functions only")]
    return []


def of_type(source: int, target: int) -> list[Difference]:
    """Return what is to be said of the AP types, equal or not."""
    return [Difference("T1", "AP type", *(f"{FIELDS['at'].get(word):02x}" for word in (source, target)))]


def of_states(source: int, target: int) -> list[Difference]:
    """Return what is to be said of the bind states: nothing if both queues are usable."""
    if bound(source, target):
        return [Difference("B1", "bind/associate state", *(f"{FIELDS['bs'].get(word):x}" for word in (source, target)))]
    return []
