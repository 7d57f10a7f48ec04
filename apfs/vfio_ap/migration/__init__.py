"""Live migration: the available revisions of the series, by their names in scenarios."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apfs.vfio_ap.migration.next import Next
from apfs.vfio_ap.migration.v2 import V2
from apfs.vfio_ap.migration.v4 import V4

if TYPE_CHECKING:
    from apfs.vfio_ap.migration.revision import Migration

REVISIONS: dict[str, type[Migration] | None] = {
    "none": None,
    V2.name: V2,
    V4.name: V4,
    Next.name: Next,
}
DEFAULT = V2.name
