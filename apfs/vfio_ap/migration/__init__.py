"""Live migration: the revisions of the series that there are, by the word that scenarios have for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apfs.vfio_ap.migration.v2 import V2

if TYPE_CHECKING:
    from apfs.vfio_ap.migration.revision import Migration

REVISIONS: dict[str, type[Migration] | None] = {
    V2.name: V2,
}
DEFAULT = V2.name
