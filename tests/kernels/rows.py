"""What each feature of a kernel means, as a check: `CHECKS` has one for every row of the table of profiles.

A check boots a host with the kernel and looks at what a user would see of the feature, with whatever value the kernel
has for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apfs.kernel.profile import spelled
from tests.hosts import Bench

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs.kernel.profile import Profile

CHECKS: dict[str, Callable[[Profile], None]] = {}
"""The checks by the names of the features."""


def row(check: Callable[[Profile], None]) -> Callable[[Profile], None]:
    """Register a check, whose name is that of the feature."""
    CHECKS[check.__name__] = check
    return check


def toml(kernel: Profile) -> str:
    """Return the line of a scenario that has this kernel."""
    changes = "".join(f", {name} = {spelled(value)}" for name, value in kernel.changes().items())
    return f'kernel = {{ version = "{kernel.version}"{changes} }}\n'


def boot(kernel: Profile, text: str, *, vfio_ap: bool = False) -> Bench:
    """Boot a scenario with a kernel."""
    return Bench(toml(kernel) + text, vfio_ap=vfio_ap)
