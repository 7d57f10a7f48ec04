"""Common parts of all revisions' streams: a header, and an entry of 16 bytes for each queue.

Big-endian: the TAPQ word of the queue (8 bytes), its APQN (2) and padding (6), which is written as zero and ignored
when read.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from apfs.ap.names import Apqn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from apfs.ap.mask import Mask

ENTRY = struct.Struct(">QH6x")
_ENTRY_HEAD = struct.Struct(">QB")
_ENTRY_TAILS = tuple(bytes((apqi, 0, 0, 0, 0, 0, 0)) for apqi in range(256))
"""An entry is the same on all domains of an adapter but for its last byte of the APQN."""


class Row(NamedTuple):
    """Queues on one adapter that have one TAPQ word."""

    apid: int
    domains: Mask
    hwinfo: int


@lru_cache(maxsize=16)  # the adapters of a guest nearly always have the same domains
def _tails(domains: Mask) -> tuple[bytes, ...]:
    return tuple(_ENTRY_TAILS[apqi] for apqi in domains)


def entries_of(apid: int, domains: Mask, word: int) -> bytes:
    """Return the entries of a row. A join of 256 takes as long as 4 entries."""
    return _ENTRY_HEAD.pack(word, apid).join((b"", *_tails(domains)))


def body_of(count: int, rows: Iterable[Row]) -> bytes:
    """Return the entries of a guest matrix of `count` APQNs.

    APQNs without a queue device are skipped without leaving a gap: there are zero entries at the end instead.
    """
    parts = [entries_of(apid, domains, word) for apid, domains, word in rows]
    return b"".join(parts).ljust(ENTRY.size * count, b"\0")


def queues_of(body: bytes | memoryview) -> list[tuple[int, int]]:
    """Return the word and the number of the APQN of each entry; of a last one that is not whole, nothing."""
    return list(ENTRY.iter_unpack(body[: len(body) // ENTRY.size * ENTRY.size]))


def apqn_of(number: int) -> Apqn:
    """Return an APQN by its number."""
    return Apqn(number >> 8, number & 0xFF)
