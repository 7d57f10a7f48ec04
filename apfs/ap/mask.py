"""256-bit masks of adapters and domains, bit 0 leftmost, with the text forms that sysfs uses for them.

A mask is one Python integer, so set algebra over whole rows of queues is a single fast operation. This makes a host
with 65,536 queues as cheap as one with four.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING

from apfs.errors import KernelError
from apfs.kernel.kstrtox import simple_strtoull
from apfs.kernel.profile import DEFAULT, Profile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

BITS = 256
_TOP = BITS - 1
_FULL = (1 << BITS) - 1
_HEX_DIGITS = BITS // 4
_INT_SIGN, _INT_MASK = 1 << 31, (1 << 32) - 1

# modify_bitmap() reads numbers with simple_strtoull().
_NUMBER = r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*"
_TERM = re.compile(rf"(?P<sign>[+-])(?P<first>{_NUMBER})(?:-(?P<last>{_NUMBER}))?[,\n]*")
_ABSOLUTE = re.compile(r"(?:0?x)?(?P<digits>[0-9a-fA-F]{0,64})\n?\Z")


_new = object.__new__


class Mask:
    """An immutable set of the numbers 0..255 (ap_bitmap with inverted bit numbers in Linux).

    The result of an operation on masks is always a mask. Not checking it in `__init__` saves a quarter of the time of
    `&`, and a store to `assign_domain` does that five times.
    """

    __slots__ = ("bits",)

    bits: int
    """The mask as an integer of 256 bits whose most significant bit is number 0."""

    def __init__(self, bits: int = 0) -> None:
        """Wrap raw bits; `ValueError` if they are not a 256-bit value."""
        if not 0 <= bits <= _FULL:
            msg = f"not a 256-bit value: {bits:#x}"
            raise ValueError(msg)
        self.bits = bits

    @classmethod
    def of(cls, *numbers: int) -> Mask:
        """Return the mask of these numbers."""
        return cls.from_numbers(numbers)

    @classmethod
    def from_numbers(cls, numbers: Iterable[int]) -> Mask:
        """Return the mask of these numbers; `ValueError` outside 0..255."""
        bits = 0
        for number in numbers:
            if not 0 <= number <= _TOP:
                msg = f"{number} is not in 0..{_TOP}"
                raise ValueError(msg)
            bits |= 1 << (_TOP - number)
        return cls(bits)

    @classmethod
    def up_to(cls, last: int) -> Mask:
        """Return the mask of 0..last inclusive."""
        return cls(_FULL ^ (_FULL >> (last + 1)))

    def __contains__(self, number: int) -> bool:
        return self.bits >> (_TOP - number) & 1 == 1

    def __iter__(self) -> Iterator[int]:
        """Return the members in ascending order."""
        rest, members = self.bits, []
        while rest:
            length = rest.bit_length()
            members.append(BITS - length)
            rest ^= 1 << (length - 1)
        return iter(members)

    def after(self, number: int) -> Mask:
        """Return the members above `number` (which may be -1)."""
        return Mask(self.bits & (_FULL >> (number + 1)))

    def lowest(self) -> int:
        """Return the smallest member; `ValueError` if there is none."""
        if not self.bits:
            msg = "empty mask"
            raise ValueError(msg)
        return BITS - self.bits.bit_length()

    def __len__(self) -> int:
        return self.bits.bit_count()

    def __bool__(self) -> bool:
        return self.bits != 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and self.bits == other.bits

    def __hash__(self) -> int:
        return hash(self.bits)

    def __and__(self, other: Mask) -> Mask:
        bits = self.bits & other.bits
        if bits == self.bits:  # the usual case: all that is assigned exists. Comparing costs next to nothing
            return self
        result = _new(Mask)
        result.bits = bits
        return result

    def __or__(self, other: Mask) -> Mask:
        result = _new(Mask)
        result.bits = self.bits | other.bits
        return result

    def __sub__(self, other: Mask) -> Mask:
        result = _new(Mask)
        result.bits = self.bits & ~other.bits
        return result

    def __xor__(self, other: Mask) -> Mask:
        result = _new(Mask)
        result.bits = self.bits ^ other.bits
        return result

    def __invert__(self) -> Mask:
        return Mask(self.bits ^ _FULL)

    def isdisjoint(self, other: Mask) -> bool:
        """Whether no member of `other` is in this mask."""
        return not self.bits & other.bits

    def issuperset(self, other: Mask) -> bool:
        """Whether every member of `other` is in this mask."""
        return other.bits & ~self.bits == 0

    def with_(self, number: int) -> Mask:
        """Return this mask with `number`, which is 0..255, added."""
        result = _new(Mask)
        result.bits = self.bits | 1 << (_TOP - number)
        return result

    def without(self, number: int) -> Mask:
        """Return this mask with `number` taken out."""
        result = _new(Mask)
        result.bits = self.bits & ~(1 << (_TOP - number))
        return result

    def hex256(self) -> str:
        """Return `0x` and 64 lower-case hex digits, the form of every mask attribute."""
        return f"0x{self.bits:064x}"

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield the first and the last number of each run of members, ascending."""
        rest = self.bits
        while rest:
            first = BITS - rest.bit_length()
            last = BITS - (~rest & (_FULL >> first)).bit_length() - 1
            yield first, last
            rest &= _FULL >> (last + 1)

    def ranges(self, digits: int) -> str:
        """Return the members for people: runs of hex numbers of that many digits, `0000-001f 0040`; empty for none."""
        return " ".join(
            f"{first:0{digits}x}" if first == last else f"{first:0{digits}x}-{last:0{digits}x}"
            for first, last in self.runs()
        )

    def __repr__(self) -> str:
        return f"Mask.of({', '.join(map(str, self))})"


