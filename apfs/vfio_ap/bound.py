"""Assignment before Linux 6.0: only queues bound to the driver can be assigned."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from apfs.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from apfs.ap.mask import Mask
    from apfs.vfio_ap.matrix import Matrix


def check_bound(added: Matrix, adapters: Iterable[int], bound: Callable[[int], Mask]) -> None:
    """Refuse, with EADDRNOTAVAIL, to assign queues that the driver does not have (up to 5.19).

    `added` is the new adapter with all domains, or the new domain with all adapters. If there is none on the other
    side, one queue with the new number is enough. `adapters` are those that there are, `bound(apid)` the domains whose
    queues the driver has.
    """
    if added.adapters and added.domains:
        missing = ((apid, (added.domains - bound(apid))) for apid in added.adapters)
        first = next((f"{apid:02x}.{domains.lowest():04x}" for apid, domains in missing if domains), None)
    elif added.adapters:
        first = next((f"{apid:02x}" for apid in added.adapters if not bound(apid)), None)
    else:
        first = next(
            (f".{apqi:04x}" for apqi in added.domains if not any(apqi in bound(apid) for apid in adapters)), None
        )
    if first is not None:
        raise KernelError(errno.EADDRNOTAVAIL, f"no queue {first} is bound to vfio_ap")
