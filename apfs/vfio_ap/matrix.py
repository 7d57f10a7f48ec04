"""The AP configuration of a mediated device, as a value."""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from apfs.ap.mask import NONE, Mask
from apfs.ap.names import Apqn
from apfs.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Axis = Literal["adapters", "domains", "control_domains"]
AXES: tuple[Axis, ...] = get_args(Axis)


class Matrix(NamedTuple):
    """Adapters, usage domains and control domains (struct ap_matrix: apm, aqm, adm)."""

    adapters: Mask = NONE
    domains: Mask = NONE
    control_domains: Mask = NONE

    def apqns(self) -> Iterator[Apqn]:
        """Yield the product of adapters and domains, ascending."""
        return (Apqn(apid, apqi) for apid in self.adapters for apqi in self.domains)

    def has(self, apqn: Apqn) -> bool:
        """Whether an APQN is in the product."""
        return apqn.apid in self.adapters and apqn.apqi in self.domains

    @property
    def size(self) -> int:
        """The number of APQNs."""
        return len(self.adapters) * len(self.domains)

    def shared(self, other: Matrix) -> Matrix:
        """Return the APQNs that both have, as a matrix."""
        return Matrix(self.adapters & other.adapters, self.domains & other.domains)

    def mask(self, axis: Axis) -> Mask:
        """Return one of the masks."""
        if axis == "adapters":
            return self.adapters
        return self.domains if axis == "domains" else self.control_domains

    def with_mask(self, axis: Axis, mask: Mask) -> Matrix:
        """Return the matrix with one of its masks replaced."""
        if axis == "adapters":
            return _matrix((mask, self.domains, self.control_domains))
        if axis == "domains":
            return _matrix((self.adapters, mask, self.control_domains))
        return _matrix((self.adapters, self.domains, mask))


EMPTY = Matrix()
# This takes half the time of the constructor, and each store that assigns or unassigns does it two or three times.
_matrix: Callable[[tuple[Mask, Mask, Mask]], Matrix] = partial(tuple.__new__, Matrix)


class Limits(NamedTuple):
    """The highest numbers that can be assigned."""

    adapter: int
    domain: int
    """That of control domains, too."""

    def check(self, axis: Axis, number: int) -> None:
        """Make sure that a number can be assigned. ENODEV if not."""
        limit = self.adapter if axis == "adapters" else self.domain
        if number > limit:
            what = axis.replace("_", " ").removesuffix("s")
            raise KernelError(errno.ENODEV, f"{what} {number} is above the limit of {limit}")

    def check_all(self, matrix: Matrix) -> None:
        """Make sure that all numbers of a matrix can be assigned. ENODEV if not."""
        for axis in AXES:
            for number in matrix.mask(axis):
                self.check(axis, number)
