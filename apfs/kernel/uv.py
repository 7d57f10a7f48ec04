"""The Ultravisor in `/sys/firmware/uv` (arch/s390/kernel/uv.c): availability of Secure Execution.

Bits are numbered from the left. `query` omits sizes and versions of things that are not emulated: images, dumps,
attestation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from apfs.sysfs.entries import Attribute

if TYPE_CHECKING:
    from collections.abc import Iterable

_WORD = 64
_WORDS = 4
_GUEST_CALLS = (0, 8, 9, 20, 28, 29, 30, 31, 33)
"""Query, (un)share pages, attestation, and adding, listing, locking and retrieving secrets."""
_HOST_CALLS = (*range(8), 11, *range(13, 28))
"""Query, configurations and CPUs, storage, images, resets, pages, dumps."""
_FEATURES = (1, 4, 5)
"""Interrupts of adapters for guests (AIV); AP, and its interrupts, for Secure Execution guests."""
_GUEST_SECRETS = 65535
_HOST_GUESTS, _HOST_CPUS = 497, 248


class Ultravisor(NamedTuple):
    """What the Ultravisor tells a system: a host of Secure Execution guests, or such a guest."""

    guest: bool


def _words(bits: Iterable[int], count: int) -> str:
    """Return 64-bit words in hex, one per line."""
    value = sum(1 << (count * _WORD - 1 - bit) for bit in bits)
    return "".join(f"{value >> (place * _WORD) & (1 << _WORD) - 1:x}\n" for place in reversed(range(count)))


def _secrets(uv: Ultravisor) -> int:
    return _GUEST_SECRETS if uv.guest else 0


UV_ATTRIBUTES = (
    Attribute("prot_virt_guest", 0o444, lambda uv: f"{int(uv.guest)}\n"),
    Attribute("prot_virt_host", 0o444, lambda uv: f"{int(not uv.guest)}\n"),
)
QUERY_ATTRIBUTES = (
    Attribute("facilities", 0o444, lambda uv: _words(_GUEST_CALLS if uv.guest else _HOST_CALLS, _WORDS)),
    Attribute("feature_indications", 0o444, lambda _uv: _words(_FEATURES, 1)),
    Attribute("max_cpus", 0o444, lambda uv: f"{1 if uv.guest else _HOST_CPUS}\n"),
    Attribute("max_guests", 0o444, lambda uv: f"{0 if uv.guest else _HOST_GUESTS}\n"),
    Attribute("max_secrets", 0o444, lambda uv: f"{_secrets(uv)}\n"),
    Attribute("max_assoc_secrets", 0o444, lambda uv: f"{_secrets(uv)}\n"),
    Attribute("max_retr_secrets", 0o444, lambda _uv: "0\n"),
)