NONE = Mask()
ALL = Mask(_FULL)


def ap_hex2bitmap(text: str) -> Mask:
    """Parse hex digits that fill a mask from the left (ap_hex2bitmap in ap_bus.c).

    Optional `0x` or `x` (lower case only), up to 64 digits, at most one trailing newline; missing digits on the right
    count as zero, so an empty text is the empty mask. EINVAL for anything else.
    """
    found = _ABSOLUTE.match(text)
    if not found:
        raise KernelError(errno.EINVAL, f"not a mask of at most {_HEX_DIGITS} hex digits: {text[:72]!r}")
    return Mask(int(found["digits"].ljust(_HEX_DIGITS, "0"), 16))


def ap_parse_bitmap_str(text: str, current: Mask, kernel: Profile = DEFAULT) -> Mask:
    """Parse what is written to `apmask` and its like (ap_parse_bitmap_str in ap_bus.c).

    A first character `+` or `-` makes it a list of changes to `current` (`+5,-0x10-0x1f`), anything else an absolute
    value for `ap_hex2bitmap`. EINVAL leaves nothing half applied: masks are values.
    """
    if text[:1] not in ("+", "-"):
        return ap_hex2bitmap(text)
    bits, position = current.bits, 0
    while position < len(text):
        term = _TERM.match(text, position)
        if not term:
            raise KernelError(errno.EINVAL, f"expected +N, -N, +N-M or -N-M at {text[position : position + 20]!r}")
        first = _number(term["first"], kernel)
        last = _number(term["last"], kernel) if term["last"] else first
        if not 0 <= first <= last < BITS:
            raise KernelError(errno.EINVAL, f"bad range in {term[0]!r}: numbers are 0..{_TOP}, ascending")
        row = (_FULL >> first) ^ (_FULL >> (last + 1))
        bits = bits | row if term["sign"] == "+" else bits & ~row
        position = term.end()
    return Mask(bits)


def _number(digits: str, kernel: Profile) -> int:
    """Return the value of a number in a list of changes, which old kernels keep in an int."""
    value = simple_strtoull(digits, kernel)
    return value if kernel.mask_number_long else (value + _INT_SIGN & _INT_MASK) - _INT_SIGN
